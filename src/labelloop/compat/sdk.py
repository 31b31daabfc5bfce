"""Hosts a backend written for `label_studio_ml`, unchanged: the adapter that `host.py` loads for `engines/sdk`.

Where the package is installed in this interpreter it is used; else the names in `names/` stand in for it.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import os
import sys
import threading
from collections import OrderedDict
from typing import Any, Callable

NAMES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "names")

KEPT_INSTANCES = 64
"""One for each project and label config; the one that was asked longest ago goes."""

SERVING = frozenset({"model_dir", "redis_queue", "redis_host", "redis_port", "use_redis", "basic_auth_user",
                     "basic_auth_pass"})  # fmt: skip
"""Arguments of `init_app` that were about the server and not about the model."""

WHERE = ("LABEL_STUDIO_URL", "LABEL_STUDIO_HOST", "LABEL_STUDIO_HOSTNAME")
TOKEN = ("LABEL_STUDIO_API_KEY", "LABEL_STUDIO_ACCESS_TOKEN")
"""Variables that models read, many of them while they are imported."""

BUILT_VERSION = "labelloop.built_version"

UNSET = ("", "INITIAL", "0.0.1", "None")
"""Model versions that nobody chose: the base classes begin with them."""


def host(ask: Callable[..., Any]) -> Backend:
    return Backend(ask)


class _Keeper:
    """What the stand-in keeps its state with: labelloop's store."""

    def __init__(self, ask: Callable[..., Any]) -> None:
        self._ask = ask
        self.building = threading.local()

    def get(self, project: str, key: str) -> Any:
        return self._ask("get", project=project, key=key)

    def set(self, project: str, key: str, value: Any) -> None:
        """A version that `setup` sets counts once, and again when it sets another: templates set the same one whenever
        an instance is built, which would undo the version that `fit` gave."""
        if key == "model_version" and getattr(self.building, "now", False):
            if self.get(project, BUILT_VERSION) == value:
                return
            self._ask("set", project=project, key=BUILT_VERSION, value=value)
        self._ask("set", project=project, key=key, value=value)

    def local_path(self, url: str, project: str, task: Any) -> str:
        if "://" not in url and not url.startswith(("/data/", "data:")) and os.path.exists(url):
            return url
        path: str = self._ask("local_path", uri=url, project=project, task=task)
        return path

    def annotated(self, project: str) -> Any:
        return self._ask("annotated", project=project)


class _Cache:
    """What the package's second generation keeps values with: labelloop's store instead of a file in the model's
    folder, which stays readable. So they are the same in all processes, need not be texts, and survive `setup`."""

    def __init__(self, keeper: _Keeper, behind: Any) -> None:
        self._keeper = keeper
        self._behind = behind
        self._here: dict[tuple[str, str], Any] = {}

    def __getitem__(self, key: tuple[str, str]) -> Any:
        value = self._keeper.get(*key)
        if value is None:
            return self._here[key] if key in self._here else self._behind[key]
        return json.dumps(value) if key[1] == "extra_params" and not isinstance(value, str) else value

    def __setitem__(self, key: tuple[str, str], value: Any) -> None:
        """What every instance finds out again is not kept: the label config, and a version that nobody chose."""
        if key[1] in ("label_config", "parsed_label_config") or (key[1] == "model_version" and str(value) in UNSET):
            self._here[key] = value
            return
        self._keeper.set(*key, value)

    def __contains__(self, key: tuple[str, str]) -> bool:
        return self[key] is not None


