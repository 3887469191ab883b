"""What a request may be and what a bad one is told: the contract's table of requests, word by word."""

from __future__ import annotations

import json

import pytest

from handlers.errors import BadRequest
from handlers.inputs.checks import MAX_CHARACTERS, Parameter, is_bool
from handlers.inputs.text import Text, TextInput
from handlers.protocols.document import read_document
from handlers.protocols.huggingface.forms import parse
from handlers.protocols.request import Request, Spec
from handlers.tasks.text.classification import TextClassificationHandler
from handlers.tasks.text.feature_extraction import FeatureExtractionHandler

PARAMETERS = Text.parameters | TextClassificationHandler.parameters | FeatureExtractionHandler.parameters
JSON = {"content-type": "application/json"}
JSON_UTF8 = {"Content-Type": "application/json; charset=utf-8"}


def ask(value: object, headers: dict[str, object] | None = None, field: str = "body", most: int = 4) -> Request:
    return parsed({field: value}, headers or {}, most)


def parsed(row: dict[str, object], headers: dict[str, object], most: int = 4) -> Request:
    text = Text(None)  # type: ignore[arg-type]  # no tokenizer is needed to read a request
    document = read_document(row, headers, Text.allowed, Text.max_bytes)
    return parse(document, Spec(text.decode, PARAMETERS, most, Text.allowed))


def asked(document: object) -> Request:
    """The same document in every way it can arrive; all must mean the same."""
    body = json.dumps(document, ensure_ascii=False).encode()
    ways = [
        ask(document, JSON),
        ask(document, {}),
        ask(body),
        ask(body, JSON_UTF8),
        ask(body, {"content-type": "application/x-www-form-urlencoded"}),
        ask(body, field="data"),
        ask(bytearray(body), {"data": {"content-type": "application/octet-stream"}}, "data"),
        ask(b"\xef\xbb\xbf" + body),
        ask(b"\xef\xbb\xbf" + body, JSON),
        ask(b"  \r\n" + body),
    ]
    assert all(way == ways[0] for way in ways)
    return ways[0]


def test_one_input_one_answer_a_list_a_list():
    assert asked({"inputs": "a fine film"}) == Request((TextInput("a fine film"),), True, {})
    assert asked({"inputs": ["a", "b"], "parameters": {"top_k": 2}}) == Request(
        (TextInput("a"), TextInput("b")), False, {"top_k": 2}
    )
    assert asked({"inputs": ["a"]}).single is False


def test_pairs():
    pair = {"text": "naïve", "text_pair": "日本"}
    assert asked({"inputs": pair}) == Request((TextInput("naïve", "日本"),), True, {})
    found = asked({"inputs": [pair, "alone", {"text": "c"}, {"text": "d", "text_pair": None}]})
    assert found.inputs == (TextInput("naïve", "日本"), TextInput("alone"), TextInput("c"), TextInput("d"))


@pytest.mark.parametrize(
    ("value", "headers"),
    [
        ("a fine film", {"content-type": "text/plain"}),
        (b"a fine film", {"content-type": "text/plain; charset=UTF-8"}),
        (b"a fine film", {}),
        (b"\xef\xbb\xbfa fine film", {}),
        ("\ufeffa fine film", {"content-type": "text/plain"}),
        (b"a fine film", {"content-type": "application/octet-stream"}),
    ],
)
def test_plain_text_is_one_input(value, headers):
    for field in ("body", "data"):
        assert ask(value, headers, field) == Request((TextInput("a fine film"),), True, {})


def test_text_plain_that_looks_like_json_is_text():
    for text in ('{"inputs": "x"}', "{ half a brace"):
        assert ask(text, {"content-type": "text/plain"}).inputs == (TextInput(text),)
        assert ask(text.encode(), {"content-type": "text/plain"}).inputs == (TextInput(text),)


def test_without_a_content_type_only_an_object_is_json():
    for text in ("[1, 2]", "3", "null", '"quoted"', "true"):
        assert ask(text.encode()).inputs == (TextInput(text),)


def test_a_fields_own_content_type_wins():
    headers = {"content-type": "multipart/form-data", "data": {"content-type": "text/plain"}}
    assert ask(b'{"inputs": 1}', headers, "data").inputs == (TextInput('{"inputs": 1}'),)


def test_parameters_that_are_allowed():
    for parameters in ({}, None, {"truncation": False}, {"normalize": True}, {"top_k": 1}, {"top_k": 10**30}):
        assert asked({"inputs": "a", "parameters": parameters}).parameters == (parameters or {})


