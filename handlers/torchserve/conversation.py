"""One request in TorchServe's asynchronous service: read, answered in pieces or whole, ended.

See handlers.torchserve.channel for what TorchServe makes necessary.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from handlers.protocols.reply import EVENTS, JSON, error_body
from handlers.torchserve import metrics
from handlers.torchserve.channel import Arrivals, Message, Outbox, lock_socket
from handlers.torchserve.requests import STREAM, asks_for_stream, is_rest
from handlers.torchserve.unanswered import Unanswered


class Frontend:
    """A worker's end of the channel. before_step and after_step are for the engine's thread, see `Engine`."""

    def __init__(self) -> None:
        self.arrivals = Arrivals()
        self.outbox = Outbox(self.arrivals)
        self.unanswered = Unanswered()
        self.before_step = self.arrivals.settle
        self.after_step = self.outbox.flush

    def attach(self, context: Any) -> None:
        """Begin to serve: called while TorchServe initializes the handler, with its context."""
        self.unanswered = Unanswered()
        self.unanswered.answer_left()
        metrics.share(context.metrics)

    def begin(self, context: Any) -> "Conversation":
        """A request has come; its context is the only one of the batch."""
        lock_socket(context.cl_socket)
        self.arrivals.watch(context.cl_socket)
        return Conversation(self, context)


class Conversation:
    """One request. Every method that ends it gives the bytes to return to TorchServe, the last response.

    headers: the request's and its fields'. rest: whether it came over HTTP, else gRPC.
    """

    def __init__(self, frontend: Frontend, context: Any) -> None:
        self.headers: Mapping[str, Any] = context.get_all_request_header(0)
        self.rest = is_rest(self.headers)
        self.metrics = context.metrics
        self._context = context
        self._frontend = frontend
        self._id: str = context.get_request_id(0)
        self._pieces = 0
        frontend.arrivals.begin(self._id)
        frontend.unanswered.begin(self._id, self.rest)

    def end(self) -> None:
        """The last response is made."""
        self._frontend.arrivals.end(self._id)
        self._frontend.unanswered.end(self._id)

    def close(self) -> None:
        """Let TorchServe forget the request with its last response."""
        self._context.set_response_header(0, STREAM, "false")

    def may_stream(self, row: Mapping[str, Any]) -> bool:
        """Whether a stream that the request asks for can be sent: over gRPC only a client of StreamPredictions takes it."""
        return self.rest or asks_for_stream(row)

    def wait(self) -> None:
        """The request waits for the engine now: steps may begin."""
        self._frontend.arrivals.end(self._id)

    def resolve(self, future: "asyncio.Future[None]") -> None:
        """From the engine's thread: resolve `future` behind the pieces of this step."""
        self._frontend.outbox.done(self._id, future)

    def piece(self, body: bytes) -> None:
        """From the engine's thread: one more piece of the stream, sent behind this step."""
        if not self._pieces and self.rest:
            self._frontend.unanswered.streams(self._id)
        self._pieces += 1
        self._frontend.outbox.put(self._context.cl_socket, self._id, body, EVENTS)

    @property
    def streaming(self) -> bool:
        """Whether pieces are out, and with them the status."""
        return self._pieces > 0

    def finish_stream(self, ending: bytes) -> bytes:
        """Answer with the stream's last events."""
        if not self.streaming:
            self._send(ending, EVENTS)
            ending = b""
        self._context.set_response_content_type(0, EVENTS)
        return ending

    def answer(self, body: bytes) -> bytes:
        """Answer with one JSON body."""
        if self.rest:
            self._send(body, JSON)
            return b""
        self._context.set_response_content_type(0, JSON)
        return body

    def refuse(self, code: int, message: str) -> bytes:
        """Answer with the error body, the same over REST and gRPC, and the HTTP status that only REST can carry."""
        body = error_body(code, message)
        if not self.rest:
            return body
        self._send(body, JSON, code)
        return b""

    def _send(self, body: bytes, content_type: str, status: int = 200) -> None:
        """All but the end of an answer over REST."""
        message = Message(stream=status == 200)
        message.add(self._id, body, content_type, status)
        message.send(self._context.cl_socket)
