"""Request bodies that no one can answer, made from a seed: each is wrong by the way it is made."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from live_client import FORM, JSON, multipart

_WORDS = ["a", "good", "dull", "film", "größe", "🎬", "naïve", "ничего", "映画", "ok"]
_TYPES: tuple[str | bytes | None, ...] = (
    JSON,
    "application/json; charset=utf-8",
    "text/plain",
    "text/plain; charset=utf-16",
    "application/octet-stream",
    "image/png",
    "multipart/form-data",
    "multipart/form-data; boundary=x",
    FORM,
    b"text/\xff\xe9",
    b"application/json\xc3\xa9; charset=\x80",
    ";;;",
    "x" * 3000,
    None,
)


@dataclass(frozen=True)
class Case:
    """One request. grpc: whether the body is wrong over gRPC too, where nothing says what it is."""

    kind: str
    body: bytes
    content_type: str | bytes | None = JSON
    headers: dict[str, str | bytes] = field(default_factory=dict)
    grpc: bool = True


def cases(count: int, seed: int) -> list[Case]:
    """`count` malformed requests, the kinds in turn."""
    chance = random.Random(seed)
    makers: list[Callable[[random.Random], Case]] = [
        _cut_json,
        _random_bytes,
        _half_utf8,
        _wrong_type,
        _wrong_parameters,
        _empty,
        _nested,
        _not_json,
        _odd_headers,
        _broken_form,
    ]
    made = [makers[index % len(makers)](chance) for index in range(count - 20)]
    made += [Case("huge", b'{"inputs": "' + b"x" * 1_200_000 + b'"}') for _ in range(10)]
    made += [Case("nested far", b'{"inputs":' + b"[" * chance.randint(50_000, 200_000)) for _ in range(10)]
    chance.shuffle(made)
    return made


def _text(chance: random.Random) -> str:
    return " ".join(chance.choices(_WORDS, k=chance.randint(1, 12)))


def _cut_json(chance: random.Random) -> Case:
    whole = json.dumps({"inputs": [_text(chance)], "parameters": {"top_k": 2}}).encode()
    return Case("cut JSON", whole[: chance.randint(1, len(whole) - 1)])


def _random_bytes(chance: random.Random) -> Case:
    raw = bytearray(chance.randbytes(chance.randint(1, 400)))
    raw[chance.randrange(len(raw))] = 0xFF  # never part of UTF-8
    return Case("random bytes", bytes(raw), chance.choice(_TYPES))


def _half_utf8(chance: random.Random) -> Case:
    raw = (_text(chance) + " " + chance.choice("ß🎬映ж")).encode()[:-1]
    if chance.random() < 0.5:
        return Case("half UTF-8", b'{"inputs": "' + raw + b'"}', chance.choice((JSON, None, "text/plain")))
    return Case("half UTF-8", raw, chance.choice(("text/plain", None, JSON)))


def _value(chance: random.Random, depth: int = 0) -> object:
    """Anything that is neither a text nor a pair."""
    scalars: list[object] = [None, True, False, 0, -1.5, 1e308, 10**30, [], {}, "", "  \n\t", "\ud800", {"text": 3}]
    if depth < 3 and chance.random() < 0.5:
        inner = [_value(chance, depth + 1) for _ in range(chance.randint(1, 3))]
        return inner if chance.random() < 0.6 or depth == 0 else {"text": inner}
    return chance.choice(scalars)


def _wrong_type(chance: random.Random) -> Case:
    body = {"inputs": chance.choice([_value(chance), ["fine", _value(chance)], ["x"] * chance.randint(9, 300)])}
    return Case("wrong type", json.dumps(body).encode(), chance.choice((JSON, None)))


def _wrong_parameters(chance: random.Random) -> Case:
    wrong: list[dict[str, object]] = [
        {"inputs": "a", "parameters": chance.choice([3, "top_k", ["top_k"], True])},
        {"inputs": "a", "parameters": {"top_k": chance.choice([0, -1, 1.5, "2", None, True, [1], {}])}},
        {"inputs": "a", "parameters": {"truncation": chance.choice([0, 1, "false", None, []])}},
        {"inputs": "a", "parameters": {_text(chance): 1}},
        {"inputs": "a", "options": {"wait_for_model": True}},
        {"sentences": [_text(chance)]},
        {},
    ]
    return Case("wrong parameters", json.dumps(chance.choice(wrong)).encode())


def _empty(chance: random.Random) -> Case:
    return Case("empty", b"", chance.choice((JSON, "text/plain", None, FORM, "application/octet-stream")))


def _nested(chance: random.Random) -> Case:
    depth = chance.randint(2, 3000)
    opening, closing = chance.choice([("[", "]"), ('{"text":', "}"), ('{"inputs":', "}")])
    body = '{"inputs":' + opening * depth + '"a"' + closing * depth + "}"
    return Case("nested", body.encode(), chance.choice((JSON, None)))


def _not_json(chance: random.Random) -> Case:
    wrong = [
        _text(chance),
        "<inputs>a</inputs>",
        "inputs: a",
        "'inputs'",
        "{\"inputs\": 'a'}",
        "{inputs: 1}",
        "nul",
        "+1",
    ]
    wrong += ["[1, 2", "[]", "3", "null", '"text"', "NaN", "\x00", '{"inputs": "a"} trailing', '{"inputs": "a",}']
    body = chance.choice(wrong).encode()
    return Case("not JSON", body, grpc=body.startswith(b"{"))


def _odd_headers(chance: random.Random) -> Case:
    values: list[str | bytes] = [b"\xff\xe9\x80", "größe".encode(), "a" * 1500, "True", "", b"\xf0\x9f\x8e\xac", "\t x"]
    names = ["X-Odd", "describe", "explain", "Accept", "Accept-Charset", "X-Request-Id", "data", "body"]
    headers = {name: chance.choice(values) for name in chance.sample(names, 3)}
    return Case("odd headers", b'{"inputs": ', JSON, headers)


def _broken_form(chance: random.Random) -> Case:
    body, content_type = multipart(
        {chance.choice(("data", "body")): b"caf\xc3"}, chance.choice((None, "text/plain", JSON))
    )
    other, _ = multipart({"text": _text(chance).encode()})
    json_form, _ = multipart({"data": b'{"inputs": 3}'})
    chosen = chance.choice((body, other, json_form, body[: len(body) // 3], b"--"))
    return Case("broken form", chosen, content_type, grpc=False)
