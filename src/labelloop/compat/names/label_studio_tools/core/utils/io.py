"""labelloop's stand-in."""

import os
import tempfile

from label_studio_ml.utils import get_local_path

__all__ = ["get_cache_dir", "get_data_dir", "get_local_path"]


def get_data_dir() -> str:
    """A folder for what a model downloads: the model's own."""
    folder = os.path.join(os.environ.get("MODEL_DIR") or tempfile.gettempdir(), "data")
    os.makedirs(folder, exist_ok=True)
    return folder


get_cache_dir = get_data_dir
