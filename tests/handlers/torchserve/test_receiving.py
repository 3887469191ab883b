"""What the frontend sends is read in few calls, however it is cut, and is what TorchServe itself would have read."""

from __future__ import annotations

import random
import socket
import struct
import threading

import pytest

from handlers.torchserve.receiving import Buffered

otf = pytest.importorskip("ts.protocol.otf_message_handler")


def field(value: bytes) -> bytes:
    return struct.pack("!i", len(value)) + value


def message(requests: list[bytes]) -> bytes:
    end = struct.pack("!i", -1)
    parts = [b"I"]
    for number, body in enumerate(requests):
        header = field(b"content-type") + field(b"application/json") + end
        inputs = field(b"body") + field(b"application/octet-stream") + field(body) + end
        parts.append(field(b"id-%d" % number) + header + inputs)
    return b"".join(parts) + end


class Counting:
    """A socket that counts how often it is asked."""

    def __init__(self, inner: socket.socket) -> None:
        self.inner, self.calls = inner, 0

    def recv(self, length: int) -> bytes:
        self.calls += 1
        return self.inner.recv(length)


def read(monkeypatch: pytest.MonkeyPatch, sent: bytes, cuts: list[int], count: int) -> tuple[list[list[bytes]], int]:
    """(the bodies of each batch, how often the socket was asked)."""
    ours, theirs = socket.socketpair()
    counting = Counting(ours)
    with monkeypatch.context() as patched:
        patched.setattr(otf, "_retrieve_buffer", Buffered())

        def send() -> None:
            for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
                theirs.sendall(sent[start:end])

        thread = threading.Thread(target=send)
        thread.start()
        batches = [otf.retrieve_msg(counting)[1] for _ in range(count)]
        thread.join()
    ours.close()
    theirs.close()
    found = [[bytes(request["parameters"][0]["value"]) for request in batch] for batch in batches]
    return found, counting.calls


def test_many_requests_in_few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    messages = [message([b'{"inputs": "%d"}' % i for i in range(8)]) for _ in range(4)]
    found, calls = read(monkeypatch, b"".join(messages), [], 4)
    assert calls <= 4
    assert found == [[b'{"inputs": "%d"}' % i for i in range(8)]] * 4


def test_whatever_it_is_cut_into(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(0)
    bodies = [[chance.randbytes(chance.randint(0, 300_000)) for _ in range(chance.randint(1, 4))] for _ in range(6)]
    sent = b"".join(map(message, bodies))
    cuts = sorted(chance.sample(range(1, len(sent)), 40))
    found, _ = read(monkeypatch, sent, cuts, len(bodies))
    assert found == bodies


def test_a_frontend_that_left_ends_the_worker() -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(b"abc")
    theirs.close()
    with pytest.raises(SystemExit):
        Buffered()(ours, 4)
    ours.close()
