"""The span of a request for text: what it waited for, its tokens, the time to the first and between the others."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from collector import SERVER, Collector, Seen, parts_of
from generating import asked, ids_of, one, slowed
from torchserve_side import REST, Told, ask, wire_of

from handlers.tasks.text.generation import TextGenerationHandler

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = REST | {"traceparent": f"00-{TRACE}-{SPAN}-01"}


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with closing(Collector()) as found:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
        yield found


@pytest.fixture
def traced(make: Callable[..., TextGenerationHandler], collector: Collector) -> Iterator[TextGenerationHandler]:
    handler = make(end_ids=[])
    handler.model_name = "writer"
    wire_of(handler)
    handler.conversations.tracer = handler.open_tracer()  # as `run` does
    yield handler
    handler.conversations.tracer.close()


def wholes(handler: TextGenerationHandler, collector: Collector) -> list[Seen]:
    handler.conversations.tracer.close()
    return [span for span in collector.spans if span.kind == SERVER]


@pytest.mark.parametrize("stream", [False, True])
def test_the_life_of_a_request(traced: TextGenerationHandler, collector: Collector, stream: bool) -> None:
    slowed(traced, lambda: asyncio.run(asyncio.sleep(0.01)))
    assert one(traced, asked("a film", 5) | {"stream": stream}, PARENT).status == 200
    (whole,) = wholes(traced, collector)
    assert (whole.trace, whole.parent, whole.name) == (TRACE, SPAN, "predict writer")
    known = whole.attributes
    assert known["marpress.runtime"] == "torch" and known["http.response.status_code"] == 200
    assert known["gen_ai.usage.input_tokens"] == len(ids_of(traced, "a film"))
    assert known["gen_ai.usage.output_tokens"] == 5 and known["gen_ai.response.finish_reasons"] == ["length"]
    seconds = (whole.end - whole.begin) / 1e9
    first, between = known["gen_ai.server.time_to_first_token"], known["gen_ai.server.time_per_output_token"]
    assert first >= 0.01 and between >= 0.01 and first + 4 * between <= seconds
    parts = parts_of(collector.spans, whole)
    assert [part.name for part in parts] == ["encode", "queue", "run", "answer"]
    assert parts[2].attributes == {"marpress.batch.size": 1} and parts[2].end - parts[2].begin >= 50_000_000


def test_who_has_to_wait_for_a_place_is_in_the_queue(traced: TextGenerationHandler, collector: Collector) -> None:
    """The batch has four places: the fifth text is let in when the others have gone."""
    slowed(traced, lambda: asyncio.run(asyncio.sleep(0.01)))

    async def together() -> list[Told]:
        rows: list[dict[str, Any]] = [{"body": asked(["a film", "good"], 6)}] * 2 + [{"body": asked("a film", 2)}]
        return await asyncio.gather(*(ask(traced, row, REST) for row in rows))

    assert [told.status for told in asyncio.run(together())] == [200] * 3
    found = sorted(wholes(traced, collector), key=lambda span: span.attributes["gen_ai.usage.output_tokens"])
    assert [span.attributes["marpress.inputs"] for span in found] == [1, 2, 2]
    queues = [parts_of(collector.spans, span)[1] for span in found]
    assert all(part.name == "queue" for part in queues)
    last, *others = [part.end - part.begin for part in queues]
    assert last >= 50_000_000 and last > max(others)
    # One text left the batch in the very step that let the last one in.
    assert 2 <= parts_of(collector.spans, found[0])[2].attributes["marpress.batch.size"] <= 5


def test_what_is_refused_or_fails(
    traced: TextGenerationHandler, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    assert one(traced, asked("a film", 0), PARENT).status == 400

    def fail() -> None:
        raise RuntimeError("no more")

    slowed(traced, fail)
    assert one(traced, asked("a film", 5), PARENT).status == 500
    refused, failed = wholes(traced, collector)
    assert refused.attributes["http.response.status_code"] == 400
    assert [part.name for part in parts_of(collector.spans, refused)] == ["encode"]
    assert failed.attributes["http.response.status_code"] == 500 and failed.status == 2
    assert [part.name for part in parts_of(collector.spans, failed)] == ["encode", "queue", "answer"]
    assert f"the model failed on a request: the model failed: RuntimeError [trace_id={TRACE}]" in caplog.messages


def test_no_text_leaves(traced: TextGenerationHandler, collector: Collector) -> None:
    told = one(traced, asked("a film", 4), PARENT)
    wholes(traced, collector)
    assert b"a film" not in collector.bodies and told.json[0]["generated_text"].encode() not in collector.bodies
