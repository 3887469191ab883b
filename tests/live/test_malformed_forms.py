"""Two thousand bodies for each form, made wrong from right ones: each gets its own answer, and no worker dies of it.

What the answer has to be says the archive's handler in this process.
"""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from live_client import Rest
from mutated import mutated
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


@pytest.mark.parametrize("form", FORMS)
def test_two_thousand(server: TorchServe, archives: dict[str, Served], form: str) -> None:
    name, address, path, right = FORMS[form]
    dice = random.Random(form)
    bodies = [mutated(right, dice) for _ in range(COUNT)]
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
