"""What a worker writes on TorchServe's asynchronous channel, and when a step of the model may begin."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from torchserve_side import Response, Wire, responses

from handlers.torchserve.channel import Arrivals, LockedSocket, Message, Outbox, lock_socket
from handlers.torchserve.requests import is_rest

EVENTS = "text/event-stream"


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ends = socket.socketpair()
    yield ends
    for end in ends:
        end.close()


# ---- messages ---------------------------------------------------------------------------------------------------------


def test_pieces_of_streams_say_that_more_follows() -> None:
    wire, message = Wire(), Message()
    message.add("first", "日本".encode(), EVENTS)
    message.add("second", b"", "application/json")
    for _ in range(2):  # encoding it anew does not turn "true" into "false", as TorchServe's own context does
        message.send(wire)
    more = {"ts_stream_next": "true"}
    wanted = [
        Response("first", 200, "", EVENTS, more, "日本".encode()),
        Response("second", 200, "", "application/json", more, b""),
    ]
    assert [responses(sent) for sent in wire.messages] == [wanted, wanted]


@pytest.mark.parametrize(("status", "phrase"), [(400, "Bad Request"), (503, "Service Unavailable"), (418, "")])
def test_a_whole_answer_does_not_say_whether_more_follows(status, phrase) -> None:
    wire, message = Wire(), Message(stream=False)
    message.add("first", b"{}", "application/json", status)
    message.send(wire)
    assert responses(wire.messages[0]) == [Response("first", status, phrase, "application/json", {}, b"{}")]


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


# ---- the socket -------------------------------------------------------------------------------------------------------


def test_messages_of_two_threads_never_mix(pair) -> None:
    """Each is far larger than a socket's buffer, so that a write is cut into many."""
    here, there = pair
    for end in pair:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, option, 4096)
    lock_socket(here)
    size, rounds = 300_000, 6

    def send(letter: bytes) -> None:
        for _ in range(rounds):
            here.sendall(letter * size)

    threads = [threading.Thread(target=send, args=(letter,), daemon=True) for letter in (b"a", b"b")]
    for thread in threads:
        thread.start()
    there.settimeout(30)
    received = bytearray()
    while len(received) < 2 * rounds * size:
        received += there.recv(1 << 16)
    for thread in threads:
        thread.join(30)
    messages = [bytes(received[at : at + size]) for at in range(0, len(received), size)]
    assert sorted(messages) == [b"a" * size] * rounds + [b"b" * size] * rounds


def test_an_open_socket_is_locked_for_everyone_who_holds_it(pair) -> None:
    here, there = pair
    same = here
    lock_socket(here)
    lock_socket(here)
    assert type(same) is LockedSocket
    same.sendall(b"hello")
    assert there.recv(5) == b"hello"
    wire = Wire()
    lock_socket(wire)
    assert type(wire) is Wire


# ---- what goes out behind a step --------------------------------------------------------------------------------------


def test_pieces_go_out_in_one_message_before_those_who_are_done_go_on() -> None:
    async def run() -> None:
        arrivals = Arrivals()
        outbox, wire = Outbox(arrivals), Wire()
        future = asyncio.get_running_loop().create_future()
        told: list[int] = []
        future.add_done_callback(lambda _: told.append(len(wire.messages)))
        outbox.done("one", future)
        outbox.put(wire, "one", b"a", EVENTS)
        outbox.put(wire, "two", b"b", EVENTS)
        assert wire.messages == []
        await asyncio.to_thread(outbox.flush)  # as the engine's thread does it
        await asyncio.wait_for(future, 5)
        await asyncio.sleep(0)
        assert told == [1]
        assert [(found.request_id, found.body) for found in responses(wire.messages[0])] == [
            ("one", b"a"),
            ("two", b"b"),
        ]
        assert arrivals._busy == {"one"}  # until it has said its last
        outbox.flush()
        assert len(wire.messages) == 1

    asyncio.run(run())


def test_a_request_that_gave_up_is_not_waited_for() -> None:
    async def run() -> None:
        arrivals = Arrivals()
        outbox = Outbox(arrivals)
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        outbox.done("one", future)
        outbox.flush()
        await asyncio.sleep(0)
        assert future.cancelled() and arrivals._busy == set()

    asyncio.run(run())


def test_who_is_done_goes_on_although_the_socket_is_broken() -> None:
    class Broken(Wire):
        def sendall(self, message: bytes) -> None:
            raise BrokenPipeError("the frontend left")

    async def run() -> None:
        outbox = Outbox(Arrivals())
        future = asyncio.get_running_loop().create_future()
        outbox.put(Broken(), "one", b"a", EVENTS)
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
