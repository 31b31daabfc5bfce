"""`python -m labelloop` is `labelloop`."""

from labelloop.cli import main

if __name__ == "__main__":
    main()