class Backend:
    """One model class, and its instances."""

    def __init__(self, ask: Callable[..., Any]) -> None:
        self._ask = ask
        self._keeper = _Keeper(ask)
        self._class: Any = None
        self._options: dict[str, Any] = {}
        self._first_generation = self._stands_in = False
        self._package = ""
        self._instances: OrderedDict[tuple[str, str], Any] = OrderedDict()
        self._building = threading.Lock()

    # --- calls of the parent ----------------------------------------------------------------------------

    def open(self, source: str, options: dict[str, Any], model_dir: str) -> None:
        """Import the backend. `source` is a folder, a file, or either with ":Class"; `options` are what `--with`
        said. Those in capitals become environment variables before anything is imported."""
        os.environ["MODEL_DIR"] = model_dir
        os.environ.update({key: str(value) for key, value in options.items() if key.isupper()})
        self._connection("")
        sys.path.append(NAMES)
        package = importlib.import_module("label_studio_ml")
        self._stands_in = os.path.abspath(str(package.__file__)).startswith(NAMES)
        self._package = str(getattr(package, "__version__", ""))
        if self._stands_in:
            importlib.import_module("label_studio_ml.state").keep_with(self._keeper)
        model: Any = importlib.import_module("label_studio_ml.model")
        if hasattr(model, "CACHE"):
            model.CACHE = _Cache(self._keeper, model.CACHE)
        self._class, given = _model_class(source)
        self._options = {**given, **{key: value for key, value in options.items() if not key.isupper()}}
        self._first_generation = not _hears_events(self._class.fit)

    def about(self) -> dict[str, Any]:
        """What was opened: "package" is the installed label_studio_ml, "" where names of ours stand in for it."""
        return {
            "model_class": self._class.__name__,
            "first_generation": self._first_generation,
            "package": "" if self._stands_in else self._package,
        }

    def version(self, project: str, label_config: str) -> str:
        """Build the instance, if there is none, and say its version; "" where nobody chose one."""
        return self._version_of(self._instance(project, label_config))

    def predict(
        self, project: str, label_config: str, tasks: list[dict[str, Any]], context: dict[str, Any] | None
    ) -> dict[str, Any]:
        """One prediction per task, and the version that they carry."""
        instance = self._instance(project, label_config)
        said = _call(instance.predict, (tasks,), {"context": context})
        predictions, version = _predictions(said)
        if len(predictions) != len(tasks) and not (len(tasks) == 1 and not predictions):
            raise ValueError(
                f"{self._class.__name__}.predict returned {len(predictions)} predictions for {len(tasks)} tasks"
            )
        found = [_item(prediction) for prediction in predictions] or [_item(None)]
        version = version or next((item["model_version"] for item in found if item["model_version"]), "")
        return {"items": found, "model_version": version or self._version_of(instance)}

    def fit(
        self,
        project: str,
        label_config: str,
        event: str,
        data: dict[str, Any],
        completions: list[dict[str, Any]],
        workdir: str,
    ) -> dict[str, Any]:
        """Let a fresh instance learn, then forget those that were built before: the next ones see what it left."""
        with self._building:
            learner = self._build(project, label_config)
        if self._first_generation:
            others = {"workdir": workdir, "job_id": os.path.basename(workdir), "event": event, "data": data}
            output = _call(learner.fit, (completions,), others)
        else:
            output = _call(learner.fit, (event, data), {})
        if isinstance(output, dict):
            self._ask("set", project=project, key="train_output", value=output)
        with self._building:
            for key in [key for key in self._instances if key[0] == project]:
                del self._instances[key]
        return {"model_version": self._version_of(self._instance(project, label_config))}

    # --- instances --------------------------------------------------------------------------------------

    def _instance(self, project: str, label_config: str) -> Any:
        key = (project, label_config)
        with self._building:
            if key not in self._instances:
                self._instances[key] = self._build(project, label_config)
            self._instances.move_to_end(key)
            while len(self._instances) > KEPT_INSTANCES:
                self._instances.popitem(last=False)
            return self._instances[key]

    def _build(self, project: str, label_config: str) -> Any:
        url, token = self._connection(project)
        known = {
            "project_id": project,
            "label_config": label_config or None,
            "train_output": self._ask("get", project=project, key="train_output") or {},
            "hostname": url,
            "access_token": token,
            **self._options,
        }
        accepted, takes_all = _parameters(self._class)
        instance = self._class.__new__(self._class)
        for name, value in self._options.items():
            if name not in accepted and _is_plain(self._class, name):  # it has no parameter for it
                setattr(instance, name, value)
        self._keeper.building.now = True
        try:
            instance.__init__(**{name: value for name, value in known.items() if takes_all or name in accepted})
        finally:
            self._keeper.building.now = False
        return instance

    def _connection(self, project: str) -> tuple[str, str]:
        """Address and token of the project's Label Studio, where they are known; the first that are become variables
        that nobody else set."""
        url, token = self._ask("connection", project=project)
        for names, value in ((WHERE, url), (TOKEN, token)):
            for name in names if value else ():
                os.environ.setdefault(name, value)
        return url, token

    def _version_of(self, instance: Any) -> str:
        if self._stands_in:  # what was set says it; the property would fall back on a version that nobody chose
            return str(self._keeper.get(instance.project_id, "model_version") or "")
        return _chosen(getattr(instance, "model_version", None))


