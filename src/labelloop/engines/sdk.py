"""Backends written for the official SDK, unchanged, each in a process of its own."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import msgspec

from labelloop.core.cards import Hosted, ModelCard
from labelloop.core.errors import LabelloopError, ModelError
from labelloop.core.regions import Raw, Region, Size
from labelloop.engines.base import Desk, EngineOptions, Question, Said
from labelloop.engines.isolated import Isolated, Program, TooSlow

MAX_BATCH = 32
"""Tasks in one call of `predict`: enough for a model that batches, few enough for an error to cost little."""
OPEN_S = 600.0
FIT_S = 7 * 86_400.0
FITS = "labelloop.fits"
"""How often a project's model has learned, under this key: other processes see that theirs is out of date."""
VERSION = "model_version"


class SdkEngine:
    """One backend. Tasks go in as Label Studio sends them; what comes out is written down as the model says it."""

    needs_file = False
    wants: Literal["task"] = "task"
    input_size: Size | None = None
    classes: tuple[str, ...] = ()
    max_batch = MAX_BATCH
    parallel = 1

    def __init__(self, path: Path | None, card: ModelCard, options: EngineOptions) -> None:
        del path
        host, desk = card.host, options.desk
        if host is None or desk is None:
            raise ModelError(f"The model {card.name} names no code.", hint="Add it: labelloop models add DIR")
        self._name, self._timeout_s, self._desk = card.name, host.timeout_s, desk
        self._heard: dict[str, int] = {}
        folder = desk.folder(card.name)
        try:
            Path(host.model_dir or folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            hint = "Give another folder: --model-dir."
            raise ModelError(f"{host.model_dir} cannot be made: {error.strerror}.", hint=hint) from error
        opening = {"source": host.source, "options": dict(host.options), "model_dir": host.model_dir or str(folder)}
        self._host = Isolated(
            Program(card.name, "sdk.py", host.python, _folder_of(host), opening=("open", opening), opening_s=OPEN_S),
            log_file=folder / "log.txt",
            answers=_answers(card.name, desk),
        )
        try:
            self.about: Mapping[str, Any] = self._host.call("about", timeout_s=OPEN_S)
        except LabelloopError:
            self._host.close()
            raise

    @staticmethod
    def describe(path: Path | None, card: ModelCard) -> ModelCard:
        """The card with a digest of the backend's Python files: another text is another version."""
        del path
        if card.host is None:
            raise ModelError("The engine sdk hosts a backend.", hint="Give its folder: labelloop models add DIR")
        _require_class(card.host.source)
        host = msgspec.structs.replace(card.host, code=digest_of_code(card.host.source))
        return msgspec.structs.replace(card, task="raw", host=host)

    @property
    def first_generation(self) -> bool:
        """Whether `fit` wants annotated tasks, as it did before events."""
        return bool(self.about["first_generation"])

    def prepare(self, question: Question) -> Question:
        return question

    def predict(self, batch: Sequence[Question]) -> list[Said | Exception]:
        """Questions of one project and label config that follow each other are one call of the model's `predict`."""
        said: list[Said | Exception] = []
        for _, questions in groupby(batch, key=_shared):
            said += self._ask(list(questions))
        return said

    def introduce(self, project: str, label_config: str) -> None:
        """Build the project's instance, if there is none, and note the version that it says."""
        self._catch_up(project)
        version = self._host.call("version", project=project, label_config=label_config, timeout_s=OPEN_S)
        self._note(project, version)

    def fit(
        self,
        project: str,
        label_config: str,
        *,
        event: str,
        data: Mapping[str, Any],
        completions: Sequence[Mapping[str, Any]],
        workdir: Path,
    ) -> str:
        """Let it learn, beside predictions; the version afterwards. Raises ModelError, and Died."""
        workdir.mkdir(parents=True, exist_ok=True)
        learned = self._host.call(
            "fit",
            lane="fit",
            timeout_s=FIT_S,
            project=project,
            label_config=label_config,
            event=event,
            data=data,
            completions=completions,
            workdir=str(workdir),
        )
        count = (self._desk.get(self._name, project, FITS) or 0) + 1
        self._desk.set(self._name, project, FITS, count)
        self._heard[project] = count
        version = learned["model_version"]
        if self.first_generation and not version:  # it learned, and only we can say so
            version = f"{self._name}.{count}"
        self._note(project, version)
        return version or self._version(project)

    def stop_fit(self) -> None:
        """End the process: Python cannot interrupt what it is at. It comes back with the next call."""
        self._host.restart()

    def close(self) -> None:
        self._host.close()

    def _ask(self, questions: list[Question]) -> list[Said | Exception]:
        first = questions[0]
        try:
            self._catch_up(first.project)
            answer = self._host.call(
                "predict",
                timeout_s=self._timeout_s,
                project=first.project,
                label_config=first.label_config,
                tasks=[question.task for question in questions],
                context=first.context,
            )
        except LabelloopError as error:
            if len(questions) == 1 or isinstance(error, TooSlow):
                return [error] * len(questions)
            return [self._ask([question])[0] for question in questions]  # one bad item never fails its neighbours
        version = self._note(first.project, answer["model_version"])
        items = answer["items"]
        return [_said(item, version) for item in items]

    def _note(self, project: str, version: str) -> str:
        """Keep a version that differs from the one before, and return what holds now."""
        known = self._version(project)
        if version and version != known:
            self._desk.set(self._name, project, VERSION, version)
        return version or known

    def _version(self, project: str) -> str:
        return str(self._desk.get(self._name, project, VERSION) or "")

    def _catch_up(self, project: str) -> None:
        """Begin anew where another process let the model learn meanwhile: what it read at its start is old."""
        count = self._desk.get(self._name, project, FITS) or 0
        if count > self._heard.setdefault(project, count):
            self._heard[project] = count
            self._host.restart()


def _require_class(source: str) -> None:
    """Raises ModelError where "FILE.py:Class" names one that is not in the file. More is not looked at before it is
    opened, in its own interpreter, whose Python may be newer than ours."""
    path = path_of(source)
    name = source[len(str(path)) + 1 :]
    if not name or not path.is_file():
        return
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    found = [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    imported = [a.asname or a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names]
    if name not in found + imported and "*" not in imported:
        raise ModelError(f"{path} has no class {name}.", hint=f"It has: {', '.join(found) or 'none'}.")


def digest_of_code(source: str) -> str:
    """Over the Python files of a folder, or one file. Raises ModelError when there is nothing."""
    path = path_of(source)
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(path.parent)}\0".encode(errors="surrogateescape"))
        digest.update(file.read_bytes())
    if not files:
        raise ModelError(f"There is no Python file in {path}.")
    return digest.hexdigest()[:16]


def path_of(source: str) -> Path:
    """The folder or file of "PATH" or "PATH:Class". Raises ModelError when it is not there."""
    for text in (source, source.rpartition(":")[0]):
        if text and Path(text).exists():
            return Path(text)
    raise ModelError(
        f"There is no file {source}.", hint="Give an ONNX file, the folder of a backend, or FILE.py:Class."
    )


def _folder_of(host: Hosted) -> Path:
    path = path_of(host.source)
    return path if path.is_dir() else path.parent


def _shared(question: Question) -> tuple[str, str, bytes]:
    return question.project, question.label_config, msgspec.json.encode(question.context)


def _said(item: Mapping[str, Any], version: str) -> Said:
    return Said(
        tuple(Region(Raw(result), score=_number(result.get("score"))) for result in item["result"]),
        _number(item["score"]),
        version,
    )


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _answers(model: str, desk: Desk) -> dict[str, Any]:
    return {
        "get": lambda project, key: desk.get(model, project, key),
        "set": lambda project, key, value: desk.set(model, project, key, value),
        "connection": lambda project: desk.connection(project),
        "annotated": lambda project: desk.annotated(project),
        "local_path": lambda uri, project, task: str(
            desk.local_path(model, project, uri, task if isinstance(task, int) else None)
        ),
    }
