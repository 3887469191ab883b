"""token-classification and question-answering, served: REST, gRPC and huggingface_hub's client."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from live_client import Grpc, Rest
from places import ROOT
from side_by_side import Right, Wrong, answered_wrongly
from text_spans import LABELS, write_recipe

from archiver.packaging.entry import handler_of
from archiver.packaging.mar import extract
from archiver.pipeline import build as pipeline
from archiver.progress import Progress
from archiver.recipe.load import load_recipe
from archiver.torchserve.server import TorchServe

TAGS, ANSWERS = "tags", "answers"
TEXT = "the Zoe\u0308 film 👩‍👩‍👧 is very good"
LONG = f"{TEXT}, one dull long story without sound and " * 6
ASKED = {"question": "what film?", "context": LONG}


@pytest.fixture(scope="module")
def archives(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """Both archives, each with its handler in this process."""
    folder = tmp_path_factory.mktemp("tokens")
    tags, answers = "token-classification", "question-answering"
    models = {
        tags: tiny_model("bert", tags, num_hidden_layers=1, id2label=LABELS),
        answers: tiny_model("roberta", answers, num_hidden_layers=1),
    }
    found: dict[str, tuple[Path, Any]] = {}
    for task, model in models.items():
        recipe = write_recipe(folder, task, model, [{"quantize": {"method": "static-int8"}}], runtime="openvino")
        path = pipeline.build(load_recipe(recipe), folder / "store", Progress(quiet=True)).path
        (folder / path.stem).mkdir()
        extract(path, folder / path.stem)
        handler = handler_of(folder / path.stem)
        handler.open(folder / path.stem, threads=1)
        found[path.stem] = (path, handler)
    return found


@pytest.fixture(scope="module")
def server(archives: dict[str, tuple[Path, Any]]) -> Iterator[TorchServe]:
    with TorchServe([path for path, _ in archives.values()], config=ROOT / "config.properties") as running:
        running.wait_ready(180)
        yield running


@pytest.fixture(scope="module")
def rest(server: TorchServe) -> Iterator[Rest]:
    with Rest(server) as client:
        yield client


@pytest.fixture(scope="module")
def grpc(server: TorchServe) -> Iterator[Grpc]:
    with Grpc(server) as client:
        yield client


@pytest.mark.parametrize(
    ("name", "body"),
    [
        (TAGS, {"inputs": TEXT}),
        (TAGS, {"inputs": [TEXT, LONG], "parameters": {"aggregation_strategy": "simple", "ignore_labels": []}}),
        (TAGS, {"inputs": LONG, "parameters": {"aggregation_strategy": "first", "stride": 3}}),
        (ANSWERS, {"inputs": ASKED}),
        (ANSWERS, ASKED),
        (ANSWERS, {**ASKED, "top_k": 3, "max_answer_len": 4, "handle_impossible_answer": True}),
        (ANSWERS, {"inputs": [ASKED, {"question": "who?", "context": TEXT}]}),
    ],
)
def test_answers_are_the_handlers_over_rest_and_grpc(
    rest: Rest, grpc: Grpc, archives: dict[str, tuple[Path, Any]], name: str, body: dict[str, Any]
) -> None:
    sent = json.dumps(body, ensure_ascii=False).encode()
    over_rest, over_grpc = rest.post(name, sent), grpc.predict(name, sent)
    assert over_rest.status == over_grpc.status == 200, over_rest.body
    assert over_rest.body == over_grpc.body
    handler = archives[name][1]
    inputs = body.get("inputs", {key: body[key] for key in ("question", "context") if key in body})
    values = [handler.input.decode(one, "inputs") for one in (inputs if isinstance(inputs, list) else [inputs])]
    beside = {key: value for key, value in body.items() if key not in ("inputs", "question", "context", "parameters")}
    expected = handler.respond(values, body.get("parameters", beside))
    # On this processor the worker computes as this process does, to the last digit.
    assert over_rest.value == (expected if isinstance(inputs, list) else expected[0])


def test_characters_slice_the_text_that_was_sent(rest: Rest) -> None:
    body = {"inputs": LONG, "parameters": {"ignore_labels": []}}
    tokens = rest.post(TAGS, json.dumps(body).encode()).value
    assert [token["index"] for token in tokens] == list(range(1, len(tokens) + 1))
    assert {LONG[token["start"] : token["end"]] for token in tokens} >= {"film", "👩‍👩‍👧", "very", "story"}
    answer = rest.post(ANSWERS, json.dumps(ASKED).encode()).value
    assert LONG[answer["start"] : answer["end"]] == answer["answer"]


MISTAKES: list[tuple[str, dict[str, Any], str]] = [
    (TAGS, {"inputs": ""}, "inputs is empty"),
    (TAGS, {"inputs": TEXT, "parameters": {"aggregation_strategy": "most"}}, "allowed: none, simple, first"),
    (TAGS, {"inputs": [TEXT, 3]}, "inputs[1] is a number"),
    (ANSWERS, {"question": "who?"}, "inputs has no 'context'"),
    (ANSWERS, {"context": TEXT}, "inputs has no 'question'"),
    (ANSWERS, {"inputs": {"question": "", "context": TEXT}}, "inputs.question is empty"),
    (ANSWERS, {"question": "film " * 40, "context": TEXT}, "tokens; at most 16 are allowed"),
    (ANSWERS, {**ASKED, "top_k": 0}, "parameter 'top_k' is 0"),
]


def test_mistakes_among_right_requests(server: TorchServe, rest: Rest) -> None:
    asked: list[tuple[str, dict[str, Any]]] = [(TAGS, {"inputs": TEXT}), (TAGS, {"inputs": LONG}), (ANSWERS, ASKED)]
    good = []
    for name, body in asked:
        expected = rest.post(name, json.dumps(body).encode()).value
        good.append(Right(name, body, lambda value, expected=expected: _alike(value, expected)))  # type: ignore[misc]
    lines = answered_wrongly(
        server, [Wrong(name, body, re.escape(part)) for name, body, part in MISTAKES], good, count=300
    )
    assert not lines, f"{len(lines)} wrong: " + "\n".join(lines[:10])


def _alike(value: Any, expected: Any) -> bool:
    """The same but for scores, which differ in the last digits with a batch's other members."""
    if isinstance(expected, list):
        return len(value) == len(expected) and all(map(_alike, value, expected))
    return {**value, "score": 0} == {**expected, "score": 0} and abs(value["score"] - expected["score"]) < 0.01


def test_huggingface_hubs_client(server: TorchServe, rest: Rest) -> None:
    from huggingface_hub import InferenceClient

    tags = InferenceClient(model=server.prediction_url(TAGS), token=server.inference_key)
    found = tags.token_classification(TEXT, aggregation_strategy="simple", ignore_labels=[])
    body = {"inputs": TEXT, "parameters": {"aggregation_strategy": "simple", "ignore_labels": []}}
    expected = rest.post(TAGS, json.dumps(body).encode()).value
    assert [(one.entity_group, one.word, one.start, one.end) for one in found] == [
        (one["entity_group"], one["word"], one["start"], one["end"]) for one in expected
    ]
    answers = InferenceClient(model=server.prediction_url(ANSWERS), token=server.inference_key)
    best: Any = answers.question_answering(**ASKED)
    several: Any = answers.question_answering(**ASKED, top_k=2)
    assert best.answer == LONG[best.start : best.end]
    assert [one.answer for one in several][0] == best.answer and len(several) == 2
