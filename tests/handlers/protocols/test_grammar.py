"""What a text has to match, as each form says it, and what is refused."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from asked_for_text import USER, ask, completion, hf, refusal
from mutated import mutated

from handlers.errors import BadRequest
from handlers.protocols.grammar import ANY_OBJECT, MAX_NESTING, MAX_REGEX, MAX_SCHEMA, REGEX, SCHEMA, Grammar

OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}}
TEXT = '{"type":"object","properties":{"a":{"type":"integer"}}}'


def nested(depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(depth - 1):
        found = {"items": found}
    return found


def test_each_form_says_it() -> None:
    named = {"name": "n", "schema": OBJECT, "strict": True, "description": "d"}
    for given in (
        completion(response_format={"type": "json_schema", "json_schema": named}),
        completion(
            response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": OBJECT, "strict": None}}
        ),
        ask({"messages": [USER], "response_format": {"type": "json_schema", "json_schema": named}}),
        completion(guided_json=OBJECT),
        completion(guided_json=json.dumps(OBJECT)),
        hf(grammar={"type": "json", "value": OBJECT}),
        hf(grammar={"type": "json", "value": json.dumps(OBJECT)}),
        hf(grammar={"type": "json_schema", "value": named}),
        completion(response_format={"type": "json_object", "value": OBJECT}),
    ):
        assert given.grammar == Grammar(SCHEMA, TEXT)
    assert completion(response_format={"type": "json_object"}).grammar == Grammar(SCHEMA, ANY_OBJECT)
    for given in (completion(guided_regex="a+ ?"), hf(grammar={"type": "regex", "value": "a+ ?"})):
        assert given.grammar == Grammar(REGEX, "a+ ?")
    assert completion(guided_choice=["a.b", "c"]).grammar == Grammar(REGEX, r"a\.b|c")
    for given in (completion(), completion(response_format={"type": "text"}), completion(response_format=None), hf()):
        assert given.grammar is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"response_format": {}}, "'response_format'.type is null; allowed: text, json_object, json_schema"),
        ({"response_format": {"type": "xml"}}, "'response_format'.type is \"xml\"; allowed: text, json_ob"),
        ({"response_format": {"type": ["text"]}}, "'response_format'.type is a list; allowed"),
        (
            {"response_format": {"type": "text", "schema": {}}},
            "'response_format' has the unknown key 'schema'; allowed",
        ),
        ({"response_format": {"type": "json_schema"}}, "'response_format'.json_schema is null; an object {"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
            "'response_format'.json_schema has no",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "strict": 1}}},
            "'response_format'.json_schema.strict is a number; allowed: true or false",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": [1]}}},
            "'response_format'.json_schema.schema is a list; a JSON schema is expected: an object",
        ),
        ({"guided_json": "{"}, "'guided_json' is a text that is no JSON"),
        ({"guided_json": "[" * 5000}, "'guided_json' is a text that is no JSON"),
        ({"guided_json": "3"}, "'guided_json' is a number; a JSON schema is expected"),
        ({"guided_json": " " * (MAX_SCHEMA + 1)}, "'guided_json' has 65537 characters; at most 65536 are allowed"),
        ({"guided_json": {"enum": ["a" * MAX_SCHEMA]}}, "'guided_json' has 65549 characters as JSON; at most 65536"),
        ({"guided_json": nested(MAX_NESTING + 1)}, "'guided_json' is nested more than 64 deep"),
        ({"guided_json": {"multipleOf": 10.007}}, "'guided_json': multipleOf is 10.007; its digits, without the"),
        ({"guided_json": {"multipleOf": 1e300}}, "'guided_json': multipleOf is 1e+300; its digits"),
        ({"guided_json": {"pattern": "a{1001}"}}, "'guided_json': the pattern repeats something {1001} times; at most"),
        (
            {"guided_json": {"patternProperties": {"a{1,5000}": {}}}},
            "'guided_json': the pattern of a property's name re",
        ),
        (
            {"guided_regex": ""},
            "'guided_regex' is a string; a regular expression is expected: a text that is not empty",
        ),
        ({"guided_regex": "a" * (MAX_REGEX + 1)}, "'guided_regex' has 8193 characters; at most 8192 are allowed"),
        ({"guided_regex": "a\\"}, "'guided_regex' ends in a backslash"),
        ({"guided_regex": "\ud800"}, "'guided_regex' holds a lone surrogate at character 0"),
        ({"guided_regex": "a{99999999999}"}, "'guided_regex' repeats something {99999999999} times; at most 1000"),
        ({"guided_choice": []}, "'guided_choice' is a list; a list of texts is expected, none empty"),
        ({"guided_choice": ["a", ""]}, "'guided_choice' is a list; a list of texts is expected, none empty"),
        ({"guided_regex": "a", "guided_json": {}}, "'guided_json', 'guided_regex' each say what the text has to match"),
    ],
)
def test_what_is_refused(given, message) -> None:
    assert refusal({"prompt": "a"} | given).startswith(message)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "'grammar'.type is null; allowed: json, regex, json_schema, json_object"),
        ({"type": "regex"}, "'grammar' has no 'value': a JSON schema or a regular expression"),
        ({"type": "regex", "value": {}}, "'grammar'.value is an object; a regular expression is expected"),
        ({"type": "json", "value": 3}, "'grammar'.value is a number; a JSON schema is expected"),
        ({"type": "json", "value": {}, "other": 1}, "'grammar' has the unknown key 'other'; allowed: 'type', 'value'"),
    ],
)
def test_what_huggingface_s_form_refuses(value, message) -> None:
    assert refusal({"inputs": "a", "parameters": {"grammar": value}}).startswith(message)


def test_what_is_just_small_enough() -> None:
    assert completion(guided_json=nested(MAX_NESTING)).grammar is not None
    assert completion(guided_json={"multipleOf": 0.01, "pattern": "a{1000}"}).grammar is not None
    assert completion(guided_regex="a" * MAX_REGEX).grammar is not None


def test_formats_that_are_changed_are_refused_in_one_sentence() -> None:
    dice = random.Random(3)
    right = {
        "prompt": "a",
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": OBJECT, "strict": True}},
    }
    refused = 0
    for _ in range(1000):
        try:
            document = json.loads(mutated(right, dice))
        except ValueError:
            continue
        try:
            ask(document)
        except BadRequest as error:
            refused += 1
            assert 10 < len(str(error)) < 2500 and "\n" not in str(error)
    assert refused > 300
