"""recommendation in a live TorchServe: REST and gRPC, its own form at the top, and wrong requests between right ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_client import Grpc, Rest
from places import ROOT
from side_by_side import Right, Wrong, answered_wrongly
from tiny_items import ITEMS, write_recipe

import archiver
from archiver.packaging.entry import handler_of
from archiver.packaging.mar import extract
from archiver.progress import Progress
from archiver.recipe.load import load_recipe
from archiver.torchserve.server import TorchServe
from handlers.inputs.items import History
from handlers.tasks.items.recommendation import RecommendationHandler

RIGHT: dict[str, tuple[dict[str, Any], list[History], dict[str, Any]]] = {
    "at the top": ({"history": [103, "Film 124"]}, [History((103, 124))], {}),
    "with parameters beside it": (
        {"history": ["103"], "top_k": 3, "exclude_seen": True, "candidates": [103, 105, "Film 106", 107, 108]},
        [History((103,))],
        {"top_k": 3, "exclude_seen": True, "candidates": [105, 106, 107, 108]},
    ),
    "under inputs": ({"inputs": {"history": [101]}, "parameters": {"top_k": 2}}, [History((101,))], {"top_k": 2}),
    "several": (
        {"inputs": [{"history": [101]}, {"history": list(range(100, 128))}]},
        [History((101,)), History(tuple(range(100, 128)))],
        {},
    ),
    "unknown ones skipped": ({"history": [1, 101], "skip_unknown": True}, [History((101,))], {}),
}
WRONG: dict[str, tuple[Any, str]] = {
    "unknown item": (
        {"history": [101, "Film 9"]},
        r'history\[1\] is "Film 9", which is an id or a name of none of the 30',
    ),
    "empty history": ({"history": []}, "history is empty; at least one item is expected"),
    "two items of a name": ({"history": ["Twice"]}, "is the name of 2 items; send the id of one: '128', '129'"),
    "a text": ({"inputs": "Film 101"}, "inputs is a string; an object with 'history' is expected"),
    "a list of ids": ({"inputs": [101, 102]}, r"inputs\[0\] is a number; an object with 'history'"),
    "no items": ({"inputs": {"history": [None]}}, r"inputs.history\[0\] is null"),
    "top_k of nothing": ({"history": [101], "top_k": 0}, "parameter 'top_k' is 0; allowed: a whole number from 1"),
    "top_k beyond the items": ({"history": [101], "top_k": 31}, "'top_k' is 31; there are 30 items"),
    "unknown candidate": (
        {"history": [101], "candidates": [7]},
        r"candidates\[0\] is 7, which is an id or a name of none",
    ),
    "exclude_seen": (
        {"history": [101], "exclude_seen": "yes"},
        "parameter 'exclude_seen' is \"yes\"; allowed: true or",
    ),
    "unknown key": ({"history": [101], "top": 3}, "unknown parameter 'top'; allowed: 'candidates', 'exclude_seen'"),
    "nothing": ({}, "the body has no 'inputs'"),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RecommendationHandler]:
    """An archive of a new model with an int8 table, and its handler in this process."""
    folder = tmp_path_factory.mktemp("live-items")
    compress = [{"quantize": {"method": "weight-only", "targets": "*"}}]
    recipe = load_recipe(write_recipe(folder, compress=compress, serve={"runtime": "openvino"}))
    path = archiver.build(recipe, folder / "store", Progress(quiet=True)).path
    (folder / "extracted").mkdir()
    extract(path, folder / "extracted")
    handler = handler_of(folder / "extracted")
    assert isinstance(handler, RecommendationHandler)
    handler.open(folder / "extracted", threads=1)
    return path, handler


@pytest.fixture(scope="module")
def server(built: tuple[Path, RecommendationHandler]) -> Iterator[TorchServe]:
    with TorchServe([built[0]], config=ROOT / "config.properties") as running:
        running.wait_ready(180)
        yield running


def test_answers_are_the_handlers_over_rest_and_grpc(
    server: TorchServe, built: tuple[Path, RecommendationHandler]
) -> None:  # fmt: skip
    handler = built[1]
    with Rest(server) as rest, Grpc(server) as grpc:
        for body, histories, parameters in RIGHT.values():
            here = handler.respond(histories, parameters)
            for reply in (rest.post("films", body), grpc.predict("films", body)):
                assert reply.status == 200, reply.body
                there = reply.value if isinstance(body.get("inputs"), list) else [reply.value]
                assert [len(answer) for answer in there] == [len(answer) for answer in here]
                assert max(map(handler.compare, here, there)) <= handler.serving["tolerance"]
        text = rest.post("films", b"Film 101", "text/plain")
        assert text.status == 400 and "an object with 'history' is expected" in text.message
        everything = rest.post("films", {"history": [103], "top_k": ITEMS}).value
    assert {item["item"] for item in everything} == set(range(100, 100 + ITEMS))
    assert everything[0] == {"item": 124, "name": "Film 124", "score": everything[0]["score"]}


def test_mistakes_among_right_requests(
    server: TorchServe, built: tuple[Path, RecommendationHandler]
) -> None:  # fmt: skip
    handler = built[1]

    def right(body: dict[str, Any], histories: list[History], parameters: dict[str, Any]) -> Right:
        here, several = handler.respond(histories, parameters), isinstance(body.get("inputs"), list)

        def holds(value: Any) -> bool:
            return max(map(handler.compare, here, value if several else [value])) <= handler.serving["tolerance"]

        return Right("films", body, holds)

    wrong = [Wrong("films", body, said) for body, said in WRONG.values()]
    lines = answered_wrongly(server, wrong, [right(*one) for one in RIGHT.values()], count=400)
    assert not lines, f"{len(lines)} wrong: " + "\n".join(lines[:10])
