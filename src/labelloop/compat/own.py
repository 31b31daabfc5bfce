"""Hosts a class of the user's own: the adapter that `host.py` loads for `engines/own`."""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
import traceback
from typing import Any, Callable


def host(ask: Callable[..., Any]) -> Own:
    return Own()


class Own:
    """One object with `predict`, of the class that the user names."""

    def __init__(self) -> None:
        self._model: Any = None

    def open(self, source: str, options: dict[str, Any], model_dir: str) -> None:
        """Build `Class(**options)` of "FILE.py:Class"; of a file alone the only class in it that can predict."""
        os.environ["MODEL_DIR"] = model_dir
        os.environ.update({key: str(value) for key, value in options.items() if key.isupper()})
        path, name = source, ""
        if not os.path.exists(source):
            path, _, name = source.rpartition(":")
        sys.path.insert(0, os.path.dirname(path))
        model_class = _class_in(_import(path), name)
        self._model = model_class(**{key: value for key, value in options.items() if not key.isupper()})

    def about(self) -> dict[str, Any]:
        return {
            "labels": [str(label) for label in getattr(self._model, "labels", ())],
            "task": str(getattr(self._model, "task", "detect")),
            "max_batch": int(getattr(self._model, "max_batch", 1)),
        }

    def predict(self, items: list[Any]) -> list[dict[str, Any]]:
        """What the model finds on each item, or why it failed on it."""
        if hasattr(self._model, "predict_batch"):
            found = list(self._model.predict_batch(items))
            if len(found) != len(items):
                raise ValueError(f"predict_batch returned {len(found)} answers for {len(items)} items")
            return [{"found": list(one or ())} for one in found]
        return [self._one(item) for item in items]

    def _one(self, item: Any) -> dict[str, Any]:
        try:
            return {"found": list(self._model.predict(item) or ())}
        except Exception as error:
            traceback.print_exc()
            return {"error": f"{type(error).__name__}: {error}"}


def _import(path: str) -> Any:
    name = os.path.splitext(os.path.basename(path))[0]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _class_in(module: Any, name: str) -> Any:
    if name:
        if not hasattr(module, name):
            raise ImportError(f"{module.__file__} has no class {name}")
        return getattr(module, name)
    classes = [one for _, one in inspect.getmembers(module, inspect.isclass) if one.__module__ == module.__name__]
    found = [one for one in classes if hasattr(one, "predict") or hasattr(one, "predict_batch")]
    if len(found) != 1:
        names = ", ".join(one.__name__ for one in found) or "none"
        raise ImportError(f"{module.__file__} has not one class with predict but {names}: name it, as FILE.py:Class")
    return found[0]
