"""What goes out behind a step of the model, and when one may begin."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from handlers.torchserve.channel import Arrivals, Outbox
from handlers.torchserve.requests import is_rest


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ends = socket.socketpair()
    yield ends
    for end in ends:
        end.close()


@pytest.mark.parametrize(
    ("headers", "rest"),
    [
        ({"host": "x"}, True),
        ({"data": {"content-type": "text/plain"}, "Accept": "*/*"}, True),
        ({"data": {"content-type": "text/plain"}}, False),
        ({}, False),
    ],
)
def test_where_a_request_came_from(headers, rest) -> None:
    assert is_rest(headers) == rest


# ---- what goes out behind a step --------------------------------------------------------------------------------------


def test_pieces_go_out_in_one_message_before_those_who_are_done_go_on() -> None:
    async def run() -> None:
        arrivals = Arrivals()
        sent: list[list[tuple[str, bytes]]] = []
        outbox = Outbox[str](arrivals, sent.append)
        future = asyncio.get_running_loop().create_future()
        told: list[int] = []
        future.add_done_callback(lambda _: told.append(len(sent)))
        outbox.done("one", future)
        outbox.put("one", b"a")
        outbox.put("two", b"b")
        assert sent == []
        await asyncio.to_thread(outbox.flush)  # as the engine's thread does it
        await asyncio.wait_for(future, 5)
        await asyncio.sleep(0)
        assert told == [1]
        assert sent == [[("one", b"a"), ("two", b"b")]]
        assert arrivals._busy == {"one"}  # until it has said its last
        outbox.flush()
        assert len(sent) == 1

    asyncio.run(run())


def test_a_request_that_gave_up_is_not_waited_for() -> None:
    async def run() -> None:
        arrivals = Arrivals()
        outbox = Outbox[str](arrivals, lambda pieces: None)
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        outbox.done("one", future)
        outbox.flush()
        await asyncio.sleep(0)
        assert future.cancelled() and arrivals._busy == set()

    asyncio.run(run())


def test_who_is_done_goes_on_although_the_socket_is_broken() -> None:
    def broken(pieces: list[tuple[str, bytes]]) -> None:
        raise BrokenPipeError("the frontend left")

    async def run() -> None:
        outbox = Outbox[str](Arrivals(), broken)
        future = asyncio.get_running_loop().create_future()
        outbox.put("one", b"a")
        outbox.done("one", future)
        with pytest.raises(BrokenPipeError, match="the frontend left"):
            outbox.flush()
        await asyncio.wait_for(future, 5)
        outbox.flush()  # and nothing is left over

    asyncio.run(run())


# ---- the pause between two steps --------------------------------------------------------------------------------------


def settled(arrivals: Arrivals) -> float:
    started = time.monotonic()
    arrivals.settle()
    return time.monotonic() - started


@pytest.fixture
def long_pauses(monkeypatch) -> None:
    """So long that a busy machine does not blur them."""
    monkeypatch.setattr(Arrivals, "MOST", 0.4)
    monkeypatch.setattr(Arrivals, "QUIET", 0.1)


@pytest.mark.usefixtures("long_pauses")
def test_nothing_waits_where_nothing_is_on_its_way(pair) -> None:
    arrivals = Arrivals()
    assert settled(arrivals) < 0.05
    arrivals.watch(pair[0])
    assert settled(arrivals) < 0.05
    arrivals.begin("one")
    arrivals.end("one")
    assert 0.08 < settled(arrivals) < 0.3  # QUIET, behind what was news
    assert settled(arrivals) < 0.05


@pytest.mark.usefixtures("long_pauses")
def test_a_step_waits_for_who_is_busy(pair) -> None:
    arrivals = Arrivals()
    arrivals.begin("one")
    arrivals.begin("two")
    arrivals.end("two")
    timer = threading.Timer(0.1, arrivals.end, ["one"])
    timer.start()
    assert 0.18 < settled(arrivals) < 0.39
    timer.join()


@pytest.mark.usefixtures("long_pauses")
@pytest.mark.parametrize("why", ["busy", "unread"])
def test_but_never_longer_than_the_most(pair, why) -> None:
    here, there = pair
    arrivals = Arrivals()
    arrivals.watch(here)
    if why == "busy":
        arrivals.begin("one")
    else:
        there.sendall(b"x")
    assert 0.4 <= settled(arrivals) < 0.7
    if why == "unread":
        here.recv(1)
        assert settled(arrivals) < 0.3
