from reference.running_server import start, studio

__all__ = ["start", "studio"]