def test_parameters_may_stand_beside_inputs():
    assert asked({"inputs": "a", "normalize": True, "parameters": {"top_k": 1}}).parameters == {
        "normalize": True,
        "top_k": 1,
    }
    for document, problem in (
        (
            {"inputs": "a", "normalize": True, "parameters": {"normalize": True}},
            "'normalize' stands in the body and in",
        ),
        ({"inputs": "a", "normalize": 1}, "parameter 'normalize' is 1; allowed: true or false"),
        ({"inputs": "a", "normalize": True, "parameters": 5}, "'parameters' is a number"),
        ({"inputs": "a", "normalize": True, "other": 1}, "unknown key 'other' in the body"),
    ):
        with pytest.raises(BadRequest, match=problem):
            asked(document)


DEEP = b"[" * 100_000
BODIES = [
    (b"", {}, "the body is empty; allowed: "),
    ("", {"content-type": "text/plain"}, "inputs is empty; at least one character"),
    (b" \n", {}, "inputs is empty"),
    (b"caf\xe9", {}, "not UTF-8: byte 3 is 0xe9"),
    (b"\xff\xfe", JSON, "not UTF-8: byte 0 is 0xff"),
    (b"\xc3(", {"content-type": "text/plain"}, "not UTF-8: byte 0"),
    (b'{"inputs": ', JSON, "not valid JSON: Expecting value at line 1 column 12$"),
    (b"not json", JSON_UTF8, "not valid JSON: Expecting value at line 1 column 1$"),
    (b'{"inputs": "a"', {}, r"not valid JSON: .*begins with \{ is read as JSON; send plain text as text/plain"),
    (b"{ an aside } and a text", {}, r"not valid JSON: .*begins with \{"),
    (b'{"other": 1}', {}, "unknown key 'other' in the body; allowed: 'inputs', 'parameters'"),
    (b"{}", {}, "has no 'inputs'"),
    (b"[1]", JSON, "the JSON body is a list, an object is expected"),
    ([1], JSON, "the JSON body is a list"),
    (b"7", JSON, "the JSON body is a number"),
    (b"null", JSON, "the JSON body is null"),
    (None, JSON, "the JSON body is null"),
    ("text", JSON, "the JSON body is a string"),
    (True, {}, "the JSON body is a boolean"),
    (b'{"inputs": ' + DEEP, {}, "nested too deeply"),
    (DEEP, JSON, "nested too deeply"),
    (b'{"a":' * 100_000, {}, "nested too deeply"),
    (b'{"inputs": ' + b"9" * 5000 + b"}", {}, "not valid JSON: a number is too long"),
]


@pytest.mark.parametrize(("value", "headers", "message"), BODIES, ids=[body[2][:40] for body in BODIES])
def test_bodies_that_are_refused(value, headers, message):
    with pytest.raises(BadRequest, match=message):
        ask(value, headers)


DOCUMENTS = [
    ({"inputs": []}, "'inputs' is an empty list; send 1 to 4 inputs"),
    ({"inputs": ["a"] * 5}, "'inputs' has 5 elements; at most 4 are allowed"),
    ({"inputs": None}, "inputs is null; a text or an object with 'text' and 'text_pair' is expected"),
    ({"inputs": 3}, "inputs is a number"),
    ({"inputs": 1e400}, "inputs is a number"),
    ({"inputs": float("nan")}, "inputs is a number"),
    ({"inputs": int("9" * 4000)}, "inputs is a number"),
    ({"inputs": True}, "inputs is a boolean"),
    ({"inputs": ["a", 3]}, r"inputs\[1\] is a number"),
    ({"inputs": ["a", ["b"]]}, r"inputs\[1\] is a list"),
    ({"inputs": ["a", "b", ""]}, r"inputs\[2\] is empty"),
    ({"inputs": ["\u2003\t", "b"]}, r"inputs\[0\] is empty"),
    ({"inputs": {}}, "inputs has no 'text'"),
    ({"inputs": {"text_pair": "b"}}, "inputs has no 'text'"),
    ({"inputs": {"text": 1}}, "inputs.text is a number; a text is expected"),
    ({"inputs": ["a", {"text": "b", "text_pair": ""}]}, r"inputs\[1\].text_pair is empty"),
    ({"inputs": {"text": "a", "pair": "b"}}, "inputs has the unknown key 'pair'; allowed: 'text', 'text_pair'"),
    ({"inputs": "a", "options": {}, "x": 1}, "unknown key 'options', 'x' in the body"),
    ({"inputs": "a", **{f"k{i}": 1 for i in range(9)}}, "and 4 more in the body"),
    ({"inputs": "a", "parameters": []}, "'parameters' is a list, an object is expected"),
    (
        {"inputs": "a", "parameters": {"topk": 1}},
        "unknown parameter 'topk'; allowed: 'dimensions', 'normalize', 'top_k', 'trunc",
    ),
    ({"inputs": "a", "parameters": {"top_k": 0}}, "parameter 'top_k' is 0; allowed: a whole number from 1"),
    ({"inputs": "a", "parameters": {"top_k": -1}}, "parameter 'top_k' is -1"),
    ({"inputs": "a", "parameters": {"top_k": True}}, "parameter 'top_k' is true"),
    ({"inputs": "a", "parameters": {"top_k": 1.5}}, "parameter 'top_k' is 1.5"),
    ({"inputs": "a", "parameters": {"top_k": "2"}}, "parameter 'top_k' is \"2\""),
    ({"inputs": "a", "parameters": {"top_k": None}}, "parameter 'top_k' is null"),
    ({"inputs": "a", "parameters": {"top_k": [[1]]}}, "parameter 'top_k' is a list"),
    ({"inputs": "a", "parameters": {"normalize": 1}}, "parameter 'normalize' is 1; allowed: true or false"),
    ({"inputs": "a", "parameters": {"truncation": "no"}}, "parameter 'truncation' is \"no\""),
    ({"inputs": ["a", "x\ud800y"]}, r"inputs\[1\] holds a lone surrogate at character 1"),
    ({"inputs": "x" * (MAX_CHARACTERS + 1)}, f"inputs has {MAX_CHARACTERS + 1} characters; at most {MAX_CHARACTERS}"),
]


