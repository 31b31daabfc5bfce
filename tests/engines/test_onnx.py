"""Reading ONNX files: what they say, what they may not do, where they run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from structlog.testing import capture_logs

from labelloop.core.errors import ModelError, ModelFailed
from labelloop.engines.onnx import OnnxModel, Tensor, read_signature
from labelloop.engines.onnx_file import CHILDREN, scan
from reference import tiny_models as tiny

VALUE = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_a_signature_is_what_the_file_says(tmp_path: Path) -> None:
    path = tiny.build_v8(tmp_path / "v8.onnx", [], batch="batch", free_size=True)
    signature = read_signature(path)
    assert signature.inputs == (Tensor("images", ("batch", 3, "h", "w"), "float32"),)
    assert signature.outputs[0].fixed(0) is None
    assert signature.outputs[0].fixed(1) == 7
    assert signature.metadata["task"] == "detect"
    assert signature.producers["output0"] == "Expand"
    assert str(signature) == "inputs: images float32 [batch, 3, h, w]. Outputs: output0 float32 [batch, 7, 8400]."


@pytest.mark.parametrize("model", ["yolox_nano_416", "nanodet_m_320", "deimv2_atto_320"])
def test_the_operators_are_those_of_the_onnx_package(shared: Path, model: str) -> None:
    path = shared / "data/models" / f"{model}.onnx"
    expected = {name: node.op_type for node in onnx.load(path).graph.node for name in node.output}
    assert scan(path).producers == expected


def test_the_field_numbers_are_those_of_onnx() -> None:
    """Every way from a model to a tensor is walked: a field that is forgotten would be a way around the check."""
    messages = onnx.ModelProto.DESCRIPTOR.file.message_types_by_name
    reaches = {"TensorProto"}
    while True:
        more = {
            name
            for name, message in messages.items()
            if name not in reaches and any(f.message_type and f.message_type.name in reaches for f in message.fields)
        }
        if not more:
            break
        reaches |= more
    for name in reaches - {"TensorProto"}:
        fields = messages[name].fields
        ways = {f.number: f.message_type.name for f in fields if f.message_type and f.message_type.name in reaches}
        assert CHILDREN[name] == ways, name
    assert messages["TensorProto"].fields_by_name["external_data"].number in CHILDREN["TensorProto"]


def external(location: str) -> onnx.TensorProto:
    tensor = numpy_helper.from_array(VALUE, "weights")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(VALUE.nbytes))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def with_initializer(location: str) -> onnx.GraphProto:
    node = helper.make_node("Identity", ["weights"], ["y"])
    return helper.make_graph([node], "g", [], [tiny_output()], [external(location)])


def with_constant(location: str) -> onnx.GraphProto:
    return helper.make_graph(
        [helper.make_node("Constant", [], ["y"], value=external(location))], "g", [], [tiny_output()]
    )


def with_subgraph(location: str) -> onnx.GraphProto:
    branch = with_initializer(location)
    node = helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)
    return helper.make_graph([node], "g", [], [tiny_output()], [numpy_helper.from_array(np.array(True), "yes")])


def tiny_output() -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])


def write(path: Path, graph: onnx.GraphProto) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )
    return path


PLACES = [with_initializer, with_constant, with_subgraph]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "location",
    [
        pytest.param("../secret.bin", id="the folder above"),
        pytest.param("{root}/secret.bin", id="an absolute path"),
        pytest.param("sub/../../secret.bin", id="up again on the way"),
        pytest.param("link.bin", id="a link that leads out"),
        pytest.param("", id="no name"),
    ],
)
def test_weights_outside_the_models_folder_are_refused(tmp_path: Path, place: object, location: str) -> None:
    (tmp_path / "secret.bin").write_bytes(VALUE.tobytes())
    path = write(tmp_path / "model" / "m.onnx", place(location.format(root=tmp_path)))  # type: ignore[operator]
    (path.parent / "link.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(ModelError, match="outside its own folder") as caught:
        read_signature(path)
    assert "one file" in caught.value.hint


def test_weights_beside_the_model_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "model" / "m.onnx", with_initializer("m.data"))
    with pytest.raises(ModelError, match="which is not there"):
        OnnxModel(path)
    (path.parent / "m.data").write_bytes(VALUE.tobytes())
    np.testing.assert_array_equal(OnnxModel(path).run({})[0], VALUE)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize(
    ("content", "step"),
    [
        pytest.param(b"", "Export it again", id="empty"),
        pytest.param(b"<html>not found</html>", "a web page", id="an error page"),
        pytest.param(b"version https://git-lfs.github.com/spec/v1", "git lfs pull", id="a pointer"),
        pytest.param(pickle.dumps(Bomb()), "checkpoint of PyTorch. Export it to ONNX", id="a pickle"),
        pytest.param(b"PK\3\4" + bytes(30), "checkpoint of PyTorch. Export it to ONNX", id="a zipped pickle"),
        pytest.param(b"\x08\x08\x3a\xff\xff\xff\xff\x0fcut", "Export it again", id="cut off"),
        pytest.param(b"\xff" * 30, "Export it again", id="numbers without end"),
        pytest.param(b"\x08\x08", "older opset", id="a model without a graph"),
    ],
)
def test_what_is_not_onnx_is_an_error_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, step: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.onnx") as caught:
        read_signature(path)
    assert step in caught.value.hint
    assert list(tmp_path.iterdir()) == [path]


def test_every_cut_of_a_real_file_is_an_error(tmp_path: Path) -> None:
    whole = tiny.build_end2end(tmp_path / "whole.onnx", [], rows=4).read_bytes()
    cut = tmp_path / "cut.onnx"
    for length in range(1, len(whole) - 1, 97):
        cut.write_bytes(whole[:length])
        with pytest.raises(ModelError):
            read_signature(cut)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"gone\.onnx"):
        read_signature(tmp_path / "gone.onnx")


def test_wrong_feeds_are_a_failure_of_the_model(tmp_path: Path) -> None:
    model = OnnxModel(tiny.build_v8(tmp_path / "v8.onnx", []))
    with pytest.raises(ModelFailed):
        model.run({"images": np.zeros((1, 3, 8, 8), np.float32)})


@pytest.mark.parametrize(
    ("device", "events"),
    [
        pytest.param("cpu", [], id="cpu"),
        pytest.param("auto", [], id="auto: silently the CPU"),
        pytest.param("cuda", ["gpu-missing"], id="a GPU that is not there"),
        pytest.param("cuda:1", ["gpu-missing"], id="the second GPU that is not there"),
    ],
)
def test_a_missing_gpu_warns_and_falls_back(tmp_path: Path, device: str, events: list[str]) -> None:
    import onnxruntime as ort

    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with capture_logs() as logs:
        model = OnnxModel(tiny.build_v8(tmp_path / "v8.onnx", []), device=device)
    assert model.device == "cpu"
    assert [entry["event"] for entry in logs] == events
