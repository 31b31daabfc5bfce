"""Floor 2: arrays in, Regions out; one file per family of models."""
