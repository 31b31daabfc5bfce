"""Backends of the official SDK as engines: what they are given, what comes back, and in which interpreter."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from labelloop.core.cards import Hosted, ModelCard
from labelloop.core.errors import ModelError
from labelloop.core.regions import Raw
from labelloop.engines.base import EngineOptions, Question, Said
from labelloop.engines.sdk import SdkEngine
from reference.interpreters import interpreter

CONFIG = '<View><Text name="t" value="$text"/><Choices name="c" toName="t"><Choice value="A"/><Choice value="B" alias="b"/></Choices></View>'

SECOND = """
from label_studio_ml.model import LabelStudioMLBase
from label_studio_ml.response import ModelResponse

class Second(LabelStudioMLBase):
    def setup(self):
        self.set("model_version", "0.1.0")
    def predict(self, tasks, context=None, **kwargs):
        name, shown, field = self.get_first_tag_occurence("Choices", "Text")
        if any(task["data"][field] == "bad" for task in tasks):
            raise ValueError("a bad text")
        label = self.label_interface.get_control(name).labels[-1]
        result = {"from_name": name, "to_name": shown, "type": "choices", "value": {"choices": [label]}}
        result["meta"] = {"asked": [len(tasks), getattr(self, "threshold", None), context]}
        return ModelResponse(predictions=[{"result": [result], "score": 0.25} for _ in tasks], model_version=self.get("model_version"))
    def fit(self, event, data, **kwargs):
        self.set("events", (self.get("events") or []) + [event])
        self.bump_model_version()
"""

FIRST = """
from label_studio_ml.model import LabelStudioMLBase
from label_studio_ml.utils import get_single_tag_keys

class First(LabelStudioMLBase):
    def __init__(self, threshold=0.5, **kwargs):
        super().__init__(**kwargs)
        self.name, self.shown, self.field, self.labels = get_single_tag_keys(self.parsed_label_config, "Choices", "Text")
        self.threshold = threshold
    def predict(self, tasks, **kwargs):
        label = self.train_output.get("label", self.labels[0])
        result = {"from_name": self.name, "to_name": self.shown, "type": "choices", "value": {"choices": [label]}}
        return [{"result": [result], "score": self.threshold} for _ in tasks]
    def fit(self, completions, workdir=None, **kwargs):
        return {"label": completions[0]["data"]["label"]}
"""

FUNCTIONS = """
from label_studio_ml.model import predict_fn, update_fn

@predict_fn
def predict(tasks, context, helper, **kwargs):
    return [{"result": [], "score": 0.75} for _ in tasks]

@update_fn
def update(event, data, helper, **kwargs):
    helper.set("model_version", "updated")
"""

WSGI = """
import os
from label_studio_ml.api import init_app
from second import Second
if __name__ == "__main__":
    raise SystemExit("not here")
else:
    app = init_app(model_class=Second, model_dir=os.environ["MODEL_DIR"], threshold=0.125)
"""


WSGI_WITH_PAGES = """
from label_studio_ml.api import init_app
from second import Second
app = init_app(Second)
app.config["JSON_SORT_KEYS"] = False

@app.route("/versions", methods=["GET"])
def versions():
    return "1"
"""

WSGI_THAT_IS_RUN = """
import argparse
from label_studio_ml.api import init_app
from second import Second

def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", default=9090)
    init_app(model_class=Second).run(port=parser.parse_args().port)

if __name__ == "__main__":
    main()
"""

SEVERAL = """
import os
from label_studio_ml.model import LabelStudioMLBase
from label_studio_ml.response import ModelResponse, PredictionValue

HOST, KEY = os.getenv("LABEL_STUDIO_HOSTNAME"), os.getenv("LABEL_STUDIO_API_KEY")

