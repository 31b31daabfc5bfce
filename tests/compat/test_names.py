"""What labelloop answers to models that import the official packages where these are not installed."""

from __future__ import annotations

import importlib
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import labelloop.compat

NAMES = Path(labelloop.compat.__file__).parent / "names"
OWNERS = ("label_studio", "labelloop_label_config", "labelloop_brush")

CONFIG = """<View><Image name="image" value="$image"/><Text name="text" value="$text"/>
<RectangleLabels name="box" toName="image"><Label value="Car" predicted_values="car, truck"/><Label value="Airplane"/></RectangleLabels>
<Choices name="mood" toName="text"><Choice value="Positive"/><Choice value="Negative"/><Choice value="Neutral"/></Choices></View>"""


def forget() -> None:
    for name in [name for name in sys.modules if name.startswith(OWNERS)]:
        del sys.modules[name]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Imports a module as a hosted model would."""
    forget()
    monkeypatch.syspath_prepend(str(NAMES))
    yield importlib.import_module
    forget()


@pytest.fixture
def model(names: Callable[[str], Any]) -> Any:
    return names("label_studio_ml.model").LabelStudioMLBase("1", CONFIG)


SURFACE = {
    "label_studio_ml.api": ("init_app",),
    "label_studio_ml.model": ("LabelStudioMLBase", "ModelResponse", "predict_fn", "update_fn"),
    "label_studio_ml.response": ("ModelResponse", "PredictionValue"),
    "label_studio_ml.utils": (
        "DATA_UNDEFINED_NAME", "InMemoryLRUDictCache", "get_choice", "get_env", "get_first_tag_keys", "get_image_local_path",
        "get_image_size", "get_local_path", "get_single_tag_keys", "is_preload_needed", "is_skipped", "is_valid_url",
        "match_labels", "parse_config",
    ),
    "label_studio_sdk.objects": ("PredictionValue",),
    "label_studio_sdk.label_interface": ("LabelInterface",),
    "label_studio_sdk.label_interface.interface": ("LabelInterface",),
    "label_studio_sdk.label_interface.objects": ("PredictionValue",),
    "label_studio_sdk.label_interface.control_tags": ("ControlTag", "ObjectTag", "ChoicesTag", "RectangleLabelsTag"),
    "label_studio_sdk.label_interface.object_tags": ("ObjectTag", "ImageTag", "ParagraphsTag"),
    "label_studio_sdk.converter.brush": ("decode_rle", "encode_rle", "mask2rle"),
    "label_studio_converter.brush": ("decode_rle", "encode_rle", "mask2rle"),
    "label_studio_sdk._extensions.label_studio_tools.core.label_config": ("parse_config",),
    "label_studio_sdk._extensions.label_studio_tools.core.utils.io": ("get_data_dir", "get_local_path"),
    "label_studio_sdk._extensions.label_studio_tools.core.utils.params": ("get_bool_env", "get_env"),
    "label_studio_tools.core.label_config": ("parse_config",),
    "label_studio_tools.core.utils.io": ("get_data_dir", "get_local_path"),
    "label_studio_tools.core.utils.params": ("get_bool_env", "get_env"),
}  # fmt: skip
"""What models in public repositories import."""

MEMBERS = (
    "setup", "predict", "fit", "get", "set", "has", "label_config", "parsed_label_config", "label_interface",
    "extra_params", "model_version", "bump_model_version", "get_first_tag_occurence", "build_label_map", "get_local_path",
    "preload_task_data", "get_label_studio_access_token", "process_event", "train_output", "hostname", "access_token",
)  # fmt: skip


@pytest.mark.parametrize("module", SURFACE)
def test_what_models_import_is_there(names: Callable[[str], Any], module: str) -> None:
    assert [name for name in SURFACE[module] if not hasattr(names(module), name)] == []


def test_the_base_class_has_what_models_use(model: Any) -> None:
    assert [name for name in MEMBERS if not hasattr(model, name)] == []


def test_each_line_of_an_answer_is_taken_for_the_label_that_is_most_like_it(names: Callable[[str], Any]) -> None:
    match = names("label_studio_ml.utils").match_labels
    assert match("positive.\nnegativ", ["Positive", "Negative", "Neutral"]) == ["Positive", "Negative"]
    assert match("", ["Positive"]) == []


def test_the_first_control_of_a_kind_in_a_parsed_config(names: Callable[[str], Any], model: Any) -> None:
    first = names("label_studio_ml.utils").get_first_tag_keys
    name, control = first(model.parsed_label_config, "Choices", "Text")
    assert (name, control["labels"]) == ("mood", ["Positive", "Negative", "Neutral"])
    assert first(model.parsed_label_config, "Choices", "Image") == (None, None)


@pytest.mark.parametrize(
    ("text", "needed"),
    [
        ("https://host/a.txt", True),
        ("/data/upload/1/a.txt", True),
        ("/data/local-files/?d=a.txt", True),
        ("upload/1/a.txt", True),
        ("s3://bucket/a.txt", True),
        (str(NAMES), True),
        ("label_studio_ml", False),
        ("this is text", False),
        ("http://[", False),
    ],
    ids=["address", "upload", "local", "an older upload", "cloud", "a path", "no path", "text", "no address"],
)
def test_what_is_a_reference(names: Callable[[str], Any], text: str, needed: bool) -> None:
    assert names("label_studio_ml.utils").is_preload_needed(text) is needed


def test_preloading_replaces_references_alone(model: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("what is in it")
    path = str(tmp_path / "a.txt")
    task = {"id": 1, "data": {"url": path, "in": [path, "plain"], "number": 1, "none": None, "flag": False}}
    loaded = model.preload_task_data(task)
    assert loaded == {
        "url": "what is in it", "in": ["what is in it", "plain"], "number": 1, "none": None, "flag": False,
    }  # fmt: skip
    assert model.preload_task_data(task, {"url": path}, read_file=False) == {"url": path}
    assert task["data"]["url"] == path


def test_a_response_gives_its_version_to_predictions_that_have_none(names: Callable[[str], Any]) -> None:
    response = names("label_studio_ml.response")
    value = response.PredictionValue
    several = [[value(result=[{}]), {"result": [], "model_version": "its own"}], value(score=0.5)]
    said = response.ModelResponse(predictions=several)
    assert not said.has_model_version()
    said.set_version(2)
    assert said.has_model_version()
    (first, second), third = said.model_dump()["predictions"]
    assert [one["model_version"] for one in (first, second, third)] == ["2", "its own", "2"]


def test_predicted_values_and_names_match_classes(model: Any) -> None:
    classes = ["car", "truck", "airplane", "bus"]
    assert model.build_label_map("box", classes) == {"car": "Car", "truck": "Car", "airplane": "Airplane"}


def test_tags_are_of_their_kinds(names: Callable[[str], Any], model: Any) -> None:
    controls, objects = (names(f"label_studio_sdk.label_interface.{one}_tags") for one in ("control", "object"))
    box, image = model.label_interface.get_control("box"), model.label_interface.get_object("image")
    assert isinstance(box, controls.ControlTag)
    assert isinstance(box, controls.RectangleLabelsTag)
    assert not isinstance(box, controls.ChoicesTag)
    assert isinstance(image, objects.ImageTag)
    assert not isinstance(box, objects.ObjectTag)
    with pytest.raises(AttributeError):
        objects.generate  # noqa: B018


def test_an_installed_sdk_says_what_a_label_config_is(
    names: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "label_studio_sdk").mkdir()
    (tmp_path / "label_studio_sdk" / "__init__.py").write_text("")
    (tmp_path / "label_studio_sdk" / "label_interface.py").write_text(
        "class LabelInterface:\n    def __init__(self, config):\n        self.theirs = config\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    base = names("label_studio_ml.model").LabelStudioMLBase
    assert base("1", CONFIG).label_interface.theirs == CONFIG
    (tmp_path / "label_studio_sdk" / "label_interface.py").write_text("# of before 1.0\n")
    forget()
    base = names("label_studio_ml.model").LabelStudioMLBase
    assert base("1", CONFIG).label_interface.get_control("mood").labels == ["Positive", "Negative", "Neutral"]


def test_pages_of_a_backends_own_do_not_stop_its_wsgi_file(names: Callable[[str], Any]) -> None:
    app = names("label_studio_ml.api").init_app(object)

    @app.route("/versions", methods=["GET"])
    def versions() -> str:
        return "served"

    @app.before_request
    def before() -> None: ...

    app.config["TESTING"] = True
    assert versions() == "served"
    assert before() is None
    with pytest.raises(SystemExit, match="labelloop start"):
        app.run(host="0.0.0.0", port=9090)


def turned(data: bytes, orientation: int) -> bytes:
    """A JPEG that says in EXIF how it is to be turned."""
    tiff = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    note = b"Exif\0\0" + tiff
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(note) + 2) + note + data[2:]


@pytest.mark.parametrize(
    ("kind", "orientation", "size"),
    [(".jpg", 0, (32, 20)), (".jpg", 6, (20, 32)), (".jpg", 3, (32, 20)), (".png", 0, (32, 20)), (".bmp", 0, (32, 20))],
    ids=["JPEG", "on its side", "on its head", "PNG", "BMP"],
)
def test_the_size_of_a_picture_is_as_it_is_shown(
    names: Callable[[str], Any], tmp_path: Path, kind: str, orientation: int, size: tuple[int, int]
) -> None:
    data = cv2.imencode(kind, np.zeros((20, 32, 3), np.uint8))[1].tobytes()
    path = tmp_path / f"a{kind}"
    path.write_bytes(turned(data, orientation) if orientation else data)
    measure = names("label_studio_ml.utils").get_image_size
    assert measure(str(path)) == size
    path.write_bytes(data[:20])
    with pytest.raises((ValueError, OSError)):
        measure(str(path))


def test_a_mask_comes_back_from_the_brushs_code(names: Callable[[str], Any]) -> None:
    brush = names("label_studio_sdk.converter.brush")
    mask = np.zeros((40, 60), np.uint8)
    mask[5:20, 10:50] = 255
    pixels = np.reshape(brush.decode_rle(brush.mask2rle(mask)), [40, 60, 4])
    np.testing.assert_array_equal(pixels, np.repeat(mask[:, :, None], 4, axis=2))
    for data in (b"", b"ab" * 40_000, b"x" * 70_000 + b"ab"):
        assert brush.decode_rle(brush.encode_rle(data)).tobytes() == data
