"""labelloop's stand-in: what models import to predict. What speaks to Label Studio's API is the package's own."""

from typing import Any

_CLIENTS = ("AsyncLabelStudio", "Client", "LabelStudio")


def __getattr__(name: str) -> Any:
    if name in _CLIENTS:
        raise ImportError(f"label_studio_sdk.{name} needs the package: pip install label-studio-sdk")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
