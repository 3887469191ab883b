"""Requests over one connection, each answered by itself: as they come, in pieces or whole, until the frontend has gone."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from torchserve_side import Response, request_message, responses

from handlers.errors import BadRequest
from handlers.torchserve.conversation import Conversation, Conversations
from handlers.torchserve.standby.process import Standby

REST = {"Host": "x"}


class Frontend:
    """Speaks to conversations that run in a thread."""

    def __init__(self, answer: Callable[[Conversation], Any], room: int = 8, most: int = 1 << 20) -> None:
        self.link, theirs = socket.socketpair()
        self.link.settimeout(20)
        self.conversations = Conversations(Standby(theirs), answer, lambda: (room, most), None)
        self.thread = threading.Thread(target=self.conversations.run, daemon=True)
        self.thread.start()

    def ask(self, *requests: tuple[str, bytes], rest: bool = True) -> None:
        headers = REST if rest else {}
        self.link.sendall(request_message([(name, headers, [("body", "", body)]) for name, body in requests]))

    def answers(self, count: int) -> list[Response]:
        """The next responses."""
        wire = b""
        while True:
            wire += self.link.recv(1 << 16)
            try:
                found = responses(wire)
            except AssertionError:
                continue
            if len(found) >= count:
                assert len(found) == count
                return found


@pytest.fixture
def made() -> Iterator[list[Frontend]]:
    found: list[Frontend] = []
    yield found
    for frontend in found:
        frontend.link.close()
        frontend.thread.join(10)
        assert not frontend.thread.is_alive(), "it goes on although the frontend has gone"
        frontend.conversations.standby.link.close()


def of(found: list[Response]) -> list[tuple[str, int, bytes, str | None]]:
    return [(one.request_id, one.status, one.body, one.more) for one in found]


async def echo(conversation: Conversation) -> None:
    body = bytes(conversation.row["body"])
    if body.startswith(b"wait"):
        await asyncio.sleep(0.2)
    if body == b"bad":
        raise BadRequest("no such thing")
    if body == b"worse":
        raise KeyError("x")
    if body == b"after":
        conversation.answer(b"done")
        raise KeyError("x")
    conversation.answer(body)


def test_each_is_answered_when_it_is_done(made) -> None:
    made.append(Frontend(echo))
    made[0].ask(("slow", b"wait"), ("a", b"one"))
    made[0].ask(("b", b"two"), rest=False)
    first = of(made[0].answers(3))
    assert sorted(first) == [("a", 200, b"", "false"), ("a", 200, b"one", "true"), ("b", 200, b"two", "false")]
    assert of(made[0].answers(2)) == [("slow", 200, b"wait", "true"), ("slow", 200, b"", "false")]


def test_what_fails_is_its_own_requests_fault_and_no_other_s(made) -> None:
    made.append(Frontend(echo))
    made[0].ask(("worse", b"worse"), ("slow", b"wait"))
    whole, end = made[0].answers(2)
    assert (whole.request_id, whole.status, whole.headers) == ("worse", 500, {})
    assert b"the request failed: KeyError" in whole.body and end.more == "false"
    assert made[0].answers(2)[0].body == b"wait"
    made[0].ask(("after", b"after"))
    assert of(made[0].answers(2)) == [("after", 200, b"done", "true"), ("after", 200, b"", "false")]
    made[0].ask(("next", b"next"))
    assert made[0].answers(2)[0].body == b"next"


def test_more_than_there_is_room_for_are_refused_at_once(made) -> None:
    made.append(Frontend(echo, room=2))
    made[0].ask(*((f"slow{number}", b"wait") for number in range(2)), ("third", b"x"))
    whole, _ = made[0].answers(2)
    assert (whole.request_id, whole.status) == ("third", 503)
    assert b"the queue is full: 2 requests are open" in whole.body
    assert {one.body for one in made[0].answers(4)} == {b"wait", b""}
    made[0].ask(("fourth", b"x"))
    assert of(made[0].answers(2))[0] == ("fourth", 200, b"x", "true")


def test_bodies_that_are_not_read_yet_are_bounded(made) -> None:
    release = threading.Event()

    async def slow(conversation: Conversation) -> None:
        body = bytes(conversation.row["body"])
        while not release.is_set():
            await asyncio.sleep(0.01)
        conversation.has_read()
        conversation.answer(body[:1])

    made.append(Frontend(slow, most=1000))
    made[0].ask(("large", b"x" * 5000), ("second", b"y"))  # one alone may have any size
    whole, _ = made[0].answers(2)
    assert (whole.request_id, whole.status) == ("second", 503)
    assert b"with this one 5001 bytes wait to be read; at most 8 with 1000 bytes may" in whole.body
    release.set()
    assert made[0].answers(2)[0].body == b"x"
    assert made[0].conversations.held == 0
    made[0].ask(("next", b"z"))
    assert made[0].answers(2)[0].body == b"z"


def test_pieces_and_answers_of_several_threads_never_mix(made) -> None:
    """Each is far larger than a socket's buffer, so that a write is cut into many."""
    size, rounds = 300_000, 6
    streams: list[Conversation] = []

    async def stream(conversation: Conversation) -> None:
        if conversation.row["body"] == b"stream":
            streams.append(conversation)
            await asyncio.sleep(60)
        conversation.answer(bytes(conversation.row["body"]) * size)

    made.append(Frontend(stream))
    conversations = made[0].conversations
    made[0].ask(("stream", b"stream"))
    while not streams:
        time.sleep(0.01)

    def send() -> None:
        for _ in range(rounds):
            streams[0].piece(b"p" * size)
            conversations.after_step()

    other = threading.Thread(target=send, daemon=True)
    other.start()
    made[0].ask(*((f"r{number}", b"a") for number in range(rounds)))
    found = made[0].answers(3 * rounds)
    other.join(10)
    bodies = sorted(one.body for one in found)
    assert bodies == [b""] * rounds + [b"a" * size] * rounds + [b"p" * size] * rounds


def test_no_piece_follows_the_end_and_a_stream_that_breaks_says_so_itself(made) -> None:
    """The frontend would close the connection at a piece for a request that it has forgotten."""

    async def stream(conversation: Conversation) -> None:
        conversation.piece(b"one")
        conversation._all.after_step()
        conversation.piece(b"late")  # not sent when the stream ends
        if conversation.row["body"] == b"breaks":
            raise KeyError("x")
        conversation.finish_stream(b"end")
        conversation.refuse(500, "never sent: it has ended")
        conversation._all.after_step()

    made.append(Frontend(stream))
    made[0].ask(("good", b""))
    assert of(made[0].answers(2)) == [("good", 200, b"one", "true"), ("good", 200, b"end", "false")]
    made[0].ask(("bad", b"breaks"))
    first, last = made[0].answers(2)
    assert first.body == b"one" and last.more == "false"
    assert last.body.startswith(b"data: {") and b"the request failed: KeyError" in last.body
    made[0].conversations.after_step()
    made[0].ask(("next", b""))
    assert of(made[0].answers(2))[0] == ("next", 200, b"one", "true")


def test_what_is_no_request_ends_the_process(monkeypatch) -> None:
    codes = []

    def end(code: int) -> None:
        codes.append(code)
        raise SystemExit

    monkeypatch.setattr("os._exit", end)
    here, there = socket.socketpair()
    with here, there:
        here.sendall(b"Zzzzzzzz")
        with pytest.raises(SystemExit):
            Conversations(Standby(there), echo, lambda: (1, 1), None).run()
    assert codes == [1]
