"""An archive of int8 products on a processor without int8 dot products: it opens, is exact there, and gives its answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from built import build, quantize, recipe_of
from integer_products import takes_integers

from archiver.packaging.entry import handler_of
from archiver.packaging.mar import extracted
from archiver.pipeline.check import check
from archiver.state.plan import QuantizationPlan
from handlers.errors import UnsoundArchive
from handlers.examples import read_examples, respond_fully
from handlers.runtimes import openvino_paged
from handlers.runtimes.openvino_paged import PagedGraph


def test_int8_products_are_left_where_they_would_overflow(tiny_model, tmp_path, monkeypatch) -> None:
    compress = quantize("static-int8", samples=8)
    recipe = recipe_of(tmp_path, tiny_model(), compress=compress, serve={"runtime": "openvino"})
    built = build(recipe, tmp_path / "store")
    with extracted(built.path) as (folder, _):
        for isa, expected in ((["avx2", "avx512_vnni"], True), (["avx2", "avx512f"], False)):
            monkeypatch.setattr("handlers.cpu.host_isa", lambda isa=isa: isa)
            handler: Any = handler_of(folder)
            handler.open(folder, threads=1)  # the stored examples are answered within 0.03
            assert takes_integers(handler.session._compiled) is expected
            inputs = [handler.input.from_stored(one["input"]) for one in read_examples(folder)]
            alone = [respond_fully(handler, [one])[0] for one in inputs]
            together = respond_fully(handler, inputs)
            assert max(map(handler.compare, alone, together)) < 1e-4


class Rounded:
    """A session that is off by what an item's ids say, as one is that rounds its activations."""

    def __init__(self, session: Any) -> None:
        self.session = session

    def run(self, arrays: Any) -> np.ndarray:
        shift = (arrays["input_ids"].sum(axis=1, keepdims=True) % 11 / 50).astype(np.float32)
        found: np.ndarray = self.session.run(arrays) + shift * np.float32([[1, -1]])
        return found


def test_examples_are_those_that_rounding_moves_least(tiny_model, tmp_path) -> None:
    recipe = recipe_of(tmp_path, tiny_model(), serve={"examples": 2})
    workload: Any = check(recipe).load()
    exact, handler = workload.reader(workload.module), workload.reader(workload.module)
    handler.session = Rounded(handler.session)
    workload.model.quantization = QuantizationPlan("static-int8", (), ())
    chosen, _ = workload.choose_examples(handler)
    values = list(workload.values[:16])
    moved = [
        handler.compare(*pair) for pair in zip(*(respond_fully(one, values) for one in (exact, handler)), strict=True)
    ]
    places = [values.index(one) for one in chosen]
    assert len(places) == 2 and places == sorted(places)
    assert max(moved[place] for place in places) == sorted(moved)[1] < max(moved)
    workload.model.quantization = QuantizationPlan("dynamic-int8", (), ())
    assert workload.choose_examples(handler)[0] == values[:2]


@pytest.mark.parametrize("isa", [[], ["asimddp", "i8mm"]])
def test_text_generation_on_arm_without_sve_is_refused_in_a_sentence(tmp_path, monkeypatch, isa) -> None:
    monkeypatch.setattr(openvino_paged.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(openvino_paged, "host_isa", lambda: isa)
    with pytest.raises(UnsoundArchive, match="for ARM with SVE only"):
        PagedGraph(tmp_path, {}, 1)
