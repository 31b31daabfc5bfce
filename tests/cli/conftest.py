from reference.terminal import terminal

__all__ = ["terminal"]
