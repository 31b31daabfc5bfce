from conftest_http import start, studio

__all__ = ["start", "studio"]
