"""What has been received outlives the process that received it, whatever the sizes and wherever it was cut."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from torchserve_side import request_message

from handlers.torchserve.frames import Incoming
from handlers.torchserve.standby.inbox import FrontendGone, Inbox

Link = tuple[socket.socket, socket.socket]


@pytest.fixture
def link() -> Iterator[Link]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def message(name: str, size: int = 10) -> bytes:
    return request_message([(name, {"Host": "x"}, [("body", "", name.encode() * size)])])


def ids(found: list[Incoming]) -> list[str]:
    return [one.id for one in found]


def test_all_that_is_there_is_read_and_noted_first(link: Link) -> None:
    noted: list[str] = []
    inbox = Inbox()
    assert inbox.requests(link[0], lambda: False, lambda one: noted.append(one.id)) == []
    link[1].sendall(message("a") + message("b") + message("c")[:-5])
    assert ids(inbox.requests(link[0], lambda: True, lambda one: noted.append(one.id))) == ["a", "b"]
    assert inbox.requests(link[0], lambda: False, lambda one: noted.append(one.id)) == []
    link[1].sendall(message("c")[-5:])
    (found,) = inbox.requests(link[0], lambda: False, lambda one: noted.append(one.id))
    assert found.row == {"body": b"c" * 10} and noted == ["a", "b", "c"] and not inbox.moving


@pytest.mark.parametrize("size", [60, 64, 100, 1000])
def test_messages_of_all_sizes_in_pieces_of_all_sizes(link: Link, size: int) -> None:
    wire = b"".join(message(str(number), number * 7 % 90) for number in range(60))
    inbox = Inbox(size)
    writer = threading.Thread(target=lambda: [link[1].sendall(wire[at : at + 13]) for at in range(0, len(wire), 13)])
    writer.start()
    found: list[Incoming] = []
    while len(found) < 60:
        found += inbox.requests(link[0], lambda: True, lambda one: None)
    writer.join()
    assert ids(found) == [str(number) for number in range(60)]
    assert all(one.row["body"] == one.id.encode() * (number * 7 % 90) for number, one in enumerate(found))


def test_a_thread_that_waits_is_woken_where_something_else_is_to_be_done(link: Link) -> None:
    inbox = Inbox()
    inbox.wake()  # nobody waits
    idle = [True]
    thread = threading.Thread(target=lambda: inbox.requests(link[0], lambda: idle[0], lambda one: None))
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    idle[0] = False
    inbox.wake()
    thread.join(5)
    assert not thread.is_alive() and inbox.requests(link[0], lambda: False, lambda one: None) == []


def test_a_successor_goes_on_where_the_dead_process_was(link: Link) -> None:
    inbox = Inbox()
    link[1].sendall(message("a") + message("b")[:20])
    child = os.fork()
    if child == 0:  # reads one request, has the begin of another, and is gone
        os._exit(ids(inbox.requests(link[0], lambda: True, lambda one: None)) != ["a"])
    assert os.waitpid(child, 0)[1] == 0
    link[1].sendall(message("b")[20:])
    assert ids(inbox.requests(link[0], lambda: False, lambda one: None)) == ["b"]


def test_a_process_that_dies_while_it_reads_leaves_a_sign(link: Link) -> None:
    inbox = Inbox(100)
    link[1].sendall(message("a", 500)[:200])
    child = os.fork()
    if child == 0:
        inbox.requests(link[0], lambda: True, lambda one: None)  # waits for the rest of a message that has no room
    seen = 0
    while seen < 20:  # it is so for a moment at every read, and stays so in a message that is not whole
        time.sleep(0.01)
        seen = seen + 1 if inbox.moving else 0
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
    os.kill(child, 9)
    os.waitpid(child, 0)
    assert inbox.moving


def test_where_the_kernel_does_not_count_what_was_looked_at(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handlers.torchserve.standby.inbox._PEEK_OFFSET", 1 << 20)
    inbox = Inbox()
    link[1].sendall(message("a") + message("b")[:20])
    assert ids(inbox.requests(link[0], lambda: True, lambda one: None)) == ["a"]
    assert inbox.settle(link[0])  # nothing was on its way
    link[1].sendall(message("b")[20:])
    assert ids(inbox.requests(link[0], lambda: True, lambda one: None)) == ["b"]


def test_what_is_whole_and_not_read(link: Link) -> None:
    inbox = Inbox()
    link[1].sendall(message("a") + message("b") + message("c")[:9])

    def stop(one: Incoming) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        inbox.requests(link[0], lambda: True, stop)
    assert inbox.unread() == {"a", "b"}
    assert ids(inbox.requests(link[0], lambda: False, lambda one: None)) == ["a", "b"]
    assert inbox.unread() == set()


def test_the_memory_of_a_large_message_is_given_back(link: Link) -> None:
    inbox = Inbox()
    pages = _shared_pages()
    writer = threading.Thread(target=lambda: link[1].sendall(message("a", 20 << 20)))
    writer.start()
    found: list[Incoming] = []
    while not found:
        found = inbox.requests(link[0], lambda: True, lambda one: None)
    writer.join()
    assert len(found[0].row["body"]) == 20 << 20
    link[1].sendall(message("b"))
    assert ids(inbox.requests(link[0], lambda: True, lambda one: None)) == ["b"]
    assert _shared_pages() - pages < 2 << 10


def _shared_pages() -> int:
    """In KiB."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssShmem"))


def test_a_closed_connection(link: Link) -> None:
    link[1].sendall(message("a"))
    link[1].close()
    inbox = Inbox()
    with pytest.raises(FrontendGone):
        while True:
            inbox.requests(link[0], lambda: True, lambda one: None)
