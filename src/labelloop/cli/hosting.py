"""What `start` and `models add` share: options as tutorials write them, and a card for somebody's code."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
import typer.core

if TYPE_CHECKING:
    from labelloop.core.cards import ModelCard
    from labelloop.core.settings import Settings
    from labelloop.store.registry import ModelVersion

WITH = ("--with", "--kwargs")


class WithCommand(typer.core.TyperCommand):
    """Takes `--with a=1 b=2 c=3`, as the official command line does: every following word with a "=" belongs to it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spread(args))


NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
"""No "nan", which JSON cannot write, and no "2026_11", which is a name."""


def spread(args: Sequence[str]) -> list[str]:
    """`--with a=1 b=2` as `--with a=1 --with b=2`."""
    found: list[str] = []
    inside = first = False
    for word in args:
        if word in WITH:
            inside = first = True
            continue
        if inside and not word.startswith("-") and (first or "=" in word):
            found += [WITH[0], word]  # the first one also where it is none: the error about it says how to write it
            first = False
            continue
        inside = first = False
        found.append(word)
    return found


def parse_options(words: Sequence[str]) -> dict[str, Any]:
    """{"name": value} of words "name=value": numbers and truths become such, and a path that exists becomes absolute,
    because the model does not run in this folder. Raises ModelError."""
    from labelloop.core.errors import ModelError

    options = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise ModelError(f"{word!r} is not NAME=VALUE.", hint="Write for instance --with device=cpu threshold=0.5")
        options[name] = _value(text)
    return options


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if NUMBER.fullmatch(text):
        return float(text) if set(text.lower()) & set(".e") else int(text)
    path = Path(os.path.expanduser(text))  # noqa: PTH111 - a shell leaves "~" alone behind a "=", this a stranger's
    is_path = "/" in text or path.suffix
    return str(path.resolve()) if is_path and "://" not in text and path.exists() else text


def label_studio_of(options: Mapping[str, Any]) -> dict[str, str]:
    """What `--with LABEL_STUDIO_HOSTNAME=…` says for us too: where pictures come from is the model's and ours."""
    names = {
        "label_studio_url": ("LABEL_STUDIO_URL", "LABEL_STUDIO_HOSTNAME", "LABEL_STUDIO_HOST"),
        "label_studio_token": ("LABEL_STUDIO_API_KEY", "LABEL_STUDIO_TOKEN"),
    }
    found = {setting: [options[name] for name in known if name in options] for setting, known in names.items()}
    return {setting: str(values[0]) for setting, values in found.items() if values}


def is_code(source: str) -> bool:
    """Whether this names Python code and not a model file."""
    path = Path(source if Path(source).exists() else source.rpartition(":")[0])
    return path.is_dir() or path.suffix == ".py" or bool(re.search(r"\.py(:\w+)?$", source))


def engine_for(path: Path) -> str:
    """The engine that code is written for: the official SDK's names are in it, or it is a class of its own."""
    written_for_sdk = path.is_dir() or "label_studio_ml" in path.read_text(encoding="utf-8", errors="replace")
    return "sdk" if written_for_sdk else "own"


RUNTIME = re.compile(r"^# runtime: (\S+)$", re.MULTILINE)


def wanted_python(path: Path) -> str | None:
    """The interpreter of the runtime that a backend's requirements.txt names ("# runtime: openmmlab"); None where it
    names none. Raises RuntimeSetupError when it is not made yet."""
    from labelloop.core.settings import read_settings

    requirements = path / "requirements.txt"
    found = RUNTIME.search(requirements.read_text(encoding="utf-8")) if requirements.is_file() else None
    return None if found is None else runtime_python(read_settings().home, found[1], wanted_by=str(path))


def runtime_python(home: Path, name: str, *, wanted_by: str) -> str:
    """The interpreter of a runtime. Raises RuntimeSetupError when it is not made yet."""
    from labelloop.core.errors import RuntimeSetupError
    from labelloop.runtimes import venvs

    runtime = venvs.look(home, name)
    if runtime.state != "ready":
        raise RuntimeSetupError(
            f"{wanted_by} wants the runtime {name}, which is {runtime.state}.",
            hint=f"Make it: labelloop runtimes create {name}; or name an interpreter: --python /path/to/bin/python",
        )
    return str(runtime.python)


def hosted_card(
    source: str,
    *,
    engine: str | None,
    name: str | None,
    options: Sequence[str],
    python: str | None,
    model_dir: Path | None,
) -> ModelCard:
    """A card for the code in `source`, a folder or FILE.py[:Class]. Raises ModelError when it is not there."""
    from labelloop.core.cards import Hosted, ModelCard
    from labelloop.engines.sdk import path_of
    from labelloop.serving.models import model_name

    path = path_of(source)
    full = str(path.resolve()) + source[len(str(path)) :] if source.startswith(str(path)) else str(path.resolve())
    engine = engine or engine_for(path)
    python = python or wanted_python(path)
    host = Hosted(
        source=full.rstrip("/"),
        python=str(Path(python).absolute()) if python else "",  # not resolved: a venv's python is a link
        model_dir=str(model_dir.resolve()) if model_dir else "",
        options=parse_options(options),
    )
    return ModelCard(name=name or model_name(path.resolve().stem), engine=engine, host=host)


def add_openmmlab(
    settings: Settings,
    config: Path | None,
    checkpoint: Path | None,
    *,
    name: str | None,
    runtime: str,
    python: str | None,
    trust: bool,
    labels: Sequence[str],
) -> ModelVersion:
    """Pack a config and its checkpoint in the interpreter that can, and add that. Raises ModelError."""
    from tempfile import TemporaryDirectory

    from labelloop.core.cards import Hosted, ModelCard
    from labelloop.core.errors import ModelError
    from labelloop.engines import mmdet
    from labelloop.serving.models import add_model, model_name, open_registry

    if config is None or checkpoint is None:
        raise ModelError("A model of OpenMMLab is a config and a checkpoint.", hint=mmdet.HOW)
    interpreter = python or runtime_python(settings.home, runtime, wanted_by=config.name)
    host = Hosted(source=config.name, python=str(Path(interpreter).absolute()))
    card = ModelCard(name=name or model_name(config.stem), engine="mmdet", host=host)
    with TemporaryDirectory(prefix="labelloop-add-") as folder:
        packed = Path(folder) / "model.zip"
        mmdet.pack(config, checkpoint, packed, python=host.python, trust=trust, labels=labels)
        return add_model(open_registry(settings), packed, card, settings)
