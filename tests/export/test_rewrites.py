"""What is rewritten in a graph for OpenVINO gives the same to the last bit, and what only looks like it stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
import torch
from any_models import tiny
from openvino import opset13 as op
from stage_context import calibrated_on

from archiver.architecture.tracing import text_tracing
from archiver.compression.quantize.int8 import static_int8, weight_only
from archiver.compression.quantize.options import StaticInt8, WeightOnly
from archiver.export import openvino as exporting
from archiver.export.graph.rewrites import rewrite
from archiver.export.onnx import export_onnx
from archiver.state.plan import plan_of
from handlers.architecture.outputs.encoder import EncoderWithHead

FAMILIES = ("bert", "distilbert", "mpnet", "modernbert", "qwen3")
SHAPES = [(1, 1), (4, 13), (2, 32)]


def arrays(rows: int, length: int) -> dict[str, np.ndarray]:
    """Padding behind all rows but the first."""
    random = np.random.default_rng(rows)
    mask = np.ones((rows, length), np.int64)
    for row in range(1, rows):
        mask[row, random.integers(1, length + 1) :] = 0
    ids = np.where(mask == 1, random.integers(1, 120, (rows, length)), 0)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def given(model: Any, shapes: list[tuple[int, int]] = SHAPES) -> list[np.ndarray]:
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    taken = {name for port in compiled.inputs for name in port.get_names()}
    return [
        np.array(compiled({name: value for name, value in arrays(*shape).items() if name in taken})[0])
        for shape in shapes
    ]


def kinds(model: Any) -> list[str]:
    return [node.get_type_name() for node in model.get_ordered_ops()]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("int8", [None, "static", "weights"])
def test_models_give_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, int8: str | None
) -> None:
    encoder = EncoderWithHead(tiny(family, "AutoModelForSequenceClassification"), None).eval()
    graph = export_onnx(encoder, text_tracing(encoder, max_length=32))
    names = {item.name for item in graph.model.graph.input}
    batch = {name: torch.from_numpy(value) for name, value in arrays(4, 13).items() if name in names}
    if int8 == "static":
        static_int8(encoder.model, StaticInt8(samples=4), calibrated_on([batch], encoder))
    elif int8:
        weight_only(encoder.model, WeightOnly(), calibrated_on([batch]))
    plan = plan_of(encoder.model)
    found: list[list[np.ndarray]] = []
    models = []
    rewrites: list[Callable[[Any], None]] = [rewrite, lambda model: None]
    for place, one in zip((tmp_path / "with", tmp_path / "without"), rewrites, strict=True):
        place.mkdir()
        monkeypatch.setattr(exporting, "rewrite", one)
        exporting.export_openvino(graph, plan, place, widths=[32, 48] if plan else [])
        models.append(ov.Core().read_model(place / "model.xml"))
        found.append(given(models[-1]))
    for ours, plain in zip(*found, strict=True):
        np.testing.assert_array_equal(ours, plain)
    if family == "bert":
        assert "GatherND" in kinds(models[1]) and "GatherND" not in kinds(models[0])


def table_of(scale: np.ndarray, element: type = np.int8) -> Any:
    stored = np.random.default_rng(0).integers(0, 100, (40, 8)).astype(element)
    ids = op.parameter([-1, -1], np.int64)
    ids.output(0).set_names({"input_ids"})
    product = op.multiply(op.convert(op.constant(stored), "f32"), op.constant(scale))
    return ov.Model([op.result(op.gather(product, ids, op.constant(np.int64(0))))], [ids], "table")


@pytest.mark.parametrize("shape", [(40, 1), (1, 1), ()])
@pytest.mark.parametrize("element", [np.int8, np.uint8])
def test_a_table_s_rows_are_converted_when_they_are_looked_up(shape: tuple[int, ...], element: type) -> None:
    scale = np.random.default_rng(1).random(shape, np.float32)
    ids = np.arange(12).reshape(2, 6) % 5
    expected = ov.Core().compile_model(table_of(scale, element), "CPU")({"input_ids": ids})[0]
    rewrite(model := table_of(scale, element))
    (lookup, *_) = (node for node in model.get_ordered_ops() if node.get_type_name() == "Gather")
    assert lookup.input_value(0).get_node().get_type_name() == "Constant"
    found = ov.Core().compile_model(model, "CPU")({"input_ids": ids})[0]
    np.testing.assert_array_equal(found, expected)


def test_a_table_that_is_not_looked_up_by_rows_stays() -> None:
    stored = op.convert(op.constant(np.ones((8, 8), np.int8)), "f32")
    ids = op.parameter([-1], np.int64, "input_ids")
    columns = op.gather(op.multiply(stored, op.constant(np.ones((8, 1), np.float32))), ids, op.constant(np.int64(1)))
    rewrite(model := ov.Model([op.result(columns)], [ids], "columns"))
    (lookup,) = (node for node in model.get_ordered_ops() if node.get_type_name() == "Gather")
    assert lookup.input_value(0).get_node().get_type_name() == "Multiply"


def masked(*, start: int = 0, swapped: bool = False) -> Any:
    """A GatherND of attention_mask by row and column numbers, as transformers' masks are written."""
    mask = op.parameter([-1, -1], np.int64, "attention_mask")
    mask.output(0).set_names({"attention_mask"})
    shape = op.shape_of(mask)

    def numbers(axis: int, axes: list[int]) -> Any:
        size = op.squeeze(
            op.gather(shape, op.constant(np.array([axis])), op.constant(np.int64(0))), op.constant(np.array([0]))
        )
        counted = op.range(op.constant(np.int64(start)), size, op.constant(np.int64(1)), "i64")
        return op.unsqueeze(counted, op.constant(np.array(axes)))

    rows, columns = numbers(0, [1, 2, 3]), numbers(1, [0, 1, 2])
    together = op.shape_of(op.maximum(rows, columns))
    parts = [op.unsqueeze(op.broadcast(one, together), op.constant(np.array([-1]))) for one in (rows, columns)]
    found = op.gather_nd(mask, op.concat(parts[::-1] if swapped else parts, 4), 0)
    return ov.Model([op.result(op.convert(found, "f32"))], [mask], "mask")


