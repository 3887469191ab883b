"""A batch that TorchServe made, where a server is told to make them: each request in it is read and answered by itself."""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from handlers.errors import BadRequest
from handlers.metrics import batch_measurements
from handlers.protocols.reply import JSON, error_body
from handlers.protocols.request import Request, Told
from handlers.torchserve import metrics
from handlers.torchserve.answering import Answering
from handlers.torchserve.requests import STREAM, is_rest, reason_of
from handlers.tracing import Trace, Tracer, named

logger = logging.getLogger(__name__)

Accepted = tuple[Request, list[Sequence[Any]]]


class Ran(Protocol):
    """See handlers.base.Ran."""

    outputs: list[np.ndarray | None]
    failed: dict[int, Exception]
    size: int
    computed: int


class Handler(Answering, Protocol):
    """What runs items, too. tracer: None where nothing is traced."""

    tracer: Tracer | None
    input: Any

    def run(self, items: Sequence[Any]) -> Ran:
        """What several requests ask for."""
        ...


def answer_batch(handler: Handler, data: Sequence[Mapping[str, Any]], context: Any) -> list[bytes]:
    """The bodies of [n] requests' answers; a request's mistake is that request's alone.

    Args:
        data: [n] requests. context: TorchServe's own, which gets each answer's status and content type.
    """
    started = time.perf_counter()
    arrived, tracer = time.monotonic(), handler.tracer
    traces: dict[int, Trace] = {}
    bodies: list[bytes] = [b""] * len(data)
    accepted: dict[int, Accepted] = {}
    for index, row in enumerate(data):
        if tracer is None:
            found = _read(handler, index, row, context)
        else:
            trace = traces[index] = tracer.begin(context.get_all_request_header(index), row, arrived)
            trace.part("queue")
            with named([trace]):
                found = _read(handler, index, row, context)
            trace.part("encode")
        if isinstance(found, bytes):
            bodies[index] = found
        else:
            accepted[index] = found
    everything = [item for _, prepared in accepted.values() for items in prepared for item in items]
    begun = time.monotonic()
    ran = handler.run(everything)
    ended = time.monotonic()
    position = 0
    for index, (request, prepared) in accepted.items():
        span = range(position, position + sum(map(len, prepared)))
        position = span.stop
        broken = next((ran.failed[i] for i in span if i in ran.failed), None)
        outputs = ran.outputs[span.start : span.stop]
        status, bodies[index], content_type = handler.answer(request, prepared, outputs, broken)
        context.set_response_content_type(index, content_type)
        if status != 200:
            context.set_response_status(status, reason_of(status), index)
    for index, trace in traces.items():
        if index in accepted:
            trace.part("queue", begun)
            trace.part("run", ended, {"marpress.batch.size": len(everything)})
            trace.part("answer")
            prepared = accepted[index][1]
            sizes = sum(handler.input.size(item) for items in prepared for item in items)
            trace.note({"marpress.inputs": len(prepared), "marpress.tokens": sizes})
        trace.end(context.get_response_status(index)[0] or 200)
    measured = batch_measurements(
        requests=len(data),
        errors=sum(context.get_response_status(index)[0] not in (None, 200) for index in range(len(data))),
        inputs=sum(len(prepared) for _, prepared in accepted.values()),
        tokens=ran.size,
        computed_tokens=ran.computed,
        seconds=time.perf_counter() - started,
    )
    metrics.emit(context.metrics, measured)
    return bodies


def _read(handler: Handler, index: int, row: Mapping[str, Any], context: Any) -> Accepted | bytes:
    """One request, or the body that it is answered with."""
    try:
        headers = context.get_all_request_header(index)
        if not is_rest(headers):
            # A call of StreamPredictions without it ends the worker; the others do not look at it.
            context.set_response_header(index, STREAM, "false")
        return handler.accept(row, headers)
    except Told as told:
        context.set_response_content_type(index, JSON)
        return told.body
    except BadRequest as error:
        render = error.render or error_body
        return _refuse(context, index, error.code, render(error.code, str(error)))
    except Exception as error:  # one request must not take the batch with it, whatever it found
        logger.exception("request %d of the batch failed", index)
        message = f"the request could not be read: {type(error).__name__}"
        return _refuse(context, index, 500, error_body(500, message))


def _refuse(context: Any, index: int, code: int, body: bytes) -> bytes:
    """The error's body, the same over REST and gRPC, and the HTTP status that only REST can carry."""
    context.set_response_status(code, reason_of(code), index)
    context.set_response_content_type(index, JSON)
    return body
