"""A server with settings of its own: requests traced to a collector, and headers for browsers (CORS)."""

from __future__ import annotations

import http.client
import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from collector import SERVER, Collector, Seen, parts_of
from live_client import Grpc, Reply, Rest
from places import ROOT
from served import Served
from serving_mar import echo_mar

from archiver.torchserve.server import TorchServe
from archiver.torchserve.settings import private_properties, read_properties

NAME = "films"
ORIGIN = "https://app.example"
CORS = {
    "cors_allowed_origin": ORIGIN,
    "cors_allowed_methods": "GET, POST, OPTIONS",
    "cors_allowed_headers": "Authorization, Content-Type",
}
PREFLIGHT = {
    "Origin": ORIGIN,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type",
}
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with closing(Collector()) as found:
        yield found


@pytest.fixture(scope="module")
def served(
    archives: dict[str, Served], collector: Collector, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TorchServe]:
    """Started as `make serve` starts one: settings from a config.properties, tracing from the environment."""
    config = tmp_path_factory.mktemp("settings") / "config.properties"
    lines = "".join(f"{key}={value}\n" for key, value in CORS.items())
    config.write_text((ROOT / "config.properties").read_text() + lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        patch.setenv("OTEL_SERVICE_NAME", "sentiment")
        with TorchServe([archives[NAME].path], config=config) as running:
            running.wait_ready(120)
            yield running


@pytest.fixture(scope="module")
def open_to_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    """Without keys, as behind a proxy that asks for its own."""
    properties = private_properties({**read_properties(ROOT / "config.properties"), **CORS})
    properties["disable_token_authorization"] = "true"
    with TorchServe([echo_mar(tmp_path_factory.mktemp("echo"), NAME)], properties=properties) as running:
        running.wait_ready(120)
        yield running


def roots(collector: Collector, count: int) -> list[Seen]:
    spans = collector.wait(lambda spans: sum(span.kind == SERVER for span in spans) >= count)
    return [span for span in spans if span.kind == SERVER]


def ask(server: TorchServe, trace: str, flags: str = "01") -> Reply:
    with Rest(server) as rest:
        headers: dict[str, str | bytes] = {"traceparent": f"00-{trace}-{SPAN}-{flags}"}
        return rest.post(NAME, {"inputs": ["a dull film", "good"]}, headers=headers)


def test_spans_of_a_server(served: TorchServe, collector: Collector) -> None:
    assert ask(served, TRACE, "00").status == 200
    assert ask(served, TRACE).status == 200
    with Grpc(served) as grpc:
        given = f"00-{TRACE[::-1]}-{SPAN}-01".encode()
        assert grpc.call(NAME, {"data": b'{"inputs": 5}', "traceparent": given}).status == 400
    rest, over_grpc = sorted(roots(collector, 2), key=lambda span: span.begin)
    assert (rest.trace, rest.parent, rest.service) == (TRACE, SPAN, "sentiment")
    assert (over_grpc.trace, over_grpc.parent) == (TRACE[::-1], SPAN)
    assert over_grpc.attributes["http.response.status_code"] == 400
    names = [part.name for part in parts_of(collector.spans, rest)]
    assert names[0] == "queue" and names[-1] == "answer" and {"encode", "run"} <= set(names)
    assert rest.attributes == {
        "marpress.model.name": NAME,
        "marpress.model.version": "v1",
        "marpress.task": "text-classification",
        "marpress.runtime": "onnxruntime",
        "marpress.inputs": 2,
        "marpress.tokens": rest.attributes["marpress.tokens"],
        "http.response.status_code": 200,
    }
    assert b"dull" not in collector.bodies


def test_who_takes_a_dead_worker_s_place_traces_too(served: TorchServe, collector: Collector) -> None:
    before = len(roots(collector, 0))
    (worker,) = served.workers(NAME)
    (serving,) = psutil.Process(worker.pid).children()
    os.kill(serving.pid, signal.SIGKILL)
    assert ask(served, TRACE).status in (200, 503)
    while ask(served, "1" * 32).status != 200:
        pass
    assert roots(collector, before + 1)[-1].trace == "1" * 32


def test_a_collector_that_ends_is_no_request_s_matter(served: TorchServe, collector: Collector) -> None:
    collector.close()
    assert [ask(served, TRACE).status for _ in range(20)] == [200] * 20


def allowed(
    server: TorchServe, method: str, headers: dict[str, str], body: bytes | None = None
) -> tuple[int, dict[str, str]]:
    """Status, and what the answer allows browsers."""
    parts = urlsplit(server.inference_url)
    with closing(http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)) as connection:
        connection.request(method, f"/predictions/{NAME}", body, headers)
        answer = connection.getresponse()
        answer.read()
        found = {name.lower(): value for name, value in answer.getheaders()}
    start = "access-control-allow-"
    return answer.status, {
        f"cors_allowed_{name.removeprefix(start)}": value for name, value in found.items() if name.startswith(start)
    }


def test_cors_where_it_is_set_and_keys_are_wanted(served: TorchServe) -> None:
    """The headers are on every answer; a preflight, which never brings a key, is refused all the same."""
    key = {"Authorization": f"Bearer {served.inference_key}", "Origin": ORIGIN}
    assert allowed(served, "POST", key, b"good") == (200, CORS)
    assert allowed(served, "POST", key, b"{}") == (400, CORS)
    assert allowed(served, "GET", {"Origin": ORIGIN}) == (400, CORS)
    assert allowed(served, "OPTIONS", PREFLIGHT) == (400, CORS)


def test_cors_without_keys(open_to_all: TorchServe) -> None:
    assert allowed(open_to_all, "OPTIONS", PREFLIGHT) == (200, CORS)
    assert allowed(open_to_all, "POST", {"Origin": ORIGIN}, b"x") == (200, CORS)


def test_no_cors_where_it_is_not_set(server: TorchServe) -> None:
    key = {"Authorization": f"Bearer {server.inference_key}", "Origin": ORIGIN}
    assert allowed(server, "POST", key, b"good") == (200, {})
    assert allowed(server, "OPTIONS", PREFLIGHT) == (400, {})


def test_the_settings_that_are_shipped_allow_no_browser() -> None:
    assert not [key for key in read_properties(Path(ROOT / "config.properties")) if key.startswith("cors")]
