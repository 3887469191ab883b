"""An OpenTelemetry collector of some lines: what is sent to it over OTLP/HTTP, decoded."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

SERVER, INTERNAL = 2, 1  # kinds of spans


@dataclass(frozen=True)
class Seen:
    """One span. parent: "" for a root's. begin, end: nanoseconds."""

    name: str
    trace: str
    id: str
    parent: str
    kind: int
    begin: int
    end: int
    status: int
    attributes: dict[str, Any]
    service: str


class Collector:
    """Listens on a free port of the loopback until `close`."""

    def __init__(self) -> None:
        self.spans: list[Seen] = []
        self.bodies = b""
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector.take(self.path, self.rfile.read(int(self.headers["content-length"])))
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def take(self, path: str, body: bytes) -> None:
        assert path == "/v1/traces"
        self.bodies += body
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = next(one.value.string_value for one in group.resource.attributes if one.key == "service.name")
            for scope in group.scope_spans:
                self.spans += [_seen(span, service) for span in scope.spans]

    def wait(self, enough: Callable[[list[Seen]], bool], seconds: float = 10.0) -> list[Seen]:
        """The spans, once there are enough."""
        until = time.monotonic() + seconds
        while not enough(self.spans):
            assert time.monotonic() < until, self.spans
            time.sleep(0.02)
        return self.spans

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _seen(span: Any, service: str) -> Seen:
    return Seen(
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.kind,
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        span.status.code,
        {one.key: _value(one.value) for one in span.attributes},
        service,
    )


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, kind)


def parts_of(spans: list[Seen], whole: Seen) -> list[Seen]:
    """The spans within one, in order; they lie in it and follow each other."""
    parts = sorted((span for span in spans if span.parent == whole.id), key=lambda span: span.begin)
    assert all(part.trace == whole.trace and part.kind == INTERNAL for part in parts)
    places = [whole.begin, *(moment for part in parts for moment in (part.begin, part.end)), whole.end]
    assert places == sorted(places)
    assert sum(part.end - part.begin for part in parts) <= whole.end - whole.begin
    return parts
