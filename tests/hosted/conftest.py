from reference.running_server import start

__all__ = ["start"]
