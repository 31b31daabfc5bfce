"""Floor 8: the main job on pictures that need no download."""