def test_a_mask_is_the_view_that_it_is() -> None:
    expected = given(masked())
    rewrite(model := masked())
    assert "GatherND" not in kinds(model)
    for ours, plain in zip(given(model), expected, strict=True):
        np.testing.assert_array_equal(ours, plain)


@pytest.mark.parametrize("change", [{"start": 1}, {"swapped": True}])
def test_what_only_looks_like_a_mask_stays(change: dict[str, Any]) -> None:
    rewrite(model := masked(**change))
    assert "GatherND" in kinds(model)


@pytest.mark.parametrize("first", ["shape of the ids", "other numbers"])
def test_heads_are_stated_where_rows_and_tokens_stay(first: str) -> None:
    ids = op.parameter([-1, -1], np.int64)
    ids.output(0).set_names({"input_ids"})
    rows = op.gather(op.constant(np.random.default_rng(0).random((120, 8), np.float32)), ids, op.constant(np.int64(0)))
    rest = op.constant(np.array([-1, 2]))
    numbers = op.constant(np.array([1, -1, 4, 2]))
    before = op.concat([op.shape_of(ids), rest], 0) if first == "shape of the ids" else numbers
    split = op.reshape(rows, before, True)
    merged = op.reshape(
        op.transpose(split, op.constant(np.array([0, 1, 2, 3]))), op.constant(np.array([0, 0, -1])), True
    )
    model = ov.Model([op.result(merged)], [ids], "heads")
    expected = given(model, [(1, 13), (1, 32)])
    rewrite(model)
    shapes = [
        np.asarray(node.input_value(1).get_node().data).tolist()
        for node in model.get_ordered_ops()
        if node.get_type_name() == "Reshape" and node.input_value(1).get_node().get_type_name() == "Constant"
    ]
    assert shapes == [[1, -1, 4, 2] if first == "other numbers" else [0, 0, 4, 2], [0, 0, -1]]
    for ours, plain in zip(given(model, [(1, 13), (1, 32)]), expected, strict=True):
        np.testing.assert_array_equal(ours, plain)
