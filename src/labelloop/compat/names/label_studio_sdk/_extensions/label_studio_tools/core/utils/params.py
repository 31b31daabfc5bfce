"""labelloop's stand-in."""

from label_studio_ml.utils import get_env

__all__ = ["get_bool_env", "get_env"]


def get_bool_env(name: str, default: bool = False) -> bool:
    return bool(get_env(name, default, is_bool=True))