class Several(LabelStudioMLBase):
    threshold = 0.5
    def predict(self, tasks, context=None, **kwargs):
        name, shown, _ = self.label_interface.get_first_tag_occurence("Choices", "Text")
        result = {"from_name": name, "to_name": shown, "type": "choices", "value": {"choices": ["A"]}}
        result["meta"] = {"told": [HOST, KEY, self.threshold]}
        return ModelResponse(predictions=[[PredictionValue([result], 0.5), PredictionValue([])] for _ in tasks])
"""


INSTALLED = """
import json

class InFile(dict):
    def __missing__(self, key):
        return "from before" if key[1] == "older" else None
    def __setitem__(self, key, value):
        raise ValueError("only texts, in a file of this folder")

CACHE = InFile()

class LabelStudioMLBase:
    def __init__(self, project_id=None, label_config=None):
        self.project_id = project_id or ""
        self.set("label_config", label_config)
        if not self.get("model_version"):
            self.set("model_version", "0.0.1")
        self.setup()
    def setup(self):
        pass
    def get(self, key):
        return CACHE[self.project_id, key]
    def set(self, key, value):
        CACHE[self.project_id, key] = value
    def has(self, key):
        return (self.project_id, key) in CACHE
    @property
    def extra_params(self):
        return json.loads(self.get("extra_params") or "{}")
    @property
    def model_version(self):
        return self.get("model_version")
"""
"""How the official package keeps values in its second generation."""

KEEPING = """
from label_studio_ml.api import init_app
from label_studio_ml.model import LabelStudioMLBase

class Keeping(LabelStudioMLBase):
    def setup(self):
        self.set("model_version", "begun")
    def predict(self, tasks, context=None, **kwargs):
        told = [self.get("heard"), self.has("never"), self.get("older"), self.extra_params.get("a")]
        config = self.get("label_config")
        return [{"result": [{"meta": {"told": told, "config": config}}]} for _ in tasks]
    def fit(self, event, data, **kwargs):
        self.set("heard", [event])
        self.set("model_version", "learned")

app = init_app(model_class=Keeping)

@app.route("/pages")
def pages(): ...
"""


class MemoryDesk:
    """A Desk without a house."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.values: dict[tuple[str, str, str], Any] = {}
        self.studio = ("", "")

    def folder(self, model: str) -> Path:
        return self.home

    def get(self, model: str, project: str, key: str) -> Any:
        return self.values.get((model, project, key))

    def set(self, model: str, project: str, key: str, value: Any) -> None:
        self.values[model, project, key] = value

    def connection(self, project: str) -> tuple[str, str]:
        return self.studio

    def local_path(self, model: str, project: str, uri: str, task_id: int | None) -> Path:
        raise ModelError("there are no media here")

    def annotated(self, project: str) -> list[dict[str, Any]]:
        return []


Load = Callable[..., SdkEngine]


@pytest.fixture
def desk(tmp_path: Path) -> MemoryDesk:
    return MemoryDesk(tmp_path / "desk")


@pytest.fixture
def load(tmp_path: Path, desk: MemoryDesk) -> Iterator[Load]:
    engines: list[SdkEngine] = []

    def begin(text: str, *, file: str = "model.py", source: str = "", python: str = "", **options: Any) -> SdkEngine:
        (tmp_path / file).write_text(text)
        host = Hosted(source=source or str(tmp_path / file), python=python, options=options)
        engines.append(SdkEngine(None, ModelCard(name="mine", engine="sdk", host=host), EngineOptions(desk=desk)))
        return engines[-1]

    yield begin
    for engine in engines:
        engine.close()


def ask(engine: SdkEngine, *texts: str, project: str = "1", context: Any = None) -> list[Said | Exception]:
    questions = [Question({"id": n, "data": {"text": text}}, project, CONFIG, context) for n, text in enumerate(texts)]
    return engine.predict(questions)


def result_of(said: Said | Exception) -> dict[str, Any]:
    assert isinstance(said, Said), said
    (region,) = said.regions
    assert isinstance(region.shape, Raw)
    return region.shape.result


