"""The load generator's numbers add up: against a server of known delay, and against a real TorchServe over gRPC."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from serving_mar import echo_mar

from archiver.bench.load import Load, LoadError, generate, percentile
from archiver.torchserve.server import TorchServe
from archiver.torchserve.settings import addresses, free_ports

DELAY = 0.05


class _Delayed(BaseHTTPRequestHandler):
    """Keep-alive HTTP whose answers take DELAY seconds. Bodies ask for an error, a chunked answer, a close."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    seen: ClassVar[list[bytes]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append(body)
        time.sleep(5 * DELAY if body == b"slow" else DELAY)
        if body == b"close":
            self.close_connection = True
            return
        self.send_response(503 if body == b"busy" else 200)
        if body == b"chunks":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"5\r\nhello\r\n")
            self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"hello")

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: the tests' output is not the place."""


@pytest.fixture
def delayed() -> Iterator[int]:
    _Delayed.seen.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Delayed)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("clients", [1, 8])
def test_throughput_is_clients_over_delay(delayed: int, clients: int) -> None:
    found = generate(Load("rest", "127.0.0.1", delayed, "m", [b"a", b"b"], clients=clients, seconds=2, warmup=0.5))
    assert found.errors == {}
    assert found.throughput == found.count / found.seconds
    # Never faster than the delay allows; slower only by what a busy machine adds.
    assert 0.6 * clients / DELAY < found.throughput <= 1.02 * clients / DELAY
    assert found.p50_ms is not None and found.p95_ms is not None and found.p99_ms is not None
    assert 1000 * DELAY <= found.p50_ms <= found.p95_ms <= found.p99_ms
    assert 0 < found.cpu_share < 0.5


def test_bodies_go_out_in_their_order(delayed: int) -> None:
    generate(Load("rest", "127.0.0.1", delayed, "m", [b"a", b"b", b"c"], clients=1, seconds=0.6, warmup=0))
    assert len(_Delayed.seen) > 3
    assert _Delayed.seen == [b"abc"[place % 3 :][:1] for place in range(len(_Delayed.seen))]


def test_latencies_are_told_by_kind_of_body(delayed: int) -> None:
    kinds = ["quick", "quick", "slow"]
    load = Load("rest", "127.0.0.1", delayed, "m", [b"a", b"b", b"slow"], clients=2, seconds=1.5, warmup=0, kinds=kinds)
    found = generate(load).kinds
    assert found.keys() == {"quick", "slow"}
    assert 1000 * DELAY <= found["quick"][0] <= found["quick"][1]
    assert found["quick"][0] < 5000 * DELAY <= found["slow"][0] <= found["slow"][1]


def test_outcomes_are_counted_by_kind(delayed: int) -> None:
    bodies = [b"busy", b"close", b"chunks"]
    found = generate(Load("rest", "127.0.0.1", delayed, "m", bodies, clients=3, seconds=1.5, warmup=0))
    assert set(found.errors) == {"503", "connection lost"}
    assert found.count > 3  # chunked answers are answers
    (port,) = free_ports(1)
    found = generate(Load("rest", "127.0.0.1", port, "m", [b"a"], clients=2, seconds=0.5, warmup=0))
    assert set(found.errors) == {"connection: ConnectionRefusedError"}
    assert (found.count, found.throughput, found.p50_ms) == (0, 0.0, None)


def test_grpc_load_on_a_real_server(tmp_path: Path) -> None:
    refused = b'{"error": {"code": 400, "message": "no"}}'
    with TorchServe([echo_mar(tmp_path, delay=DELAY)]) as server:
        server.wait_ready(120)
        host, port = addresses(server.properties)["grpc_inference_port"]
        load = Load("grpc", host, port, "echo", [b"a"], token=server.inference_key, clients=4, seconds=2)
        found = generate(load)
        # One worker that takes one request at a time: its delay is the bound for all clients together.
        assert 0.5 / DELAY < found.throughput <= 1.1 / DELAY
        assert found.errors == {}
        mixed = generate(Load("grpc", host, port, "echo", [b"a", refused], token=server.inference_key, seconds=1))
        assert set(mixed.errors) == {"400"}
        assert mixed.count > 0
        unauthorized = generate(Load("grpc", host, port, "echo", [b"a"], seconds=0.5))
        assert set(unauthorized.errors) == {"400"}
        assert unauthorized.count == 0


def test_percentiles_by_hand() -> None:
    assert percentile([], 0.5) is None
    assert percentile([3.0], 0.99) == 3.0
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.5
    assert percentile([0.0, 10.0], 0.95) == pytest.approx(9.5)


def test_an_impossible_load_lists_every_mistake() -> None:
    with pytest.raises(
        LoadError,
        match=r"(?s)protocol 'http'.*host 10\.0\.0\.1.*no bodies.*1 kinds of 0 bodies.*clients 0.*seconds 1e\+06",
    ):
        generate(Load("http", "10.0.0.1", 1, "m", [], clients=0, seconds=1e6, kinds=["a"]))
