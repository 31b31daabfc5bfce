"""Floor 0: nouns and pure functions; imports nothing of ours."""
