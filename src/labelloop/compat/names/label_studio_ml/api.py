"""What a `_wsgi.py` calls. Here it only says which class is the model: labelloop answers Label Studio itself."""

from typing import Any

from labelloop_app import App


def init_app(model_class: Any, **options: Any) -> App:
    return App(model_class, options)
