"""Floor 1: pure functions on Tracks. No film is opened here."""
