"""text-ranking, zero-shot-classification, sentence-similarity and fill-mask served: REST, gRPC, Hugging Face's client."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from built import build, quantize
from huggingface_hub import InferenceClient
from live_client import JSON, Grpc, Reply, Rest
from places import ROOT
from side_by_side import Right, Wrong, answered_wrongly
from task_recipes import MODELS, recipe_of

from archiver.packaging.entry import handler_of
from archiver.packaging.mar import extract
from archiver.torchserve.server import TorchServe
from handlers.inputs.texts.against import Against
from handlers.inputs.texts.candidates import Candidates

TEXT = "this film is very good"
TEXTS = ["the dog runs fast", "a dull story 🎬", "this film is very good"]
LABELS = ["good", "music", "the cat"]
RUNTIMES = {"text-ranking": "openvino", "zero-shot-classification": "onnxruntime", "sentence-similarity": "openvino"}


@pytest.fixture(scope="module")
def handlers(tiny_model: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An archive of each task, int8, on one runtime or another; its handler in this process says what is right."""
    folder, found = tmp_path_factory.mktemp("text-tasks"), {}
    for task, (kind, config) in MODELS.items():
        recipe = recipe_of(
            folder / task,
            tiny_model("bert", kind, num_hidden_layers=1, **config),
            task,
            compress=quantize("weight-only"),
            serve={"runtime": RUNTIMES.get(task, "onnxruntime"), "workers": 1, "max_inputs": 4},
        )
        extract(build(recipe, folder / "store").path, folder / task / "extracted")
        found[task] = handler_of(folder / task / "extracted")
        found[task].open(folder / task / "extracted", threads=1)
        found[task].path = folder / "store" / f"{task}.mar"
    return found


@pytest.fixture(scope="module")
def server(handlers: dict[str, Any]) -> Iterator[TorchServe]:
    paths: list[Path] = [handler.path for handler in handlers.values()]
    with TorchServe(paths, config=ROOT / "config.properties") as running:
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


AGAINST = Against(TEXT, tuple(TEXTS))
MASKED = "the [MASK] is very [MASK]"
RIGHT: list[tuple[str, dict[str, Any], list[Any], dict[str, Any]]] = [
    ("text-ranking", {"query": TEXT, "texts": TEXTS}, [AGAINST], {}),
    ("text-ranking", {"query": TEXT, "texts": TEXTS, "raw_scores": True}, [AGAINST], {"raw_scores": True}),
    (
        "text-ranking",
        {"inputs": {"query": TEXT, "texts": TEXTS}, "parameters": {"return_text": True}},
        [AGAINST],
        {"return_text": True},
    ),
    ("sentence-similarity", {"inputs": {"source_sentence": TEXT, "sentences": TEXTS}}, [AGAINST], {}),
    ("sentence-similarity", {"source_sentence": TEXT, "sentences": TEXTS}, [AGAINST], {}),
    ("fill-mask", {"inputs": "the [MASK] is good"}, ["the [MASK] is good"], {}),
    ("fill-mask", {"inputs": MASKED, "parameters": {"top_k": 2}}, [MASKED], {"top_k": 2}),
    (
        "zero-shot-classification",
        {"inputs": TEXT, "parameters": {"candidate_labels": LABELS}},
        [Candidates((TEXT,))],
        {"candidate_labels": LABELS},
    ),
]


@pytest.mark.parametrize(("task", "body", "inputs", "parameters"), RIGHT)
def test_answers_are_those_of_the_handler(
    handlers: dict[str, Any], rest: Rest, grpc: Grpc, task: str, body: dict[str, Any], inputs: Any, parameters: Any
) -> None:
    over_rest = rest.post(task, body)
    assert over_rest.status == 200, over_rest.body
    (expected,) = handlers[task].respond(inputs, parameters)
    assert handlers[task].compare(expected, over_rest.value) <= handlers[task].serving["tolerance"]
    assert grpc.predict(task, json.dumps(body).encode()) == Reply(200, over_rest.body)


def test_lists_and_the_forms_of_answers(rest: Rest) -> None:
    queries = [{"query": TEXT, "texts": TEXTS}, {"query": "dull", "texts": TEXTS[:1]}]
    ranked = rest.post("text-ranking", {"inputs": queries, "parameters": {"return_text": True}}).value
    assert [len(answer) for answer in ranked] == [3, 1]
    scores = [item["score"] for item in ranked[0]]
    assert scores == sorted(scores, reverse=True) and all(0 < score < 1 for score in scores)
    assert all(item["text"] == TEXTS[item["index"]] for item in ranked[0])
    parameters = {"candidate_labels": LABELS}
    one, several = (rest.post("zero-shot-classification", {"sequences": s, **parameters}).value for s in (TEXT, TEXTS))
    assert set(one) == {"sequence", "labels", "scores"} and one["sequence"] == TEXT
    assert [answer["sequence"] for answer in several] == TEXTS
    words = rest.post("fill-mask", {"inputs": ["a [MASK]", MASKED]}).value
    assert [set(word) for word in words[0]] == [{"score", "token", "token_str", "sequence"}] * 5
    assert [len(place) for place in words[1]] == [5, 5]


