"""What a `_wsgi.py` calls. Here it only says which class is the model: labelloop answers Label Studio itself."""

from __future__ import annotations

import sys
from typing import Any


class App:
    """Stands where the web application was."""

    def __init__(self, model_class: Any, options: dict[str, Any]) -> None:
        self.model_class = model_class
        self.options = options

    def run(self, *_: Any, **__: Any) -> None:
        sys.exit("Start this backend with: labelloop start DIR")


def init_app(model_class: Any, **options: Any) -> App:
    return App(model_class, options)
