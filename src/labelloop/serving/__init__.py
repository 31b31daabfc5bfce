"""Floor 3: who answers, when, and with which version."""
