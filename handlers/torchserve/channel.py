"""TorchServe's asynchronous channel: answers leave when they are there, and every job leaves the frontend's list.

What its source (0.12, AsyncBatchAggregator, RestJob, GRPCJob) makes necessary:
- It forgets a job only at a response whose header ts_stream_next is "false". A REST response that is not a stream must
  not carry it, so a whole answer is sent as a stream of one piece and an end.
- A REST status from 400 closes the connection behind its head: an error is sent as a whole response, and the end after it
  finds the connection closed and only takes the job off the list.
- A unary gRPC call ends with its first response, and a second one would close the worker's connection; over the wire it
  looks like StreamPredictions. So gRPC gets one response, unless its inputs say `stream`, which only StreamPredictions may.
- Two threads write to the worker's socket: this one and TorchServe's own.
"""

import asyncio
import select
import socket
import threading
import time
from typing import Any

from handlers.torchserve.requests import STREAM, reason_of


class LockedSocket(socket.socket):
    """A socket that several threads may write to: each message is written whole."""

    __slots__ = ()
    _writing = threading.Lock()

    def sendall(self, *message: Any) -> None:
        """Write a whole message while no other thread writes."""
        with self._writing:
            super().sendall(*message)


def lock_socket(found: Any) -> None:
    """Make an open socket, which TorchServe holds too, one of these."""
    if type(found) is socket.socket:
        found.__class__ = LockedSocket


class Arrivals:
    """A pause between two steps in which requests reach the engine, and answers leave it.

    OpenVINO GenAI's `step` holds Python's global interpreter lock until it is done: any other thread waits for a whole
    step, and a request passes through four threads. So between two steps there is a pause, as short as it can be.
    """

    MOST = 0.02  # seconds that arrivals may hold up what runs
    QUIET = 0.001  # seconds without news that end the pause
    POLL = 0.0002

    def __init__(self) -> None:
        self._socket: Any = None
        self._busy: set[str] = set()
        self._news = 0.0

    def watch(self, found: Any) -> None:
        """The worker's socket, from the first request on."""
        self._socket = found

    def begin(self, request_id: str) -> None:
        """The request is being read, or answered: no step should begin."""
        self._busy.add(request_id)

    def end(self, request_id: str) -> None:
        """It waits for the engine, or has left."""
        self._busy.discard(request_id)
        self._news = time.monotonic()

    def settle(self) -> None:
        """Wait until nothing is on its way."""
        now = time.monotonic()
        until = now + self.MOST
        while now < until:
            if self._busy or self._readable():
                self._news = now
            elif now - self._news >= self.QUIET:
                return
            time.sleep(self.POLL)
            now = time.monotonic()

    def _readable(self) -> bool:
        return self._socket is not None and bool(select.select([self._socket], [], [], 0)[0])


class Message:
    """Answers to several requests in one message, with the interface of the context that TorchServe's encoder takes.

    stream: more follows on each. Without, the responses are whole, and the frontend keeps the jobs. last: it forgets them
    """

    stopping_criteria = None

    def __init__(self, stream: bool = True, last: bool = False) -> None:
        self._stream = stream
        self._last = last
        self.ids: dict[int, str] = {}
        self.bodies: list[bytes] = []
        self._types: list[str] = []
        self._statuses: list[int] = []
        self._headers: list[dict[str, str]] = []

    def add(self, request_id: str, body: bytes, content_type: str, status: int = 200) -> None:
        """One more answer."""
        self.ids[len(self.bodies)] = request_id
        self.bodies.append(body)
        self._types.append(content_type)
        self._statuses.append(status)
        self._headers.append({STREAM: "false"} if self._last else {})

    def get_response_headers(self, index: int) -> dict[str, str]:
        """As TorchServe's context has it."""
        return self._headers[index]

    def set_response_header(self, index: int, key: str, value: str) -> None:
        """As TorchServe's context has it."""
        self._headers[index][key] = value

    def get_response_content_type(self, index: int) -> str:
        """As TorchServe's context has it."""
        return self._types[index]

    def get_response_status(self, index: int) -> tuple[int, str]:
        """As TorchServe's context has it."""
        status = self._statuses[index]
        return status, reason_of(status)

    def send(self, to: Any) -> None:
        """Write it to the worker's socket."""
        from ts.protocol.otf_message_handler import create_predict_response

        to.sendall(create_predict_response(self.bodies, self.ids, "ok", 200, self, self._stream))


class Outbox:
    """What goes out after a step of the engine: pieces of streams, all in one message, then the requests that are done."""

    def __init__(self, arrivals: Arrivals) -> None:
        self._arrivals = arrivals
        self._message = Message()
        self._socket: Any = None
        self._done: list[tuple[str, asyncio.Future[None]]] = []

    def put(self, to: Any, request_id: str, body: bytes, content_type: str) -> None:
        """Send one more piece of a stream to the socket `to` at the next flush."""
        self._socket = to
        self._message.add(request_id, body, content_type)

    def done(self, request_id: str, future: "asyncio.Future[None]") -> None:
        """All of the request's texts are there: `future` is resolved behind the pieces."""
        self._done.append((request_id, future))

    def flush(self) -> None:
        """Send the pieces, then resolve the futures: the last response of a request follows behind its pieces."""
        message, self._message = self._message, Message()
        done, self._done = self._done, []
        try:
            if message.bodies:
                message.send(self._socket)
        finally:
            for request_id, future in done:
                if not future.done():
                    self._arrivals.begin(request_id)
                future.get_loop().call_soon_threadsafe(_resolve, future)


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
