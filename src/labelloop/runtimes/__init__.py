"""Floor 1: interpreters of their own for software whose pins would poison ours."""