# --- what the backend's folder holds --------------------------------------------------------------------


def _model_class(source: str) -> tuple[Any, dict[str, Any]]:
    """The model's class, and what its `_wsgi.py` or config.json say it is built with. Raises ImportError."""
    path, wanted = source, ""
    if not os.path.exists(source):
        path, _, wanted = source.rpartition(":")
    if not os.path.exists(path):
        raise ImportError(f"there is no {source}")
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    sys.path.insert(0, folder)
    options = _config(os.path.join(folder, "config.json"))
    if os.path.isdir(path) and not wanted and os.path.exists(os.path.join(path, "_wsgi.py")):
        model_class, given = _started_by(os.path.join(path, "_wsgi.py"))
        return model_class, {**options, **given}
    files = [path] if os.path.isfile(path) else _candidates(path)
    for file in files:
        found = _classes_in(_import(file))
        if wanted:
            found = [one for one in found if one.__name__ == wanted]
        if found:
            return _only_class(file, found), options
    looked = ", ".join(files) or f"{path}, which has no _wsgi.py and no model.py"
    raise ImportError(f"there is no subclass of LabelStudioMLBase {f'called {wanted} ' if wanted else ''}in {looked}")


def _only_class(file: str, found: list[Any]) -> Any:
    """Raises ImportError where there is not one."""
    if not found:
        raise ImportError(f"{file} does not call init_app(model_class=…), and there is no model in it")
    if len(found) > 1:
        names = ", ".join(one.__name__ for one in found)
        raise ImportError(f"{file} has several models, {names}: name one, as {file}:{found[0].__name__}")
    return found[0]


def _config(path: str) -> dict[str, Any]:
    if not os.path.exists(path):
        return {}
    with open(path, encoding="utf-8") as file:
        content = json.load(file)
    return content if isinstance(content, dict) else {}


def _candidates(folder: str) -> list[str]:
    """Files that may hold the model, likely ones first."""
    names = sorted(n for n in os.listdir(folder) if n.endswith(".py") and not n.startswith(("_", "test_", "setup")))
    return [os.path.join(folder, name) for name in sorted(names, key=lambda name: name != "model.py")]


def _import(path: str) -> Any:
    """By the module's plain name, as its neighbours in the folder import it too."""
    name = os.path.splitext(os.path.basename(path))[0]
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _classes_in(module: Any) -> list[Any]:
    """Subclasses that were written in this module; the base itself where functions are marked to stand for one."""
    base = importlib.import_module("label_studio_ml.model").LabelStudioMLBase
    found = [one for _, one in inspect.getmembers(module, inspect.isclass) if issubclass(one, base) and one is not base]
    own = [one for one in found if one.__module__ == module.__name__] or found
    leaves = [one for one in own if not any(other is not one and issubclass(other, one) for other in own)]
    return leaves or ([base] if _is_functions(importlib.import_module("label_studio_ml.model")) else [])


