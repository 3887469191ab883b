"""A worker that makes its own batches: every request is answered once, and each mistake is its own."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from doubling import Doubles, Frontend

from handlers.torchserve.standby.inbox import FrontendGone


@pytest.fixture
def frontend(request: pytest.FixtureRequest) -> Iterator[Frontend]:
    with closing(Frontend(Doubles(**getattr(request, "param", {})))) as made:
        yield made


def test_what_is_there_runs_together_and_each_gets_its_own(frontend: Frontend) -> None:
    frontend.ask("a", [1, 3])
    frontend.ask("b", [2])
    frontend.ask("bad", {"no": "list"})
    frontend.ask("worse", [0])
    frontend.service.turn()
    outcome = frontend.outcome()
    assert outcome["a"] == (200, [2, 6]) and outcome["b"] == (200, [4])
    assert outcome["bad"][0] == 400 and outcome["bad"][1]["error"]["message"] == "no list"
    assert outcome["worse"][0] == 500 and "KeyError" in outcome["worse"][1]["error"]["message"]


def test_grpc_gets_one_answer(frontend: Frontend) -> None:
    frontend.ask("a", [1], rest=False)
    frontend.ask("b", {}, rest=False)
    frontend.service.turn()
    found = frontend.answers()
    assert [(one.body, one.more) for one in found["a"]] == [(b"[2]", "false")]
    assert [(json.loads(one.body)["error"]["code"], one.more) for one in found["b"]] == [(400, "false")]


def test_a_run_that_fails_takes_only_its_own_requests_with_it(frontend: Frontend) -> None:
    frontend.ask("long", [50, 60])
    frontend.ask("short", [1])
    for _ in range(2):
        frontend.service.turn()
    assert frontend.outcome() == {"short": (200, [2]), "long": (500, "broken")}
    frontend.ask("next", [4])
    frontend.service.turn()  # the other item of the failed request has left with it
    assert frontend.outcome() == {"next": (200, [8])}


def test_an_output_that_cannot_be_kept_is_its_request_s_failure_alone(frontend: Frontend) -> None:
    frontend.ask("seven", [6, 7])
    frontend.ask("six", [6])
    frontend.service.turn()
    assert frontend.outcome() == {"seven": (500, "broken"), "six": (200, [12])}


def test_deadlines(frontend: Frontend) -> None:
    frontend.ask("patient", [1], **{"X-Deadline-Ms": "60000"})
    frontend.ask("wrong", [1], **{"x-deadline-ms": "soon"})
    frontend.service.turn()
    outcome = frontend.outcome()
    assert outcome["patient"] == (200, [2])
    assert outcome["wrong"][0] == 400 and "from 1 to 3600000" in outcome["wrong"][1]["error"]["message"]
    frontend.ask("long", [64])
    frontend.ask("short", [1])
    frontend.ask("late", [64], **{"x-deadline-ms": "1"})
    frontend.service.turn()
    time.sleep(0.01)
    frontend.service.turn()
    outcome = frontend.outcome()
    assert outcome["late"][0] == 504 and outcome["short"] == (200, [2]) and outcome["long"] == (200, [128])


@pytest.mark.parametrize("frontend", [{"max_queue": 2}], indirect=True)
def test_beyond_the_queue_503_comes_at_once(frontend: Frontend) -> None:
    for number in range(5):
        frontend.ask(str(number), [1])
    frontend.service.turn()
    outcome = frontend.outcome()
    assert [outcome[str(number)][0] for number in range(5)] == [200, 200, 200, 503, 503]
    assert "the queue is full: 3 requests" in outcome["4"][1]["error"]["message"]


@pytest.mark.parametrize("frontend", [{"streams": 2}], indirect=True)
def test_streams_run_at_once_and_what_comes_meanwhile_is_read(frontend: Frontend) -> None:
    handler = frontend.handler
    handler.wait.clear()
    streams = [threading.Thread(target=lambda: [frontend.service.turn() for _ in range(2)]) for _ in range(2)]
    for stream in streams:
        stream.start()
    for name, number in (("a", 1), ("b", 2)):
        frontend.ask(name, [number])
        until = time.monotonic() + 5
        while [number] not in handler.ran:  # each of the streams runs one, none has ended
            assert time.monotonic() < until
    for name, number in (("c", 3), ("d", 4)):
        frontend.ask(name, [number])
    handler.wait.set()
    outcome: dict[str, Any] = {}
    while len(outcome) < 4:
        assert time.monotonic() < until
        outcome |= frontend.outcome()
    assert outcome == {"a": (200, [2]), "b": (200, [4]), "c": (200, [6]), "d": (200, [8])}
    for name in ("e", "f"):  # a stream that has run both may have left the other one leading
        frontend.ask(name, [1])
        frontend.ask(name, [64])
    for stream in streams:
        stream.join(10)
        assert not stream.is_alive()


def test_what_comes_next_is_taken_while_the_engine_is_busy_and_run_when_it_is_free(frontend: Frontend) -> None:
    handler, service = frontend.handler, frontend.service
    handler.wait.clear()
    threads = [threading.Thread(target=service.turn) for _ in range(2)]
    for thread, name, number in zip(threads, "ab", (1, 2), strict=True):
        frontend.ask(name, [number])
        thread.start()
        until = time.monotonic() + 5
        while service._queue.open or not service._queue or service._arrived:  # taken by its thread
            assert time.monotonic() < until
    assert handler.ran == [[1]]  # one run at once
    handler.wait.set()
    for thread in threads:
        thread.join(10)
    assert handler.ran == [[1], [2]] and frontend.outcome() == {"a": (200, [2]), "b": (200, [4])}


def test_bytes_that_wait_are_counted_until_they_are_answered(
    frontend: Frontend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frontend.service, "_most_bytes", 12)
    for turn in range(3):  # each time anew: nothing of an earlier one is left in the count
        for name in "abc":
            frontend.ask(f"{name}{turn}", [1, 2])  # six bytes
        frontend.service.turn()
        frontend.service.turn() if frontend.service._queue.open else None
        outcome = frontend.outcome()
        assert [outcome[f"{name}{turn}"][0] for name in "abc"] == [200, 200, 503]
        assert "2 requests with 12 bytes wait" in outcome[f"c{turn}"][1]["error"]["message"]


def test_a_frontend_that_has_gone(frontend: Frontend) -> None:
    frontend.link.close()
    with pytest.raises((FrontendGone, ConnectionError)):
        frontend.service.turn()
