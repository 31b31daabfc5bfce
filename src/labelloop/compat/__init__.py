"""Floor 1: what runs in other people's interpreters. Standard library only, Python 3.8 and newer, nothing of ours."""