@pytest.mark.parametrize(("document", "message"), DOCUMENTS, ids=[case[1][:40] for case in DOCUMENTS])
def test_documents_that_are_refused(document, message):
    with pytest.raises(BadRequest, match=message):
        ask(document, JSON)
    with pytest.raises(BadRequest, match=message):
        ask(json.dumps(document).encode())


def test_a_request_without_a_body_names_what_it_has():
    with pytest.raises(BadRequest, match="no body: found 'text', 'x'; send a body, or a form field"):
        parsed({"text": b"a", "x": b"b"}, {})
    with pytest.raises(BadRequest, match="found nothing"):
        parsed({}, {})


def test_messages_stay_short_and_can_be_sent():
    long = "k\ud800" * 500
    for document in ({"inputs": "a", long: 1}, {"inputs": "a", "parameters": {long: 1}}, {"inputs": {long: 1}}):
        with pytest.raises(BadRequest, match="unknown") as caught:
            ask(document, JSON)
        assert len(str(caught.value).encode()) < 1000
    with pytest.raises(BadRequest, match="parameter 'top_k' is \"xxx") as caught:
        ask({"inputs": "a", "parameters": {"top_k": "x" * 100_000}}, JSON)
    assert len(str(caught.value)) < 300


def test_a_deep_parameter_is_its_requests_mistake():
    """Read at the edge of what json can nest, it must not fail when it is shown."""
    for depth in range(300, 1000, 10):
        body = b'{"inputs": "a", "parameters": {"top_k": ' + b"[" * depth + b"]" * depth + b"}}"
        with pytest.raises(BadRequest, match="parameter 'top_k' is a list|nested too deeply"):
            ask(body)


def test_an_input_that_is_an_object_may_be_the_body():
    def read(document: object) -> Request:
        known = {"raw": Parameter(is_bool, "true or false"), "cut": Parameter(is_bool, "true or false")}
        decode = lambda value, where: value  # noqa: E731
        return parse(document, Spec(decode, known, 4, "…", ("query", "texts")))

    whole = {"query": "q", "texts": ["a"]}
    assert read({**whole, "raw": True}) == read({"inputs": whole, "parameters": {"raw": True}})
    assert read({**whole, "raw": True}) == Request((whole,), True, {"raw": True})
    assert read({**whole, "raw": True, "parameters": {"cut": False}}).parameters == {"raw": True, "cut": False}
    assert read({"query": "q", "parameters": {"cut": True}}) == Request(({"query": "q"},), True, {"cut": True})
    for document, problem in (
        ({**whole, "other": 1}, "unknown parameter 'other'"),
        ({**whole, "raw": True, "parameters": {"raw": True}}, "'raw' stands in the body and in 'parameters'"),
        ({**whole, "raw": True, "parameters": [1]}, "'parameters' is a list"),
        ({"inputs": whole, "query": "q"}, "unknown key 'query'"),
    ):
        with pytest.raises(BadRequest, match=problem):
            read(document)
