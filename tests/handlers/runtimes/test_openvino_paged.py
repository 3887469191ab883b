"""What a text's logits hang on, to the last bit, where activations are rounded: on its tokens alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from built import build
from text_recipes import TASK, recipe_of

from archiver.packaging.mar import extracted
from handlers.generation.paged.pages import Piece
from handlers.runtimes.openvino_paged import PagedGraph

IDS = [int(one) for one in np.random.default_rng(0).integers(3, 90, 80)]
STAGES = [{"quantize": {"method": "weight-only", "bits": 8}}]
HERE, THERE = list(range(4)), list(range(4, 8))


@pytest.fixture(scope="module", params=[1, 2], ids=["one thread", "two threads"])
def graph(tiny_model, tmp_path_factory, request) -> PagedGraph:
    folder: Path = tmp_path_factory.mktemp("paged")
    serve: dict[str, Any] = {"runtime": "openvino", "max_length": 64, "examples": 1}
    recipe = recipe_of(folder, tiny_model("llama", TASK), compress=STAGES, serve=serve)
    with extracted(build(recipe, folder / "store").path) as (files, _):
        session = json.loads((files / "serving.json").read_text())["session"]
        return PagedGraph(files, session, request.param)


def test_a_token_alone_and_among_others(graph) -> None:
    graph.run([Piece(IDS[:40], 0, HERE)])
    graph.run([Piece(IDS[:40], 0, THERE)])
    alone = graph.run([Piece([IDS[40]], 40, HERE, apart=True)]).copy()
    assert alone.shape[0] == 1
    among = graph.run([Piece([IDS[40]], 40, HERE, apart=True), Piece([5], 40, THERE, apart=True)])
    assert np.array_equal(alone[0], among[0])


def test_guesses_are_computed_as_tokens_that_come_one_by_one(graph) -> None:
    graph.run([Piece(IDS[:40], 0, HERE)])
    one_by_one = [graph.run([Piece([IDS[place]], place, HERE, apart=True)])[0].copy() for place in range(40, 46)]
    graph.run([Piece([5] * 6, 40, HERE, asked=6, apart=True)])  # wrong ones, taken back
    together = graph.run([Piece(IDS[40:46], 40, HERE, asked=6, apart=True)])
    assert np.array_equal(together, one_by_one)


@pytest.mark.parametrize("cut", [2, 31, 32, 45, 78])
def test_where_a_prompt_is_cut_and_what_runs_beside_it(graph, cut) -> None:
    whole = graph.run([Piece(IDS, 0, HERE)]).copy()
    graph.run([Piece(IDS[:cut], 0, THERE)])
    found = graph.run([Piece([7], 80, HERE, apart=True), Piece(IDS[cut:], cut, THERE)])
    assert np.array_equal(found[1], whole[0])
