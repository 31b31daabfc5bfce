"""What is reckoned from sizes only becomes a constant, and nothing else does: the answers stay as they were."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import parser

from labelloop.core.errors import ModelError
from labelloop.learning.trainers.finetune.known_shapes import settle_shapes
from labelloop.learning.trainers.finetune.onnx_graph import OnnxGraph

torch = pytest.importorskip("torch", reason="needs the extra train")

from labelloop.learning.trainers.finetune.onnx_torch import open_session  # noqa: E402

FLATTENED = """
    shape = Shape (x)
    batch = Gather <axis = 0> (shape, zero)
    batch_row = Unsqueeze <axes = [0]> (batch)
    wanted = Concat <axis = 0> (batch_row, rest)
    flat = Reshape (x, wanted)
    width = Gather <axis = 0> (shape, three)
    columns = Range (zero, width, one)
    columns_float = Cast <to = 1> (columns)
    longest = ReduceMax <axes = [0], keepdims = 0> (columns_float)
    y = Add (flat, longest)
"""
COUNTED = """
    places = NonZero (x)
    shape = Shape (places)
    count = Gather <axis = 0> (shape, one)
    count_float = Cast <to = 1> (count)
    y = Add (x, count_float)
"""
BRANCHED = """
    twice = Add (x, x)
    shape = Shape (x)
    batch = Gather <axis = 0> (shape, zero)
    is_one = Equal (batch, one)
    y = If <
        then_branch = one_picture () => (float[b, c, h, w] then) { then = Neg (twice) },
        else_branch = several () => (float[b, c, h, w] otherwise) { otherwise = Identity (twice) }
    > (is_one)
"""
NUMBERS = "int64 zero = {0}, int64 one = {1}, int64 three = {3}, int64[2] rest = {3, -1}"


def graph_of(body: str, *, batch: str = "b") -> OnnxGraph:
    model = parser.parse_model(
        f'<ir_version: 7, opset_import: ["" : 11]>\n'
        f"some (float[{batch}, 3, 4, 5] x) => (float y) <{NUMBERS}> {{{body}}}"
    )
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return OnnxGraph(model)


def answer(graph: OnnxGraph, count: int) -> np.ndarray:
    x = np.random.default_rng(0).normal(size=(count, 3, 4, 5)).astype(np.float32)
    return np.asarray(open_session(graph.model).run(None, {"x": x})[0])


@pytest.mark.parametrize(
    ("body", "gone"),
    [(FLATTENED, {"Shape", "Range", "Gather", "Concat"}), (COUNTED, set()), (BRANCHED, set())],
    ids=["sizes", "how much there is in the picture", "branches that take values from outside"],
)
def test_the_answers_stay(body: str, gone: set[str]) -> None:
    before, after = graph_of(body), graph_of(body)
    settle_shapes(after, image="x")
    assert gone.isdisjoint(node.op_type for node in after.nodes)
    for count in (1, 4):
        np.testing.assert_array_equal(answer(after, count), answer(before, count))


def test_a_fixed_batch_is_a_size_like_others() -> None:
    graph = graph_of(FLATTENED, batch="1")
    settle_shapes(graph, image="x")
    assert [node.op_type for node in graph.nodes] == ["Reshape", "Add"]
    np.testing.assert_array_equal(answer(graph, 1), answer(graph_of(FLATTENED), 1))


def test_a_graph_that_does_not_take_two_pictures_says_so() -> None:
    mask = """
        best = ReduceMax <axes = [1, 2], keepdims = 0> (x)
        sum = Add (x, best)
        shape = Shape (sum)
        batch = Gather <axis = 0> (shape, zero)
        batch_float = Cast <to = 1> (batch)
        y = Add (sum, batch_float)
    """
    with pytest.raises(ModelError, match="does not answer 2 pictures"):
        settle_shapes(graph_of(mask), image="x")
