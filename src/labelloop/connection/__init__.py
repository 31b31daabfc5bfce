"""Floor 5: tie a project to this backend, and find out why a tie does not hold."""
