"""Stands where a `_wsgi.py` had its web application: labelloop answers Label Studio itself."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)


class App:
    """What `init_app` returns here, whichever package it is of."""

    def __init__(self, model_class: Any, options: dict[str, Any]) -> None:
        self.model_class = model_class
        self.options = options
        self.config: dict[str, Any] = {}
        self.logger = logger

    def run(self, *_: Any, **__: Any) -> None:
        sys.exit("Start this backend with: labelloop start DIR")

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """`route`, `before_request`, `register_blueprint`: pages of a backend's own, which nobody asks for here."""
        if name.startswith("_"):
            raise AttributeError(name)

        def leave(*given: Any, **_: Any) -> Any:
            if len(given) == 1 and callable(given[0]):  # @app.before_request
                return given[0]
            logger.warning("labelloop does not serve what the backend adds with app.%s%r", name, given)
            return lambda function: function

        return leave
