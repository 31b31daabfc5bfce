"""labelloop's stand-in for the package of this name: what existing backends import from it, in both generations.

It is found only where the package itself is not installed.
"""

__version__ = "0+labelloop"