def test_hugging_faces_client(server: TorchServe, rest: Rest) -> None:
    def client(task: str) -> InferenceClient:
        return InferenceClient(model=f"{server.inference_url}/predictions/{task}", token=server.inference_key)

    found = client("zero-shot-classification").zero_shot_classification(
        TEXT, LABELS, multi_label=True, hypothesis_template="the story is {}"
    )
    assert {element.label for element in found} == set(LABELS)
    assert [element.score for element in found] == sorted((element.score for element in found), reverse=True)
    cosines = client("sentence-similarity").sentence_similarity(TEXT, TEXTS)
    assert cosines[2] == pytest.approx(1, abs=1e-5) and len(cosines) == 3
    words = client("fill-mask").fill_mask("the [MASK] is good", top_k=3)
    assert len(words) == 3 and all(word.sequence.endswith(" is good") for word in words)
    words = client("fill-mask").fill_mask("the [MASK] is good", targets=["film", "dog"])
    assert {word.token_str for word in words} == {"film", "dog"}


def wrong() -> Iterator[tuple[str, Any, str]]:
    ranking, similar, zero, mask = "text-ranking", "sentence-similarity", "zero-shot-classification", "fill-mask"
    yield ranking, {"inputs": TEXT}, "inputs is a string; an object with 'query' and 'texts' is expected"
    yield ranking, {"query": TEXT}, "has no 'texts'"
    yield ranking, {"query": TEXT, "texts": []}, "texts is an empty list; at least one text is expected"
    yield ranking, {"query": TEXT, "texts": [TEXT, " "]}, "texts[1] is empty"
    yield ranking, {"query": TEXT, "texts": [TEXT], "top": 1}, "unknown parameter 'top'; allowed:"
    yield ranking, {"query": TEXT, "texts": [TEXT] * 1025}, "1025"
    yield ranking, {"inputs": [{"query": TEXT, "texts": [TEXT]}] * 5}, "at most 4"
    yield similar, {"inputs": {"source_sentence": TEXT}}, "has no 'sentences'"
    yield similar, {"inputs": {"source_sentence": 1, "sentences": [TEXT]}}, "source_sentence is a number"
    yield similar, {"inputs": {"source_sentence": TEXT, "sentences": [TEXT] * 1024}}, "1025"
    yield zero, {"inputs": TEXT}, "the parameter 'candidate_labels' is missing"
    yield (
        zero,
        {"inputs": TEXT, "parameters": {"candidate_labels": []}},
        "parameter 'candidate_labels' is a list; allowed",
    )
    yield zero, {"inputs": TEXT, "parameters": {"candidate_labels": ["a"] * 1025}}, "1025"
    yield zero, {"inputs": "", "parameters": {"candidate_labels": "a"}}, "inputs is empty"
    yield (
        zero,
        {"inputs": TEXT, "parameters": {"candidate_labels": "a", "hypothesis_template": "x"}},
        "one {} where the label goes",
    )
    yield (
        zero,
        {"inputs": TEXT, "parameters": {"candidate_labels": "a " * 99}},
        "leaves no room for the text among 32 tokens",
    )
    yield mask, {"inputs": TEXT}, "inputs has no mask token among its first 32 tokens; write [MASK] where"
    yield mask, {"inputs": ["a [MASK]", TEXT]}, "inputs[1] has no mask token"
    yield mask, {"inputs": "a [MASK]", "parameters": {"top_k": 0}}, "a whole number from 1 to 1000"
    yield mask, {"inputs": "a [MASK]", "parameters": {"targets": []}}, "a word or a list of words"
    yield mask, {"inputs": {"text": "a [MASK]"}}, "inputs is an object"
    yield mask, b"\xff[MASK]", "the body is not UTF-8"


def test_each_mistake_is_answered_by_its_reason_and_neighbours_by_theirs(rest: Rest, grpc: Grpc) -> None:
    good = {task: rest.post(task, body).body for task, body, _, _ in reversed(RIGHT)}
    bodies = {task: body for task, body, _, _ in reversed(RIGHT)}
    for task, body, said in wrong():
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        reply = rest.post(task, raw, None if isinstance(body, bytes) else "application/json")
        assert reply.status == 400 and said in reply.message, (body, reply.body)
        assert grpc.predict(task, raw) == Reply(400, reply.body)
        assert rest.post(task, bodies[task]).body == good[task]


def test_mistakes_among_right_requests(server: TorchServe, handlers: dict[str, Any]) -> None:
    bad = [
        Wrong(task, body, re.escape(said), None if isinstance(body, bytes) else JSON) for task, body, said in wrong()
    ]
    good = [Right(task, body, _held(handlers[task], *asked)) for task, body, *asked in RIGHT]
    lines = answered_wrongly(server, bad, good, count=300)
    assert not lines, f"{len(lines)} wrong: " + "\n".join(lines[:10])


def _held(handler: Any, inputs: Any, parameters: Any) -> Callable[[Any], bool]:
    (expected,) = handler.respond(inputs, parameters)
    return lambda value: handler.compare(expected, value) <= handler.serving["tolerance"]
