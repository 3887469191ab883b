"""kill -9 of a worker under load: the service comes back, and no answer is ever a wrong one."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import pytest
from live_client import Grpc, Rest
from served import Served

from archiver.torchserve.server import TorchServe
from handlers.inputs.text import TextInput

BACK_SECONDS = 15
CLIENTS = 6
TEXTS = ("this film is very good", "a dull and boring story", "größe 🎬", "not one funny scene", "the dog runs fast")


@dataclass
class Seen:
    """What the clients were told. good: times of right answers; errors: by status; wrong: answers not as known."""

    good: list[float] = field(default_factory=list)
    errors: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


@pytest.mark.parametrize(("name", "count"), [("vectors", 2), ("films", 1)])
def test_a_killed_worker_is_replaced_and_no_answer_is_wrong(
    server: TorchServe, archives: dict[str, Served], name: str, count: int
) -> None:
    before = [worker.pid for worker in server.workers(name)]
    assert len(before) == count
    seen, stopping = Seen(), threading.Event()
    answers = archives[name].handler.respond([TextInput(text) for text in TEXTS])
    expected = dict(zip(TEXTS, answers, strict=True))
    clients = [
        threading.Thread(target=_ask, args=(server, archives[name], expected, index, seen, stopping))
        for index in range(CLIENTS)
    ]
    for client in clients:
        client.start()
    try:
        time.sleep(1)
        killed = time.monotonic()
        os.kill(before[0], signal.SIGKILL)
        back = _wait_back(server, name, before[0], count, killed)
        time.sleep(1)
        after = time.monotonic()
    finally:
        stopping.set()
        for client in clients:
            client.join(timeout=60)
    assert seen.wrong == []
    assert all(500 <= status < 600 for status in seen.errors), seen.errors
    assert back - killed < BACK_SECONDS
    answered = [moment for moment in seen.good if moment > killed]
    assert sum(moment > back for moment in answered) > 10
    longest = max(b - a for a, b in zip([killed, *answered], [*answered, after], strict=True))
    assert longest < BACK_SECONDS
    others = set(before[1:])
    assert others <= {worker.pid for worker in server.workers(name)}


def _ask(
    server: TorchServe, served: Served, expected: dict[str, object], index: int, seen: Seen, stopping: threading.Event
) -> None:
    """One client, REST or gRPC by its number, without a pause but a short one after an error."""
    with Rest(server) as rest, Grpc(server) as grpc:
        turn = index
        while not stopping.is_set():
            turn += 1
            text = TEXTS[turn % len(TEXTS)]
            body = {"inputs": text}
            reply = rest.post(served.name, body) if index % 2 else grpc.predict(served.name, body)
            if reply.status != 200:
                seen.errors[reply.status] += 1
                time.sleep(0.05)
                continue
            if served.handler.compare(expected[text], reply.value) > served.tolerance:
                seen.wrong.append(f"{text!r}: {reply.body[:200]!r}")
            seen.good.append(time.monotonic())
            time.sleep(0.005)


def _wait_back(server: TorchServe, name: str, killed: int, count: int, since: float) -> float:
    """The time when `count` workers are READY again, none of them the killed one."""
    while time.monotonic() - since < 2 * BACK_SECONDS:
        workers = server.workers(name)
        ready = [worker.pid for worker in workers if worker.status == "READY" and worker.pid not in (0, killed)]
        if len(ready) >= count:
            return time.monotonic()
        time.sleep(0.1)
    raise AssertionError(f"{name}: {server.workers(name)} after {2 * BACK_SECONDS} s")
