"""Two thousand bodies for each form, made wrong from right ones: each gets its own answer, and no worker dies of it.

What the answer has to be says the archive's handler in this process.
"""

from __future__ import annotations

import copy
import json
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from live_client import Rest
from served import Served

from archiver.torchserve.server import TorchServe
from handlers.errors import BadRequest

COUNT = 2000
CLIENTS = 8
TENSOR = {"name": "text", "datatype": "BYTES", "shape": [2, 1], "data": ["a film", "größe 🎬"]}
# form → (model, its address, url_path of the handler's headers, a right document)
FORMS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "embeddings": (
        "vectors",
        "vectors/v1/embeddings",
        "embeddings",
        {"input": ["a film", "good"], "model": "m", "encoding_format": "float", "user": "me"},
    ),
    "kserve v1": (
        "films",
        "/v1/models/films:predict",
        "",
        {"instances": ["a film", "good"], "parameters": {"top_k": 2}},
    ),
    "kserve v2": (
        "films",
        "/v2/models/films/infer",
        "",
        {"id": "7", "inputs": [TENSOR], "parameters": {"top_k": 2}, "outputs": [{"name": "output"}]},
    ),
}
VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    1.5,
    1e308,
    "",
    "x",
    "BYTES",
    "FP32",
    [],
    [[]],
    {},
    {"a": 1},
    [1, 2],
    "😀" * 50,
    2**70,
]


@pytest.mark.parametrize("form", FORMS)
def test_two_thousand(server: TorchServe, archives: dict[str, Served], form: str) -> None:
    name, address, path, right = FORMS[form]
    dice = random.Random(form)
    bodies = [_mutated(right, dice) for _ in range(COUNT)]
    workers, processes = server.workers(name), {process.pid for process in server.processes()}

    def client(number: int) -> list[str]:
        wrong = []
        with Rest(server) as rest:
            for body in bodies[number::CLIENTS]:
                reply = rest.post(address, body)
                status, message = _expected(archives[name], body, path)
                if reply.status != status or (message is not None and message not in _message(reply.value)):
                    wrong.append(f"{body[:120]!r}: {reply.status} {reply.body[:160]!r}, expected {status} {message}")
        return wrong

    with ThreadPoolExecutor(CLIENTS) as pool:
        wrong = [line for found in pool.map(client, range(CLIENTS)) for line in found]
    assert not wrong, f"{len(wrong)} wrong:\n" + "\n".join(wrong[:10])
    assert server.workers(name) == workers
    assert {process.pid for process in server.processes()} == processes


def _expected(served: Served, body: bytes, path: str) -> tuple[int, str | None]:
    headers = {"Host": "x", "content-type": "application/json"} | ({"url_path": path} if path else {})
    try:
        served.handler.accept({"body": body}, headers)
    except BadRequest as error:
        return error.code, str(error)
    return 200, None


def _message(value: Any) -> str:
    error = value["error"]
    return error if isinstance(error, str) else str(error["message"])


def _mutated(right: dict[str, Any], dice: random.Random) -> bytes:
    """The document with one to three places changed, or its bytes cut; one in twenty stays right."""
    document: Any = copy.deepcopy(right)
    for _ in range(dice.choice((0, *[1] * 9, *[2] * 6, *[3] * 4))):
        document = _changed(document, dice)
    text = json.dumps(document, ensure_ascii=dice.random() < 0.5).encode()
    return text[: dice.randrange(len(text)) or 1] if dice.random() < 0.1 else text


def _changed(value: Any, dice: random.Random) -> Any:
    if isinstance(value, dict) and value and dice.random() < 0.85:
        key = dice.choice(list(value))
        if dice.random() < 0.15:
            del value[key]
        elif dice.random() < 0.1:
            value["other"] = dice.choice(VALUES)
        else:
            value[key] = _changed(value[key], dice)
        return value
    if isinstance(value, list) and value and dice.random() < 0.7:
        place = dice.randrange(len(value))
        if dice.random() < 0.2:
            value.append(dice.choice(VALUES))
        else:
            value[place] = _changed(value[place], dice)
        return value
    return copy.deepcopy(dice.choice(VALUES))
