"""labelloop's stand-in."""

from label_studio_tools.core.utils.io import get_cache_dir, get_data_dir, get_local_path  # type: ignore[import-not-found]

__all__ = ["get_cache_dir", "get_data_dir", "get_local_path"]