@pytest.mark.parametrize("version", ["3.8", "3.11", "3.13"])
def test_the_second_generation(load: Load, version: str) -> None:
    engine = load(SECOND, python=interpreter(version), threshold=0.5)
    assert not engine.first_generation
    first, second = ask(engine, "x", "y")
    assert result_of(first)["value"] == {"choices": ["b"]}
    assert result_of(second)["meta"] == {
        "asked": [2, 0.5, None]
    }  # one call; what it has no parameter for it finds on itself
    assert isinstance(first, Said)
    assert (first.score, first.version) == (0.25, "0.1.0")
    (prompted,) = ask(engine, "x", context={"result": [1]})
    assert result_of(prompted)["meta"]["asked"][2] == {"result": [1]}


@pytest.mark.parametrize("version", ["3.8", "3.11"])
def test_the_first_generation(load: Load, version: str, tmp_path: Path) -> None:
    engine = load(FIRST, python=interpreter(version), threshold=0.0625)
    assert engine.first_generation
    (said,) = ask(engine, "x")
    assert result_of(said)["value"] == {"choices": ["A"]}
    assert isinstance(said, Said)
    assert (said.score, said.version) == (0.0625, "")  # nobody chose a version
    learned = engine.fit(
        "1", CONFIG, event="START_TRAINING", data={}, completions=[{"data": {"label": "b"}}], workdir=tmp_path / "w"
    )
    assert learned == "mine.1"
    (said,) = ask(engine, "x")
    assert result_of(said)["value"] == {"choices": ["b"]}
    (other,) = ask(engine, "x", project="2")  # another project's model learned nothing
    assert result_of(other)["value"] == {"choices": ["A"]}


def test_what_fit_left_is_there_after_a_restart(load: Load, desk: MemoryDesk, tmp_path: Path) -> None:
    engine = load(SECOND)
    for event in ("ANNOTATION_CREATED", "START_TRAINING"):
        version = engine.fit("1", CONFIG, event=event, data={}, completions=(), workdir=tmp_path / "w")
    assert version == "0.3.0"
    assert desk.get("mine", "1", "events") == ["ANNOTATION_CREATED", "START_TRAINING"]
    engine.stop_fit()
    (said,) = ask(engine, "x")
    assert isinstance(said, Said)
    assert said.version == "0.3.0"


def test_a_model_that_learned_in_another_process_is_built_anew(load: Load, desk: MemoryDesk, tmp_path: Path) -> None:
    here, there = load(FIRST), load(FIRST)
    assert result_of(ask(here, "x")[0])["value"] == {"choices": ["A"]}
    there.fit(
        "1", CONFIG, event="START_TRAINING", data={}, completions=[{"data": {"label": "b"}}], workdir=tmp_path / "w"
    )
    assert result_of(ask(here, "x")[0])["value"] == {"choices": ["b"]}


def test_one_bad_task_fails_alone(load: Load) -> None:
    said = ask(load(SECOND), "x", "bad", "y")
    assert [isinstance(one, Said) for one in said] == [True, False, True]
    assert "ValueError: a bad text" in str(said[1])


def test_functions_that_stand_for_a_class(load: Load, desk: MemoryDesk, tmp_path: Path) -> None:
    engine = load(FUNCTIONS)
    (said,) = ask(engine, "x")
    assert isinstance(said, Said)
    assert (said.regions, said.score) == ((), 0.75)
    assert engine.fit("1", CONFIG, event="START_TRAINING", data={}, completions=(), workdir=tmp_path / "w") == "updated"


def test_a_wsgi_file_names_the_class_and_what_it_is_built_with(load: Load, tmp_path: Path) -> None:
    (tmp_path / "backend").mkdir()
    (tmp_path / "backend" / "second.py").write_text(SECOND)
    engine = load(WSGI, file="backend/_wsgi.py", source=str(tmp_path / "backend"))
    assert result_of(ask(engine, "x")[0])["meta"]["asked"][1] == 0.125


