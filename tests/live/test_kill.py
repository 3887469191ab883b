"""kill -9 of a worker under load: the service comes back, and no answer is ever a wrong one.

A worker is two processes, see handlers.torchserve.standby: whichever is killed, TorchServe does not notice.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
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
        successor = _kill(server, before[0])
        time.sleep(1)
        _kill(server, successor)  # what took its place is as mortal, and as replaceable
        back = time.monotonic()
        time.sleep(1)
        after = time.monotonic()
    finally:
        stopping.set()
        for client in clients:
            client.join(timeout=60)
    assert seen.wrong == []
    assert all(500 <= status < 600 for status in seen.errors), seen.errors
    assert sum(seen.errors.values()) <= 2 * CLIENTS  # those whose requests were being answered, once for each death
    assert back - killed < 2 * BACK_SECONDS
    answered = [moment for moment in seen.good if moment > killed]
    assert sum(moment > back for moment in answered) > 10
    longest = max(b - a for a, b in zip([killed, *answered], [*answered, after], strict=True))
    assert longest < BACK_SECONDS
    assert [(worker.pid, worker.status) for worker in server.workers(name)] == [(pid, "READY") for pid in before]


def test_a_worker_whose_standby_is_killed_serves_on_and_when_it_dies_too_all_clients_are_told(
    server: TorchServe, archives: dict[str, Served]
) -> None:
    (worker,) = _workers(server, "plain")
    (standby,) = [process for process in server.processes() if process.ppid() == worker]
    standby.kill()
    with Rest(server) as rest:
        assert [rest.post("plain", {"inputs": TEXTS[0]}).status for _ in range(5)] == [200] * 5
        os.kill(worker, signal.SIGSTOP)  # so that it has read nothing of what comes now
        with ThreadPoolExecutor(1) as pool, Rest(server) as other:
            lost = pool.submit(other.post, "plain", {"inputs": TEXTS[0]})
            time.sleep(1)
            os.kill(worker, signal.SIGKILL)
            assert lost.result(BACK_SECONDS).status == 503
        # What comes in the hundredth of a second after that is told the same.
        assert 200 in [rest.post("plain", {"inputs": TEXTS[0]}).status for _ in range(2)]


def _workers(server: TorchServe, name: str) -> set[int]:
    return {worker.pid for worker in server.workers(name)}


def _kill(server: TorchServe, pid: int) -> int:
    """kill -9; the process that takes the place of `pid`, once it is there."""
    there = {process.pid for process in server.processes()}
    os.kill(pid, signal.SIGKILL)
    until = time.monotonic() + BACK_SECONDS
    while time.monotonic() < until:
        new = {process.pid for process in server.processes()} - there
        if len(new) == 1:
            return new.pop()
        time.sleep(0.05)
    raise AssertionError(f"nothing took the place of {pid} within {BACK_SECONDS} s")


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