def _is_functions(model: Any) -> bool:
    registered = getattr(model, "_Registered", None)
    return bool(getattr(registered, "predict", None) or getattr(model, "_predict_fn", None))


def _started_by(path: str) -> tuple[Any, dict[str, Any]]:
    """What a `_wsgi.py` gives to `init_app` when a web server imports it; where it calls that only when it is run, the
    one model in it."""
    api = importlib.import_module("label_studio_ml.api")
    given: list[tuple[Any, dict[str, Any]]] = []
    original: Any = api.init_app
    stand_in = importlib.import_module("labelloop_app").App

    def init_app(model_class: Any, **options: Any) -> Any:
        given.append((model_class, options))
        return stand_in(model_class, options)

    api.init_app = init_app  # type: ignore[attr-defined]
    try:
        module = _import(path)
    finally:
        api.init_app = original  # type: ignore[attr-defined]
    if not given:
        return _only_class(path, _classes_in(module)), {}
    model_class, options = given[-1]
    return model_class, {key: value for key, value in options.items() if key not in SERVING}


# --- calling what others wrote --------------------------------------------------------------------------


def _parameters(model_class: Any) -> tuple[set[str], bool]:
    """What the constructor takes by name, and whether it takes anything: a `**kwargs` is followed into the base
    classes, where it ends up."""
    names: set[str] = set()
    for one in model_class.__mro__:
        if "__init__" not in vars(one):
            continue
        parameters = list(inspect.signature(one.__init__).parameters.values())[1:]
        names.update(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return names, False
    return names, True


def _is_plain(model_class: Any, name: str) -> bool:
    """Whether an instance may have a value under this name: the class has none, or another value, and no method or
    property."""
    found = inspect.getattr_static(model_class, name, None)
    return not callable(found) and not hasattr(found, "__get__")


def _hears_events(fit: Any) -> bool:
    """Second generation: `fit(event, data, …)`; the first one gets annotated tasks."""
    parameters = [name for name in inspect.signature(fit).parameters if name != "self"]
    return bool(parameters) and parameters[0] == "event"


def _call(method: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Call with as much of this as the method takes."""
    parameters = inspect.signature(method).parameters.values()
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    fixed = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][: len(positional)]
    if not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        positional = positional[: len(fixed)]
    taken = {p.name for p in parameters} - set(fixed)
    return method(*positional, **{k: v for k, v in named.items() if k in taken or (takes_any and k not in fixed)})


def _predictions(said: Any) -> tuple[list[Any], str]:
    """The predictions in whatever `predict` returned, and the version that all of them have in it."""
    said = _plain(said)
    if isinstance(said, dict):
        version = said.get("model_version")
        inside = said.get("predictions", said.get("results"))
        return (list(inside) if inside is not None else [said]), _chosen(version)
    return list(said or []), ""


def _plain(value: Any) -> Any:
    for method in ("model_dump", "dict"):
        if not isinstance(value, dict) and callable(getattr(value, method, None)):
            return getattr(value, method)()
    return value


def _item(prediction: Any) -> dict[str, Any]:
    prediction = _plain(prediction)
    if isinstance(prediction, (list, tuple)):  # several predictions of one task: the first one counts
        prediction = _plain(prediction[0]) if prediction else None
    prediction = prediction or {}
    if not isinstance(prediction, dict):
        raise TypeError(f"a prediction is a dictionary with a result, not {type(prediction).__name__}")
    result = prediction.get("result") or []
    result = result if isinstance(result, (list, tuple)) else [result]
    return {
        "result": [_plain(region) for region in result],
        "score": prediction.get("score"),
        "model_version": _chosen(prediction.get("model_version")),
    }


def _chosen(version: Any) -> str:
    text = str(version or "")
    return "" if text in UNSET else text
