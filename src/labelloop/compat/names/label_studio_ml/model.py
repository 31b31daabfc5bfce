"""The base class of models, as both generations use it.

The first one is built with `(label_config=…, train_output=…, **kwargs)` and its `fit(completions, workdir=None,
**kwargs)` returns what comes back as `train_output`. The second one is built with `(project_id, label_config)`, calls
`setup()`, keeps what it wants with `get`, `set` and `has`, and its `fit(event, data, **kwargs)` hears single events.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
from collections.abc import Callable, Iterable
from typing import Any

from labelloop_label_config import LabelInterface, label_map, parse_config

from label_studio_ml.response import ModelResponse
from label_studio_ml.state import keeper
from label_studio_ml.utils import is_preload_needed
from label_studio_ml.versions import Version

__all__ = ["LabelStudioMLBase", "ModelResponse", "predict_fn", "update_fn"]

logger = logging.getLogger(__name__)


class _Registered:
    """Functions that stand for a class: one of each kind, as there is one model per backend."""

    predict: Callable[..., Any] | None = None
    update: Callable[..., Any] | None = None


def predict_fn(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let `function(tasks, context, helper, **kwargs)` predict."""
    _Registered.predict = function
    return function


def update_fn(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let `function(event, data, helper, **kwargs)` learn."""
    _Registered.update = function
    return function


class LabelStudioMLBase:
    """One model for one project and one label config."""

    INITIAL_MODEL_VERSION = "0.0.1"
    """What `model_version` is until the model sets one; to Label Studio such a model is called by labelloop's name."""

    TRAIN_EVENTS = ("ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATION_DELETED", "START_TRAINING")

    def __init__(
        self,
        project_id: Any = None,
        label_config: str | None = None,
        train_output: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.project_id = "" if project_id is None else str(project_id)
        self.train_output = train_output or {}
        self.hostname = kwargs.pop("hostname", "")
        self.access_token = kwargs.pop("access_token", "")
        self.kwargs = kwargs
        self.label_config = ""
        self.parsed_label_config: dict[str, dict[str, Any]] = {}
        if label_config:
            self.use_label_config(label_config)
        self.setup()

    def setup(self) -> None:
        """For subclasses: called once, when the model is built."""

    def use_label_config(self, label_config: str) -> None:
        self.label_config = label_config
        self.label_interface = _label_interface(label_config)
        self.parsed_label_config = parse_config(label_config)

    # --- for subclasses to overwrite --------------------------------------------------------------------

    def predict(self, tasks: list[dict[str, Any]], context: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        """One prediction for each task, in a list or a ModelResponse."""
        if _Registered.predict is None:
            raise NotImplementedError(f"{type(self).__name__} has no predict, and no function is marked @predict_fn")
        return _Registered.predict(tasks, context, helper=self, **kwargs)

    def fit(self, event: Any, data: Any = None, **kwargs: Any) -> Any:
        return _Registered.update(event, data, helper=self, **kwargs) if _Registered.update is not None else None

    def process_event(self, event: str, data: Any, job_id: Any, additional_params: dict[str, Any]) -> Any:
        if event not in self.TRAIN_EVENTS:
            return None
        return self.fit(event=event, data=data, job_id=job_id, **additional_params)

    # --- what is kept -----------------------------------------------------------------------------------

    def get(self, key: str) -> Any:
        """What was set under `key` for this project, None where nothing was; whoever set it, before any restart."""
        return keeper().get(self.project_id, key)

    def set(self, key: str, value: Any) -> None:
        """Keep what JSON can write."""
        keeper().set(self.project_id, key, value)

    def has(self, key: str) -> bool:
        return self.get(key) is not None

    @property
    def extra_params(self) -> dict[str, Any]:
        """What Label Studio's model page says as extra parameters, over what `--with` said."""
        said = self.get("extra_params")
        if isinstance(said, str):
            try:
                said = json.loads(said)
            except ValueError:
                logger.warning("extra_params are no JSON: %r", said)
        return {**self.kwargs, **said} if isinstance(said, dict) else dict(self.kwargs)

    def set_extra_params(self, extra_params: Any) -> None:
        self.set("extra_params", extra_params)

    @property
    def model_version(self) -> Any:
        """A Version where it is MAJOR.MINOR.PATCH, else the text that was set."""
        text = self.get("model_version") or self.INITIAL_MODEL_VERSION
        try:
            return Version.parse(text)
        except ValueError:
            return text

    @model_version.setter
    def model_version(self, version: Any) -> None:
        self.set("model_version", str(version))

    def bump_model_version(self) -> Any:
        """The next minor version. A version that is a text counts in a suffix: "mine" becomes "mine.1"."""
        now = self.model_version
        if isinstance(now, Version):
            bumped: Any = now.bump_minor()
        else:
            stem, _, number = str(now).rpartition(".")
            bumped = f"{stem}.{int(number) + 1}" if stem and number.isdigit() else f"{now}.1"
        self.set("model_version", str(bumped))
        return bumped

    # --- media ------------------------------------------------------------------------------------------

    def get_local_path(self, url: str, project_dir: Any = None, task_id: Any = None, **_: Any) -> str:
        """A file with what a task refers to: uploads, local files, http, cloud storage. Credentials and limits are
        labelloop's."""
        return str(keeper().local_path(url, self.project_id, task_id))

    def get_label_studio_access_token(self) -> str | None:
        return self.access_token or os.environ.get("LABEL_STUDIO_API_KEY")

    def preload_task_data(self, task: dict[str, Any], value: Any = None, read_file: bool = True) -> Any:
        """`value` (the task's data by default) with references replaced by what is in them, or by local paths."""
        return self._loaded(task, task["data"] if value is None else value, read_file)

    def _loaded(self, task: dict[str, Any], value: Any, read_file: bool) -> Any:
        if isinstance(value, dict):
            return {key: self._loaded(task, item, read_file) for key, item in value.items()}
        if isinstance(value, list):
            return [self._loaded(task, item, read_file) for item in value]
        if not isinstance(value, str) or not is_preload_needed(value):
            return value
        path = self.get_local_path(value, task_id=task.get("id"))
        if not read_file:
            return path
        with open(path, encoding="utf-8") as file:
            return file.read()

    # --- label config -----------------------------------------------------------------------------------

    def get_first_tag_occurence(
        self,
        control_type: str | Iterable[str],
        object_type: str | Iterable[str],
        name_filter: Callable[[str], bool] | None = None,
        to_name_filter: Callable[[str], bool] | None = None,
    ) -> tuple[str, str, str]:
        found: tuple[str, str, str] = self.label_interface.get_first_tag_occurence(
            control_type, object_type, name_filter, to_name_filter
        )
        return found

    def build_label_map(self, tag_name: str, names: Iterable[str]) -> dict[str, str]:
        """The project's label for each of a model's class names that has one: by `predicted_values`, else by the name
        itself, exactly or without regard to case."""
        found: dict[str, str] = label_map(self.label_interface.get_control(tag_name), names)
        return found


def _label_interface(label_config: str) -> Any:
    """The label config as objects of the SDK where that is installed, because models check their kind against it."""
    try:
        interface: Any = importlib.import_module("label_studio_sdk.label_interface").LabelInterface
    except Exception:  # releases before 1.0 have none, and others may not fit what is installed beside them
        logger.warning("the label_studio_sdk that is installed here has no LabelInterface", exc_info=True)
        interface = LabelInterface
    return interface(label_config)
