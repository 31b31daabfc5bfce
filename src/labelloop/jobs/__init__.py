"""Floor 5: long work as rows: it survives a SIGKILL, and any worker on the same store can go on with it."""
