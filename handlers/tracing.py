"""OpenTelemetry spans of requests, where the environment names a collector; elsewhere there is no tracer, and no import.

A request is one span, whose parent its `traceparent` names (W3C Trace Context), and its parts follow each other within it:
queue, encode, run, answer. They hold names and numbers, never a text. What is sent goes through a bounded queue and a
thread of its own: a collector that is slow or gone costs spans, not requests.

A tracer belongs to the process that made it: it is made where requests are answered, after the last fork.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

logger = logging.getLogger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PARENT = ("traceparent", "tracestate")
_LONGEST = 1024  # characters of such a header
_CLOSING_SECONDS = 2.0
_NEEDED = "opentelemetry-sdk and opentelemetry-exporter-otlp-proto-http"
_current: ContextVar[str] = ContextVar("marpress_trace", default="")


def open_tracer(facts: Callable[[], Mapping[str, Any]]) -> "Tracer | None":
    """The tracer that the standard environment variables ask for; None where they do not, or where it cannot be made.

    Args:
        facts: attributes that every request's span has; asked for only where there is a tracer.
    """
    given = os.environ
    asked = any(given.get(name, "").strip() for name in _ENDPOINTS)
    off = given.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if not asked or off or given.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none":
        return None
    try:
        return Tracer(facts())
    except ImportError as error:
        logger.warning(
            "requests are not traced: an OTLP endpoint is set, and this Python has not %s (%s): install them",
            _NEEDED,
            error,
        )
    except Exception as error:  # whatever a setting says: serving goes on
        logger.warning("requests are not traced: the settings of OpenTelemetry cannot be used: %s", error)
    return None


class Tracer:
    """Begins requests' traces. Made by `open_tracer`."""

    def __init__(self, facts: Mapping[str, Any]) -> None:
        from opentelemetry.context import Context
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace import SpanContext, SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create()
        if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": "marpress"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._sending = BatchSpanProcessor(OTLPSpanExporter())
        self._provider.add_span_processor(self._sending)
        self._spans = self._provider.get_tracer("marpress")
        self._parents = TraceContextTextMapPropagator()
        self._no_context = Context()
        self._context, self._readable = SpanContext, ReadableSpan
        self._kind = SpanKind.SERVER
        self._facts = dict(facts)
        self._name = f"predict {self._facts.get('marpress.model.name', '')}".strip()
        # It has a record made for every span that finds the queue full; what the exporter says of the collector is enough.
        logging.getLogger("opentelemetry.sdk._shared_internal").setLevel(logging.ERROR)
        _name_in_log_lines()

    def begin(self, headers: Mapping[str, Any], row: Mapping[str, Any], arrived: float) -> "Trace":
        """One request's trace.

        Args:
            headers, row: as they came; over gRPC, whose metadata no worker is told, its inputs may name the parent.
            arrived: time.monotonic().
        """
        carrier = _parent_of(headers, row)
        context = self._parents.extract(carrier, self._no_context) if carrier else self._no_context
        zero = time.time_ns() - time.monotonic_ns()
        begun = zero + int(arrived * 1e9)
        span = self._spans.start_span(
            self._name, context, kind=self._kind, attributes=self._facts, start_time=begun, record_exception=False
        )
        return Trace(self, span, zero, arrived)

    def part(self, whole: Any, name: str, begin: int, end: int, attributes: Mapping[str, Any]) -> None:
        """A span within another, which is sent. begin, end: nanoseconds of the epoch.

        Made as the span that is read, at once: begun and ended in the SDK's way it takes ten times as long.
        """
        parent = whole.get_span_context()
        own = self._context(
            parent.trace_id,
            self._provider.id_generator.generate_span_id(),
            False,
            parent.trace_flags,
            parent.trace_state,
        )
        self._sending.on_end(
            self._readable(
                name,
                own,
                parent,
                self._provider.resource,
                attributes,
                start_time=begin,
                end_time=end,
                instrumentation_scope=whole.instrumentation_scope,
            )
        )

    def close(self) -> None:
        """Send what is left, as far as that goes quickly, and end."""
        sending = threading.Thread(target=self._provider.shutdown, daemon=True)
        sending.start()
        sending.join(_CLOSING_SECONDS)


class Trace:
    """One request's.

    id: of the trace, which the request's parent shares, in hexadecimal.

    Its parts follow each other without a gap from when the request arrived.
    """

    def __init__(self, tracer: Tracer, span: Any, zero: int, arrived: float) -> None:
        self._tracer, self._span, self._zero, self._since = tracer, span, zero, arrived
        self._recorded: bool = span.is_recording()
        self.id = f"{span.get_span_context().trace_id:032x}"

    def part(self, name: str, until: float | None = None, attributes: Mapping[str, Any] | None = None) -> None:
        """From the end of the part before it until now, or until time.monotonic() was `until`."""
        if not self._recorded:
            return
        since, self._since = self._since, max(self._since, time.monotonic() if until is None else until)
        begin, end = (self._zero + int(moment * 1e9) for moment in (since, self._since))
        self._tracer.part(self._span, name, begin, end, attributes or {})

    def note(self, attributes: Mapping[str, Any]) -> None:
        """What is known of the request by now."""
        self._span.set_attributes(attributes)

    def end(self, status: int) -> None:
        """It is answered. status: HTTP's, over gRPC the one that its body says."""
        if not self._recorded:
            return
        self._span.set_attribute("http.response.status_code", status)
        if status >= 500:
            from opentelemetry.trace import Status, StatusCode

            self._span.set_attribute("error.type", str(status))
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end(self._zero + int(max(self._since, time.monotonic()) * 1e9))


@contextmanager
def named(traces: Iterable[Trace | None]) -> Iterator[None]:
    """Inside, log lines of this thread, or coroutine, name these traces; None for a request that is not traced."""
    found = dict.fromkeys(trace.id for trace in traces if trace is not None)
    if not found:
        yield
        return
    token = _current.set(",".join(found))
    try:
        yield
    finally:
        _current.reset(token)


def _name_in_log_lines() -> None:
    """From now on, of every record in this process that is made inside `named`."""
    plain: Any = logging.getLogRecordFactory()
    if hasattr(plain, "names_traces"):
        return

    def record(*args: Any, **more: Any) -> logging.LogRecord:
        made: logging.LogRecord = plain(*args, **more)
        if found := _current.get():
            made.msg = f"{made.msg} [trace_id={found}]"
        return made

    record.names_traces = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(record)


def _parent_of(headers: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, str]:
    """traceparent and tracestate, of the request's headers or else of its inputs."""
    found = {}
    for name, value in (*row.items(), *headers.items()):
        if (known := name.lower()) in _PARENT:
            if isinstance(value, (bytes, bytearray)):
                value = value[: _LONGEST + 1].decode("ascii", "replace")
            if isinstance(value, str) and len(value) <= _LONGEST:
                found[known] = value.strip()
    return found
