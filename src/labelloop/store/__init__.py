"""Floor 1: rows and files, the memory of the product."""
