"""The spans of a worker that makes its own batches, and of one whose batches TorchServe makes."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from collector import SERVER, Collector, Seen, parts_of
from doubling import Doubles, Frontend

from handlers.base import Ran
from handlers.torchserve.batches import answer_batch
from handlers.tracing import Tracer, open_tracer

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = {"Traceparent": f"00-{TRACE}-{SPAN}-01"}


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with closing(Collector()) as found:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
        yield found


@pytest.fixture
def tracer(collector: Collector) -> Iterator[Tracer]:
    found = open_tracer(lambda: {"marpress.model.name": "doubles"})
    assert found is not None
    yield found
    found.close()


@pytest.fixture
def frontend(tracer: Tracer) -> Iterator[Frontend]:
    with closing(Frontend(Doubles(max_queue=3), lambda: tracer)) as made:
        yield made


def wholes(collector: Collector, tracer: Tracer) -> list[Seen]:
    """The requests' spans, in the order in which they ended."""
    tracer.close()
    return [span for span in collector.spans if span.kind == SERVER]


def test_the_life_of_requests(frontend: Frontend, collector: Collector, tracer: Tracer) -> None:
    frontend.ask("a", [1, 3], **PARENT)
    frontend.ask("b", [2])
    frontend.service.turn()
    assert frontend.outcome() == {"a": (200, [2, 6]), "b": (200, [4])}
    by_inputs = {span.attributes["marpress.inputs"]: span for span in wholes(collector, tracer)}
    assert by_inputs[2].trace == TRACE and by_inputs[2].parent == SPAN and by_inputs[1].parent == ""
    for inputs, tokens in ((2, 4), (1, 2)):
        whole = by_inputs[inputs]
        assert whole.name == "predict doubles" and whole.attributes["marpress.tokens"] == tokens
        assert whole.attributes["http.response.status_code"] == 200
        parts = parts_of(collector.spans, whole)
        assert [part.name for part in parts] == ["queue", "encode", "queue", "run", "answer"]
        assert parts[3].attributes == {
            "marpress.batch.size": 3,
            "marpress.batch.length": 3,
            "marpress.batch.rows": 3,
        }
        assert (parts[-1].end, parts[0].begin) <= (whole.end, whole.begin)


def test_a_request_of_several_runs_has_one_part_for_them(
    frontend: Frontend, collector: Collector, tracer: Tracer
) -> None:
    frontend.ask("a", [1, 1, 1, 1, 1, 60], **PARENT)
    for _ in range(3):
        frontend.service.turn()
    assert len(frontend.handler.ran) == 3
    (whole,) = wholes(collector, tracer)
    assert [part.name for part in parts_of(collector.spans, whole)] == ["queue", "encode", "queue", "run", "answer"]


def test_what_is_refused_or_fails_is_traced_too(
    frontend: Frontend, collector: Collector, tracer: Tracer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    frontend.ask("worse", [0], **PARENT)
    frontend.ask("bad", {"no": "list"})
    frontend.ask("broken", [50])
    frontend.ask("good", [1])
    frontend.ask("beyond the queue", [1])
    for _ in range(2):
        frontend.service.turn()
    statuses = sorted(span.attributes["http.response.status_code"] for span in wholes(collector, tracer))
    assert statuses == [200, 400, 500, 500, 503]
    assert any(f"a request failed [trace_id={TRACE}]" in line for line in caplog.messages)
    for whole in collector.spans:
        if whole.kind == SERVER:
            parts_of(collector.spans, whole)
            assert whole.status == (2 if whole.attributes["http.response.status_code"] >= 500 else 0)


def test_what_waited_in_vain_was_in_the_queue(frontend: Frontend, collector: Collector, tracer: Tracer) -> None:
    frontend.ask("short", [1])
    frontend.ask("late", [64], **{"x-deadline-ms": "10"})
    frontend.service.turn()
    time.sleep(0.02)
    frontend.ask("next", [1])
    frontend.service.turn()
    (late,) = [one for one in wholes(collector, tracer) if one.attributes["http.response.status_code"] == 504]
    parts = parts_of(collector.spans, late)
    assert [part.name for part in parts] == ["queue", "encode", "queue"] and parts[-1].end - parts[
        -1
    ].begin >= 10_000_000


def test_no_text_leaves(frontend: Frontend, collector: Collector, tracer: Tracer) -> None:
    frontend.ask("a", [1], Authorization="Bearer SECRET", **PARENT)
    frontend.ask("b", {"inputs": "SECRET"})
    frontend.service.turn()
    tracer.close()
    assert collector.bodies and b"SECRET" not in collector.bodies


class Batched(Doubles):
    """The same, given batches."""

    def __init__(self, tracer: Tracer | None) -> None:
        super().__init__()
        self.tracer = tracer

    def run(self, items: Any) -> Ran:
        outputs, broken = self.run_batch(items, 64, len(items))
        failed = {} if broken is None else {index: broken for index in range(len(items))}
        return Ran(list(outputs) if outputs is not None else [None] * len(items), failed, sum(items), 64)


class Context:
    """TorchServe's, as far as it is called."""

    metrics = None

    def __init__(self, headers: list[dict[str, str]]) -> None:
        self.headers = headers
        self.statuses = [(None, None)] * len(headers)

    def get_all_request_header(self, index: int) -> dict[str, str]:
        return self.headers[index]

    def set_response_content_type(self, index: int, value: str) -> None:
        pass

    def set_response_status(self, code: Any, phrase: Any, index: int) -> None:
        self.statuses[index] = (code, phrase)

    def get_response_status(self, index: int) -> tuple[Any, Any]:
        return self.statuses[index]


def test_batches_that_torchserve_makes(collector: Collector, tracer: Tracer) -> None:
    rows = [{"body": json.dumps(body).encode()} for body in ([1, 3], {"no": "list"}, [2])]
    headers = [{"Host": "x", **PARENT}, {"Host": "x"}, {"Host": "x"}]
    assert answer_batch(Batched(tracer), rows, Context(headers))[0] == b"[2, 6]"
    assert answer_batch(Batched(None), rows, Context(headers))[2] == b"[4]"
    first, refused, last = wholes(collector, tracer)
    assert (first.parent, refused.parent, last.parent) == (SPAN, "", "")
    statuses = [span.attributes["http.response.status_code"] for span in (first, refused, last)]
    assert statuses == [200, 400, 200]
    assert [part.name for part in parts_of(collector.spans, refused)] == ["queue", "encode"]
    for whole, inputs, tokens in ((first, 2, 4), (last, 1, 2)):
        parts = parts_of(collector.spans, whole)
        assert [part.name for part in parts] == ["queue", "encode", "queue", "run", "answer"]
        assert parts[3].attributes == {"marpress.batch.size": 3}
        assert (whole.attributes["marpress.inputs"], whole.attributes["marpress.tokens"]) == (inputs, tokens)
