"""Whether requests are traced, whose child a trace is, and that no setting and no collector harms them."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from collector import SERVER, Collector, parts_of
from places import ROOT

from handlers import tracing
from handlers.tracing import Tracer, named, open_tracer

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, NOT_SAMPLED = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"


@pytest.fixture
def collector() -> Iterator[Collector]:
    found = Collector()
    yield found
    found.close()


@pytest.fixture
def tracer(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tracer]:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    found = open_tracer(lambda: {"marpress.model.name": "films"})
    assert found is not None
    yield found
    found.close()


def once(tracer: Tracer, headers: dict[str, Any], row: dict[str, Any] | None = None, status: int = 200) -> str:
    """One request, traced. Returns: its trace's id."""
    trace = tracer.begin(headers, row or {}, time.monotonic() - 0.01)
    trace.part("queue")
    trace.part("run", attributes={"marpress.batch.size": 2})
    trace.note({"marpress.inputs": 1})
    trace.end(status)
    return trace.id


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "OTEL_SDK_DISABLED": "TRUE"},
        {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318", "OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_SERVICE_NAME": "x", "OTEL_TRACES_SAMPLER": "always_on"},
    ],
)
def test_off_unless_an_endpoint_is_named(given: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert open_tracer(lambda: pytest.fail("nobody asks for the facts")) is None


def test_off_nothing_is_imported() -> None:
    code = (
        "import sys; sys.path.insert(0, '.')\nfrom handlers.tracing import open_tracer\nimport handlers.base\n"
        "assert open_tracer(dict) is None\nprint([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={}, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    assert open_tracer(dict) is None
    (line,) = caplog.messages
    assert line.startswith(
        "requests are not traced: an OTLP endpoint is set, and this Python has not opentelemetry-sdk"
    )


def test_a_setting_that_cannot_be_used_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "5")
    assert open_tracer(dict) is None
    assert caplog.messages[-1].startswith("requests are not traced: the settings of OpenTelemetry cannot be used: ")


def test_the_parent_is_the_header_s(tracer: Tracer, collector: Collector) -> None:
    assert once(tracer, {"TraceParent": SAMPLED, "Host": "x"}) == TRACE
    assert once(tracer, {"traceparent": {"content-type": ""}}, {"traceparent": SAMPLED.encode(), "data": b"x"}) == TRACE
    tracer.close()
    first, second = [span for span in collector.spans if span.name == "predict films"]
    assert first.parent == second.parent == SPAN and first.trace == TRACE and first.kind == SERVER
    assert first.service == "marpress" and first.status == 0
    assert first.attributes == {
        "marpress.model.name": "films",
        "marpress.inputs": 1,
        "http.response.status_code": 200,
    }
    queue, run = parts_of(collector.spans, first)
    assert (queue.name, run.name) == ("queue", "run") and run.attributes == {"marpress.batch.size": 2}
    assert queue.begin == first.begin and queue.end - queue.begin >= 10_000_000


@pytest.mark.parametrize(
    "parent",
    [
        None,
        "rubbish",
        "",
        f"00-{TRACE}-{SPAN}",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{SPAN}-01",
        SAMPLED + "x" * 5000,
        f"00-{TRACE.replace('0', 'g')}-{SPAN}-01",
    ],
)
def test_without_a_parent_or_with_a_wrong_one_a_trace_begins(
    tracer: Tracer, collector: Collector, parent: str | None
) -> None:
    found = once(tracer, {} if parent is None else {"traceparent": parent, "tracestate": "a=b"})
    tracer.close()
    (whole,) = [span for span in collector.spans if span.kind == SERVER]
    assert whole.trace == found != TRACE and whole.parent == "" and len(parts_of(collector.spans, whole)) == 2


def test_a_parent_that_is_not_sampled_is_not_sent(tracer: Tracer, collector: Collector) -> None:
    assert once(tracer, {"traceparent": NOT_SAMPLED}) == TRACE
    once(tracer, {"traceparent": SAMPLED})
    tracer.close()
    assert len(collector.spans) == 3


def test_the_service_s_name_and_the_sampler_are_the_sdk_s(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{collector.url}/v1/traces")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "sentiment")
    for sampler, sent in (("always_off", 0), ("always_on", 3)):
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
        tracer = open_tracer(dict)
        assert tracer is not None
        once(tracer, {"traceparent": SAMPLED})
        tracer.close()
        assert len(collector.spans) == sent
    assert {span.service for span in collector.spans} == {"sentiment"}


def test_errors(tracer: Tracer, collector: Collector) -> None:
    for status in (400, 500):
        once(tracer, {}, status=status)
    tracer.close()
    refused, failed = [span for span in collector.spans if span.kind == SERVER]
    assert (refused.status, refused.attributes.get("error.type")) == (0, None)
    assert (failed.status, failed.attributes["error.type"]) == (2, "500")


def test_log_lines_name_the_trace(tracer: Tracer, caplog: pytest.LogCaptureFixture) -> None:
    trace = tracer.begin({"traceparent": SAMPLED}, {}, time.monotonic())
    other = tracer.begin({}, {}, time.monotonic())
    with named([trace]):
        logging.getLogger("x").error("it failed: %d %%", 5)
    with named([trace, None, other]):
        logging.getLogger("x").error("both")
    logging.getLogger("x").error("nobody's")
    assert caplog.messages == [f"it failed: 5 % [trace_id={TRACE}]", f"both [trace_id={TRACE},{other.id}]", "nobody's"]


def test_a_collector_that_is_gone_costs_spans_and_no_request(
    collector: Collector, tracer: Tracer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "_CLOSING_SECONDS", 0.1)
    collector.close()
    started = time.monotonic()
    for _ in range(1500):  # more than the queue holds
        once(tracer, {"traceparent": SAMPLED})
    assert time.monotonic() - started < 10
    started = time.monotonic()
    tracer.close()
    assert time.monotonic() - started < 5
