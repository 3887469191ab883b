"""Branches for adapters in an OpenVINO graph: where products were joined, with a bias, and what they cost nobody else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lora import EVERY, write_lora
from task_models import load_model

from archiver.compression.quantize.int8 import weight_only
from archiver.compression.quantize.options import WeightOnly
from archiver.errors import UnsupportedModelError
from archiver.export.openvino_decoder import export_decoder, products_of
from archiver.models.adapters import read_lora
from archiver.state.plan import plan_of
from handlers.errors import UnsoundArchive
from handlers.generation.paged.pages import Piece
from handlers.runtimes import openvino_paged
from handlers.runtimes.openvino_adapters import add_adapters
from handlers.runtimes.openvino_paged import PagedGraph
from handlers.storage.adapters import ADAPTERS, AdaptedLayer, Adapters, read_adapters

TASK = "text-generation"
SPEC = {"openvino": "openvino", "precision": "f32", "kv_cache": "u8", "cache_blocks": 64, "max_running": 8}
IDS = [int(one) for one in np.random.default_rng(0).integers(3, 390, 60)]


def exported(source: Path, folder: Path, targets: Any, *, integers: bool = True) -> Path:
    """A model's graph in 8 bits with two adapters, and without in the folder beside it."""
    model = load_model(source, TASK)
    adapters = {
        name: read_lora(write_lora(folder / name, model, seed=seed, rank=rank, targets=targets))[0].load()
        for name, seed, rank in (("a", 1, 4), ("b", 2, 3))
    }
    if integers:
        options: Any = WeightOnly()
        weight_only(model, options, None)
    for name, own in (("with", adapters), ("without", None)):
        (folder / name).mkdir()
        export_decoder(model, plan_of(model), folder / name, adapters=own)  # which compares with torch
    return folder


@pytest.mark.parametrize(
    ("kind", "targets", "integers"),
    [
        ("llama", EVERY, True),
        ("qwen2", ["k_proj", "v_proj", "down_proj"], True),  # biases; the queries have no adapter
        ("gpt2", ["c_attn", "c_proj", "c_fc"], False),
    ],
)
def test_the_graph_is_the_same_and_answers_as_torch_does(tiny_model, tmp_path, kind, targets, integers) -> None:
    folder = exported(tiny_model(kind, TASK), tmp_path, targets, integers=integers)
    for name in ("openvino_model.xml", "openvino_model.bin"):
        assert (folder / "with" / name).read_bytes() == (folder / "without" / name).read_bytes()
    places = read_adapters(folder / "with" / ADAPTERS).places
    products = {place["product"] for place in places.values()}
    if kind == "llama":
        assert len(places) == 14 and len(products) == 8  # queries with keys and values, gate with up


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory) -> Path:
    return exported(tiny_model("llama", TASK), tmp_path_factory.mktemp("adapted"), EVERY) / "with"


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def graph(folder, request) -> PagedGraph:
    return PagedGraph(folder, SPEC | {"adapters": ADAPTERS}, request.param)


def test_a_large_model_is_run_with_the_branches_alone(folder, monkeypatch) -> None:
    plain = PagedGraph(folder, SPEC, 1).run([Piece(IDS, 0, [0, 1], asked=8)]).copy()
    twice = PagedGraph(folder, SPEC | {"adapters": ADAPTERS}, 1)
    monkeypatch.setattr(openvino_paged, "_TWICE", 0)
    once = PagedGraph(folder, SPEC | {"adapters": ADAPTERS}, 1)
    assert twice._request is not twice._adapted and once._request is once._adapted
    for graph in (twice, once):
        assert np.array_equal(graph.run([Piece(IDS, 0, [0, 1], asked=8)]), plain)
    found = [graph.run([Piece(IDS, 0, [0, 1], asked=8, adapter=1)]).copy() for graph in (twice, once)]
    assert np.array_equal(*found) and not np.array_equal(found[0], plain)


def test_what_a_text_gets_hangs_on_its_own_adapter_alone(graph) -> None:
    """To the last bit: alone, among others of any adapter, and where the prompt was cut."""

    def blocks(row: int) -> list[int]:
        return [2 * row, 2 * row + 1]

    for row in range(24):
        graph.run([Piece(IDS[:40], 0, blocks(row), adapter=row % 3)])
    pieces = [Piece([IDS[40 + row % 8]], 40, blocks(row), apart=True, adapter=row % 3) for row in range(24)]
    alone = [graph.run([piece])[0].copy() for piece in pieces]
    assert len({one.tobytes() for one in alone}) == 24
    for count in (2, 3, 8, 17, 24):
        assert np.array_equal(graph.run(pieces[:count]), alone[:count])
    whole = graph.run([Piece(IDS, 0, blocks(30), adapter=2)])[0].copy()
    for cut in (2, 31, 45, 58):
        graph.run([Piece(IDS[:cut], 0, blocks(31), adapter=2)])
        rest = Piece(IDS[cut:], cut, blocks(31), adapter=2)
        assert np.array_equal(graph.run([pieces[0], pieces[1], rest])[2], whole)


def test_places_that_are_not_there() -> None:
    ov = pytest.importorskip("openvino")
    from openvino import opset13 as ops

    x = ops.parameter([-1, 1, 4], np.float32)
    product = ops.matmul(x, ops.constant(np.eye(4, dtype=np.float32)), False, True)
    product.set_friendly_name("product")
    model = ov.Model([ops.result(product)], [x], "one")
    layer = AdaptedLayer(np.ones((1, 3), np.float32), np.ones((4, 1), np.float32), np.array([1]))
    place = {"product": "product", "output": ["product", 0]}
    for places, message in (
        ({}, "has no place for the adapters of l"),
        ({"l": place | {"output": ["other", 0]}}, "has no place for the adapters of l"),
        ({"l": place | {"output": ["product", 7]}}, "has no place for the adapters of l"),
        ({"l": place}, r"the adapters of l do not fit its product of \[4, 4\]"),
    ):
        with pytest.raises(UnsoundArchive, match=message):
            add_adapters(model, Adapters(("a",), {"l": layer}, places))
    with pytest.raises(UnsupportedModelError, match="l: the OpenVINO graph computes it with 0 products"):
        products_of(model, ["l"])


def test_a_file_that_describes_no_adapters(tmp_path) -> None:
    from safetensors.numpy import save_file

    described = json.dumps({"version": 1, "tensors": {}, "adapters": {"names": ["a"], "layers": {"l": [0]}}})
    save_file({"x": np.zeros(1, np.float32)}, tmp_path / ADAPTERS, metadata={"marpress": described})
    with pytest.raises(UnsoundArchive, match="does not describe adapters"):
        read_adapters(tmp_path / ADAPTERS)
