"""The contract's request table, over REST and gRPC, against the answers that the handler gives in this process."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from live_client import FORM, JSON, Grpc, Reply, Rest, multipart
from served import MAX_INPUTS, MAX_LENGTH, Served

from archiver.torchserve.server import TorchServe
from handlers.inputs.text import TextInput

NAMES = ("films", "pairs", "tags", "vectors", "plain")
TEXT = "this film is very good"
TEXTS = [TEXT, "dull", "the man plays music, not one dog sings in the warm scene!"]


@pytest.fixture(scope="module")
def rest(server: TorchServe) -> Iterator[Rest]:
    with Rest(server) as client:
        yield client


@pytest.fixture(scope="module")
def grpc(server: TorchServe) -> Iterator[Grpc]:
    with Grpc(server) as client:
        yield client


def _check(reply: Reply, served: Served, inputs: list[TextInput], single: bool, **parameters: Any) -> None:
    """A 200 in compact JSON whose numbers are those of the handler in this process."""
    assert reply.status == 200, reply.body
    value = reply.value
    assert reply.body == json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    answers = [value] if single else value
    expected = served.handler.respond(inputs, parameters)
    assert len(answers) == len(expected)
    for answer, right in zip(answers, expected, strict=True):
        assert served.handler.compare(right, answer) <= served.tolerance


def _refused(reply: Reply, *parts: str) -> None:
    assert reply.status == 400, reply.body
    assert set(reply.value) == {"error"} and set(reply.value["error"]) == {"code", "message"}
    assert reply.value["error"]["code"] == 400
    assert all(part in reply.message for part in parts), reply.message


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("inputs", "single"),
    [
        (TEXT, True),
        ([TEXT], False),
        (TEXTS, False),
        ({"text": TEXT, "text_pair": "a dull story"}, True),
        ([{"text": TEXT, "text_pair": "a dull story"}, {"text": "dull"}, TEXT], False),
        ("größe ≥ naïve — ничего", True),
        ("good 🎬👩‍👩‍👧 film 🙂", True),
    ],
)
def test_each_form_of_input_is_answered_alike_over_rest_and_grpc(
    rest: Rest, grpc: Grpc, archives: dict[str, Served], name: str, inputs: Any, single: bool
) -> None:
    meant = [
        TextInput(item) if isinstance(item, str) else TextInput(**item) for item in ([inputs] if single else inputs)
    ]
    body = json.dumps({"inputs": inputs}, ensure_ascii=False).encode()
    over_rest, over_grpc = rest.post(name, body), grpc.predict(name, body)
    _check(over_rest, archives[name], meant, single)
    assert over_rest.headers["content-type"] == JSON
    assert over_grpc == Reply(200, over_rest.body)
    assert grpc.predict(name, body, field="body").body == over_rest.body


def test_the_forms_of_the_answers(rest: Rest, archives: dict[str, Served]) -> None:
    best = rest.post("films", {"inputs": TEXT}).value
    assert [set(item) for item in best] == [{"label", "score"}]
    assert best[0]["label"] in ("LABEL_0", "LABEL_1") and 0.5 <= best[0]["score"] <= 1

    ranked = rest.post("pairs", {"inputs": [TEXT, "dull"], "parameters": {"top_k": 2}}).value
    assert [len(item) for item in ranked] == [2, 2]
    every = rest.post("pairs", {"inputs": TEXT, "parameters": {"top_k": 99}}).value
    assert {item["label"] for item in every} == {"no", "maybe", "yes"}
    assert math.isclose(sum(item["score"] for item in every), 1, abs_tol=1e-5)
    assert [item["score"] for item in every] == sorted((item["score"] for item in every), reverse=True)
    assert ranked[0] == every[:2]

    reply = rest.post("tags", {"inputs": TEXT, "parameters": {"top_k": 3}})
    assert {item["label"] for item in reply.value} == {"funny", "dull", "größe"}
    assert "größe".encode() in reply.body
    assert not math.isclose(sum(item["score"] for item in reply.value), 1, abs_tol=1e-3)  # a sigmoid each

    vector = rest.post("vectors", {"inputs": TEXT}).value
    assert len(vector) == 32 and all(isinstance(number, float) for number in vector)
    unit = rest.post("vectors", {"inputs": [TEXT, "dull"], "parameters": {"normalize": True}})
    assert [math.isclose(math.hypot(*row), 1, rel_tol=1e-5) for row in unit.value] == [True, True]
    _check(unit, archives["vectors"], [TextInput(TEXT), TextInput("dull")], False, normalize=True)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (TEXT.encode(), "text/plain"),
        (TEXT.encode(), "text/plain; charset=utf-8"),
        (TEXT.encode(), "Text/Plain"),
        (TEXT.encode(), None),
        (TEXT.encode(), "application/octet-stream"),
        (json.dumps({"inputs": TEXT}).encode(), JSON),
        (json.dumps({"inputs": TEXT}).encode(), "application/json; charset=utf-8"),
        (json.dumps({"inputs": TEXT}).encode(), "APPLICATION/JSON"),
        (b"\n  " + json.dumps({"inputs": TEXT}).encode(), None),
        (json.dumps({"inputs": TEXT}).encode(), "application/octet-stream"),
        (f"data={TEXT.replace(' ', '+')}".encode(), FORM),
        (b"body=" + json.dumps({"inputs": TEXT}).encode(), FORM),
        multipart({"data": TEXT.encode()}),
        multipart({"body": TEXT.encode()}, "text/plain"),
        multipart({"data": json.dumps({"inputs": TEXT}).encode()}),
        multipart({"body": json.dumps({"inputs": TEXT}).encode()}, "application/json; charset=utf-8"),
    ],
)
def test_one_input_by_any_content_type(
    rest: Rest, archives: dict[str, Served], body: bytes, content_type: str | None
) -> None:
    reply = rest.post("films", body, content_type)
    _check(reply, archives["films"], [TextInput(TEXT)], True)
    assert reply.headers["content-type"] == JSON


def test_text_plain_is_text_whatever_it_looks_like(rest: Rest, grpc: Grpc, archives: dict[str, Served]) -> None:
    body = json.dumps({"inputs": TEXT})
    _check(rest.post("films", body, "text/plain"), archives["films"], [TextInput(body)], True)
    _check(grpc.predict("films", b"[1, 2]"), archives["films"], [TextInput("[1, 2]")], True)
    _refused(grpc.predict("films", b"{ no JSON"), "not valid JSON", "a body that begins with {")


@pytest.mark.parametrize("name", NAMES)
def test_a_long_text_is_cut_unless_that_is_forbidden(
    rest: Rest, grpc: Grpc, archives: dict[str, Served], name: str
) -> None:
    text = "a very good film " * 6000  # 100 kB
    _check(rest.post(name, {"inputs": text}), archives[name], [TextInput(text)], True)
    _check(rest.post(name, text, "text/plain"), archives[name], [TextInput(text)], True)
    whole = {"inputs": ["dull", text], "parameters": {"truncation": False}}
    for reply in (rest.post(name, whole), grpc.predict(name, whole)):
        _refused(reply, "inputs[1] has 2400", "tokens", f"at most {MAX_LENGTH}")
    fitting = {"inputs": TEXT, "parameters": {"truncation": False}}
    _check(rest.post(name, fitting), archives[name], [TextInput(TEXT)], True)


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        (b"", ["empty"]),
        (b'{"inputs": ', ["not valid JSON", "line 1 column"]),
        (b'{"inputs": "caf\xe9"}', ["not UTF-8", "0xe9"]),
        (b"[1, 2]", ["a list", "an object is expected"]),
        (b'{"input": "a"}', ["unknown key 'input'", "'inputs', 'parameters'"]),
        (b'{"inputs": []}', ["empty list", f"1 to {MAX_INPUTS}"]),
        (json.dumps({"inputs": ["a"] * 9}).encode(), ["9 elements", f"at most {MAX_INPUTS}"]),
        (b'{"inputs": ["a", "", "b"]}', ["inputs[1] is empty"]),
        (b'{"inputs": ["a", 3]}', ["inputs[1] is a number"]),
        (b'{"inputs": {"text_pair": "a"}}', ["inputs has no 'text'"]),
        (b'{"inputs": "a", "parameters": {"topk": 1}}', ["unknown parameter 'topk'", "'top_k', 'truncation'"]),
        (b'{"inputs": "a", "parameters": {"top_k": 0}}', ["'top_k' is 0", "a whole number from 1"]),
        (b'{"inputs": "a", "parameters": {"truncation": "no"}}', ["'truncation' is \"no\"", "true or false"]),
        (b'{"inputs": "\\ud800"}', ["lone surrogate"]),
    ],
)
def test_a_mistake_is_told_with_what_is_allowed(rest: Rest, grpc: Grpc, body: bytes, parts: list[str]) -> None:
    over_rest = rest.post("films", body)
    _refused(over_rest, *parts)
    assert over_rest.headers["content-type"] == JSON
    over_grpc = grpc.predict("films", body)
    if not body.startswith(b"["):  # without a content type that is a text
        _refused(over_grpc, parts[0])


def test_curls_default_content_type_is_told_what_to_send(rest: Rest, server: TorchServe) -> None:
    """TorchServe parses a form before the handler sees it, and keeps nothing of a body that is no form."""
    body = json.dumps({"inputs": TEXT})
    _refused(rest.post("films", body, FORM), "Content-Type: application/json", "no field 'data' or 'body'")
    if shutil.which("curl"):
        typed = ["curl", "-s", "-H", f"Authorization: Bearer {server.inference_key}", "-d", body]
        done = subprocess.run([*typed, server.prediction_url("films")], capture_output=True, timeout=30, check=True)
        _refused(Reply(400, done.stdout), "Content-Type: application/json")


@pytest.mark.parametrize("name", NAMES)
def test_a_body_beyond_the_tasks_own_limit_is_told_the_numbers(rest: Rest, grpc: Grpc, name: str) -> None:
    body = b"x" * 2_200_000
    for reply in (rest.post(name, body, "text/plain"), grpc.predict(name, body)):
        assert reply.status == 413
        assert "the body has 2200" in reply.value["error"]["message"]
        assert "at most 2097152 are allowed" in reply.value["error"]["message"]
    document = {"inputs": "x" * 2_200_000}
    assert (rest.post(name, document).status, grpc.predict(name, document).status) == (413, 413)


def test_what_the_frontend_refuses_keeps_its_own_answer(rest: Rest, grpc: Grpc) -> None:
    body = {"inputs": TEXT}
    for token in (None, "wrong"):
        reply = rest.post("films", body, token=token)
        assert (reply.status, reply.value["code"], reply.value["type"]) == (400, 400, "InvalidKeyException")
        refused = grpc.predict("films", body, token=token)
        assert refused.status == 400 and b"Token Authorization failed" in refused.body
    reply = rest.post("absent", body)
    assert (reply.status, reply.value["type"]) == (404, "ModelNotFoundException")
    assert grpc.predict("absent", body).status == 404
    assert rest.post("films/9.9", body).status == 404
    large = b"x" * 35_000_000  # config.properties allows 32 MiB
    assert rest.post("films", large, "text/plain").status == 413
    assert grpc.predict("films", large).status in (413, 500)  # the stream is reset, which has no status of its own
    assert rest.post("films", body).status == grpc.predict("films", body).status == 200
