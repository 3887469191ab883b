"""A worker that makes its own batches, over a model that doubles numbers, and the other end of its connection."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from torchserve_side import Response, request_message, responses

from handlers.errors import BadRequest
from handlers.protocols.reply import JSON
from handlers.protocols.request import Request
from handlers.torchserve.service import Service
from handlers.torchserve.standby.process import Standby
from handlers.tracing import Tracer


class Doubles:
    """A handler whose model doubles numbers; an item's size is the number. It fails where a 50 is among them."""

    def __init__(self, max_queue: int = 8, streams: int = 1) -> None:
        self.streams = streams
        self.serving = {"batching": {"token_budget": 64, "max_rows": 4, "run_cost": 16}, "max_queue": max_queue}
        self.input = SimpleNamespace(size=int, max_bytes=100)
        self.ran: list[list[int]] = []
        self.wait = threading.Event()
        self.wait.set()

    def accept(self, row: Mapping[str, bytes], headers: Mapping[str, Any]) -> tuple[Request, list[list[int]]]:
        numbers = json.loads(row["body"])
        if not isinstance(numbers, list):
            raise BadRequest("no list")
        if numbers == [0]:
            raise KeyError("unexpected")
        return Request(tuple(numbers), False, {}), [[number] for number in numbers]

    def run_batch(self, items: Sequence[int], size: int, rows: int) -> tuple[np.ndarray | None, Exception | None]:
        self.ran.append(list(items))
        assert self.wait.wait(10) and all(item <= size for item in items) and rows >= len(items)
        return (None, ArithmeticError("50")) if 50 in items else (np.array(items) * 2, None)

    def keep(self, item: int, output: Any) -> Any:
        if item == 7:
            raise ValueError("7")
        return output

    def answer(
        self, request: Request, prepared: Sequence[Any], outputs: Sequence[Any], broken: Exception | None
    ) -> tuple[int, bytes, str]:
        body = b'"broken"' if broken else json.dumps([int(output) for output in outputs]).encode()
        return 500 if broken else 200, body, JSON


class Frontend:
    """The other end of the connection."""

    def __init__(self, handler: Doubles, open_tracer: Callable[[], Tracer | None] = lambda: None) -> None:
        self.handler = handler
        ours, self.link = socket.socketpair()
        self.service = Service(handler, Standby(ours), None, open_tracer)
        self.service.begin()

    def ask(self, name: str, body: Any, rest: bool = True, **headers: str) -> None:
        own = {"Host": "x", **headers} if rest else {}
        self.link.sendall(request_message([(name, own, [("body", "application/json", json.dumps(body).encode())])]))

    def answers(self) -> dict[str, list[Response]]:
        found: dict[str, list[Response]] = {}
        self.link.setblocking(False)
        wire = b""
        with contextlib.suppress(BlockingIOError):  # all that is there has been read
            while part := self.link.recv(1 << 16):
                wire += part
        for one in responses(wire):
            found.setdefault(one.request_id, []).append(one)
        return found

    def outcome(self) -> dict[str, tuple[int, Any]]:
        """status and body of each answer over REST, which is whole and with which TorchServe forgets the request."""
        found = {}
        for name, (first, last) in self.answers().items():
            assert last.more == "false" and last.body == b"" and first.more == ("true" if first.status == 200 else None)
            found[name] = (first.status, json.loads(first.body))
        return found

    def close(self) -> None:
        self.link.close()
        self.service.standby.link.close()
