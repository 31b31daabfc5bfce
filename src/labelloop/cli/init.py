"""`labelloop init`: a folder for a new backend."""

from __future__ import annotations

from pathlib import Path

import typer

MODEL = '''\
from label_studio_ml.model import LabelStudioMLBase
from label_studio_ml.response import ModelResponse


class NewModel(LabelStudioMLBase):
    def setup(self):
        """Called once for each project and label config: load the weights here."""
        self.set("model_version", "new-model-1")

    def predict(self, tasks, context=None, **kwargs):
        """One prediction for each task, as Label Studio stores them."""
        predictions = []
        for task in tasks:
            # from_name, to_name, value = self.get_first_tag_occurence("RectangleLabels", "Image")
            # path = self.get_local_path(task["data"][value], task_id=task["id"])
            predictions.append({"result": [], "score": 0.0})
        return ModelResponse(predictions=predictions, model_version=self.get("model_version"))

    def fit(self, event, data, **kwargs):
        """Called for every annotation and for Start Training, in the background."""
        if event == "START_TRAINING":
            self.bump_model_version()
'''

WSGI = """\
from label_studio_ml.api import init_app
from {module} import {model}

app = init_app(model_class={model})
"""

EXAMPLES = {"mmdetection": "openmmlab", "mmocr": "openmmlab"}
"""Backends that come along, each with the runtime that it needs."""


def init(
    name: str = typer.Argument(help="Folder to make."),
    script: str = typer.Option(
        None, "--script", "--from", help=f"FILE.py[:Class] to begin with, or a name: {', '.join(EXAMPLES)}."
    ),
    force: bool = typer.Option(False, "--force", help="Write over what is there."),
    root_dir: Path = typer.Option(None, help="Folder to make it in (default: the working directory)."),
) -> None:
    """Make a folder for a backend: its model.py, _wsgi.py and requirements.txt."""
    from labelloop.core.errors import ModelError

    folder = (root_dir or Path()) / name
    if folder.exists() and not force:
        raise ModelError(f"There is {folder} already.", hint="Choose another name, or pass --force.")
    example = _example(script) if script else None
    model, content = _beginning(example or script)
    imported = _requirements(example, script)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.py").write_text(content, encoding="utf-8")
    (folder / "_wsgi.py").write_text(WSGI.format(module="model", model=model))
    (folder / "requirements.txt").write_text(imported, encoding="utf-8")
    typer.echo(f"{folder} is made. Start it: labelloop start {folder}")


def _example(script: str) -> str | None:
    """The name of a backend that comes along, also where it is named as the official tutorials do: by its path in their
    package."""
    parts = Path(script.partition(":")[0]).parts
    if len(parts) > 1 and not ("examples" in parts and not Path(*parts).exists()):
        return None
    return next((name for name in EXAMPLES if name in parts), None)


def _requirements(example: str | None, script: str | None) -> str:
    """What stands beside the script, and the runtime of an example."""
    text = "# what model.py imports; label-studio-ml may be left out\n"
    if example:
        return f"{text}# runtime: {EXAMPLES[example]}\n"
    path = Path(script.partition(":")[0]) if script else Path("/")
    beside = (path if path.is_dir() else path.parent) / "requirements.txt"
    return text + (beside.read_text(encoding="utf-8") if script and beside.is_file() else "")


def _beginning(script: str | None) -> tuple[str, str]:
    """The class and the text of the new model.py."""
    import ast

    from labelloop.core.errors import ModelError
    from labelloop.engines.isolated import FAR_SIDE
    from labelloop.engines.sdk import path_of

    if script is None:
        return "NewModel", MODEL
    if script in EXAMPLES:
        path, wanted = FAR_SIDE / "examples" / f"{script}.py", ""
    else:
        try:
            path = path_of(script)
        except ModelError as error:
            known = ", ".join(EXAMPLES)
            raise ModelError(error.message, hint=f"Give FILE.py[:Class], or the name of one: {known}.") from error
        wanted = script[len(str(path)) + 1 :]
        path = path / "model.py" if path.is_dir() else path
    try:
        text = path.read_text(encoding="utf-8")
        classes = [node.name for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]
    except (OSError, SyntaxError) as error:
        raise ModelError(f"{path} cannot be read: {error}.") from error
    found = [one for one in classes if one == wanted] if wanted else classes[-1:]
    if not found:
        raise ModelError(f"{path} has no class {wanted}.", hint=f"It has: {', '.join(classes) or 'none'}.")
    return found[0], text
