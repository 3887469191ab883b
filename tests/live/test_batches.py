"""Requests that are run together: a bad one among them is refused alone, the others are answered rightly."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from live_client import Grpc, Reply, Rest, metrics
from served import BATCH, Served

from archiver.torchserve.server import TorchServe
from handlers.inputs.text import TextInput

NAME = "pairs"
TEXTS = [
    "a" + " very" * (3 * index % 20) + (" good" if index % 2 else " dull") + f" film {index}" for index in range(BATCH)
]
BAD = {3: b'{"inputs": ', 11: b'{"inputs": "a", "parameters": {"top_k": "all"}}'}


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_bad_requests_in_a_batch_do_not_harm_the_others(
    server: TorchServe, archives: dict[str, Served], protocol: str
) -> None:
    served = archives[NAME]
    everything = {"top_k": 3}
    bodies = [
        BAD.get(index) or json.dumps({"inputs": text, "parameters": everything}).encode()
        for index, text in enumerate(TEXTS)
    ]
    before = metrics(server, NAME)
    kind = Rest if protocol == "rest" else Grpc
    (worker,) = server.workers(NAME)
    (serving,) = psutil.Process(worker.pid).children()
    with kind(server) as warm, ThreadPoolExecutor(BATCH) as pool:
        alone = _predict(warm, bodies[0])
        serving.suspend()  # so that all of them are there when it reads
        sent = [pool.submit(_send, server, protocol, body) for body in bodies]
        time.sleep(1)
        serving.resume()
        replies = [one.result(60) for one in sent]
    for index, reply in enumerate(replies):
        if index in BAD:
            assert reply.status == 400
            assert ("not valid JSON" if index == 3 else "'top_k' is \"all\"") in reply.message
        else:
            assert reply.status == 200, reply.body
            (right,) = served.handler.respond([TextInput(TEXTS[index])], everything)
            assert served.handler.compare(right, reply.value) <= served.tolerance, index
    assert served.handler.compare(alone.value, replies[0].value) <= served.tolerance
    after = _settled(server, before, BATCH + 1)
    batches = after["marpress_batches"] - before.get("marpress_batches", 0)
    assert batches - 1 <= (BATCH - len(BAD)) / 2, "they were not run together"
    assert after["marpress_request_errors"] - before.get("marpress_request_errors", 0) == len(BAD)


def test_one_bad_element_fails_its_request_with_its_index(server: TorchServe, archives: dict[str, Served]) -> None:
    with Rest(server) as rest:
        reply = rest.post(NAME, {"inputs": ["a film", {"text": "a", "text_pair": 7}, "dull"]})
    assert reply.status == 400
    assert reply.message.startswith("inputs[1].text_pair is a number")


def _send(server: TorchServe, protocol: str, body: bytes) -> Reply:
    with Rest(server) if protocol == "rest" else Grpc(server) as client:
        return _predict(client, body)


def _predict(client: Rest | Grpc, body: bytes) -> Reply:
    return client.post(NAME, body) if isinstance(client, Rest) else client.predict(NAME, body)


def _settled(server: TorchServe, before: dict[str, float], requests: int) -> dict[str, float]:
    """The metrics once `requests` more requests are counted: the frontend reads them from the worker's output."""
    deadline = time.monotonic() + 10
    while True:
        after = metrics(server, NAME)
        if after.get("marpress_requests", 0) - before.get("marpress_requests", 0) >= requests:
            return after
        assert time.monotonic() < deadline, after
        time.sleep(0.1)