@pytest.mark.parametrize("text", [WSGI_WITH_PAGES, WSGI_THAT_IS_RUN], ids=["pages of its own", "only when it is run"])
def test_other_wsgi_files_start_as_they_are(load: Load, tmp_path: Path, text: str) -> None:
    (tmp_path / "backend").mkdir()
    (tmp_path / "backend" / "second.py").write_text(SECOND)
    engine = load(text, file="backend/_wsgi.py", source=str(tmp_path / "backend"))
    assert result_of(ask(engine, "x")[0])["value"] == {"choices": ["b"]}


def test_what_a_model_reads_while_it_is_imported_is_there(load: Load, desk: MemoryDesk) -> None:
    """And an option wins over the value of the class; of several predictions of a task the first one counts."""
    desk.studio = ("http://studio:8080", "a token")
    engine = load(SEVERAL, threshold=0.25)
    assert result_of(ask(engine, "x", "y")[1])["meta"] == {"told": ["http://studio:8080", "a token", 0.25]}
    other = load(SEVERAL, LABEL_STUDIO_HOSTNAME="http://other:8080")
    assert result_of(ask(other, "x")[0])["meta"] == {"told": ["http://other:8080", "a token", 0.5]}


def test_an_installed_package_keeps_its_values_with_us(load: Load, desk: MemoryDesk, tmp_path: Path) -> None:
    """So `setup` does not take back the version that `fit` gave, and what is in the package's file is read still."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "env")], check=True)
    (site,) = (tmp_path / "env").glob("lib/python3*/site-packages")
    for file, text in (
        ("__init__", "__version__ = '2.0'"),
        ("model", INSTALLED),
        ("api", "def init_app(model_class): 1 / 0"),
    ):
        (site / "label_studio_ml").mkdir(exist_ok=True)
        (site / "label_studio_ml" / f"{file}.py").write_text(text)
    (tmp_path / "backend").mkdir()
    desk.set("mine", "1", "extra_params", {"a": 1})
    options = {"source": str(tmp_path / "backend"), "python": str(tmp_path / "env" / "bin" / "python")}
    engine = load(KEEPING, file="backend/_wsgi.py", **options)
    assert engine.about["package"] == "2.0"
    engine.introduce("1", CONFIG)
    assert desk.get("mine", "1", "model_version") == "begun"
    version = engine.fit("1", CONFIG, event="START_TRAINING", data={}, completions=(), workdir=tmp_path / "w")
    assert version == "learned"
    (said,) = ask(engine, "x")
    assert isinstance(said, Said)
    assert said.version == "learned"
    assert result_of(said)["meta"] == {"told": [["START_TRAINING"], False, "from before", 1], "config": CONFIG}
    assert desk.get("mine", "1", "label_config") is None, "every instance knows it"


@pytest.mark.parametrize(
    ("text", "source", "says"),
    [
        ("x = 1", "", "no subclass of LabelStudioMLBase"),
        (SECOND + FIRST, "", "several models, First, Second"),
        (SECOND, ":Third", "called Third"),
        ("import no_such_module", "", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("from label_studio_sdk import Client", "", "pip install label-studio-sdk"),
    ],
    ids=["no class", "two classes", "another class", "a missing package", "a client without its package"],
)
def test_a_backend_that_cannot_be_opened_says_why(
    load: Load, tmp_path: Path, text: str, source: str, says: str
) -> None:
    with pytest.raises(ModelError, match=says):
        load(text, source=f"{tmp_path}/model.py{source}")


def test_another_text_is_another_version(tmp_path: Path) -> None:
    def code() -> str:
        described = SdkEngine.describe(None, ModelCard(name="m", engine="sdk", host=Hosted(source=str(tmp_path))))
        assert described.host is not None
        return described.host.code

    (tmp_path / "model.py").write_text(SECOND)
    before = code()
    assert code() == before
    (tmp_path / "model.py").write_text(SECOND + "\n")
    assert code() != before
