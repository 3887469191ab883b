"""A closed-loop load generator: N clients, each sending its next request when its last one was answered.

It runs as a process of its own, so that its CPU time can be told from everything else and no other thread holds its
GIL. `generate` starts it; `python -m archiver.bench.load` is that process (a Load as JSON on stdin, a LoadResult on
stdout).
"""

from __future__ import annotations

import asyncio
import base64
import gc
import ipaddress
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from archiver.errors import ArchiverError

_GRACE_SECONDS = 20.0
LONGEST_SECONDS = 600.0


@dataclass(frozen=True)
class Load:
    """What to send, and for how long.

    protocol: "rest" or "grpc"; host: a loopback address; bodies: sent in this order, over and over, by all clients
    together; content_type: REST only, None sends none; clients: requests in flight; seconds measured after `warmup`
    seconds; kinds: a word for each body, whose latencies are also told by that word, or none
    """

    protocol: str
    host: str
    port: int
    model: str
    bodies: Sequence[bytes]
    content_type: str | None = "application/json"
    token: str | None = None
    clients: int = 1
    seconds: float = 10.0
    warmup: float = 1.0
    kinds: Sequence[str] = ()


@dataclass(frozen=True)
class LoadResult:
    """count: answers with status 200 in the measured time; throughput: those per second; latencies in milliseconds
    (None without an answer); errors: every other outcome by status or name, warm-up included; cpu_share: the
    generator's own CPU seconds per second (1.0 is one core); kinds: (p50, p99) in milliseconds by the word of the body."""

    count: int
    seconds: float
    throughput: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    errors: dict[str, int]
    cpu_share: float
    kinds: dict[str, tuple[float, float]] = field(default_factory=dict)


class LoadError(ArchiverError):
    """The load could not be generated."""


def generate(load: Load) -> LoadResult:
    """Run one load in a process of its own and wait for it: warmup + seconds, and at most 20 s for the last answers.

    raises LoadError for impossible values, and when the process fails
    """
    _check(load)
    given = {**asdict(load), "bodies": [base64.b64encode(body).decode() for body in load.bodies]}
    root = str(Path(__file__).resolve().parents[2])
    try:
        done = subprocess.run(
            [sys.executable, "-m", "archiver.bench.load"],
            input=json.dumps(given),
            capture_output=True,
            text=True,
            timeout=load.warmup + load.seconds + _GRACE_SECONDS + 30,
            env={**os.environ, "PYTHONPATH": root},
            start_new_session=True,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        raise LoadError(f"the load generator did not end after {late.timeout:g} s") from late
    if done.returncode != 0:
        raise LoadError(f"the load generator failed: {done.stderr.strip()[-2000:]}")
    return LoadResult(**json.loads(done.stdout))


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The value below which `share` (0..1) of an ascending sequence lies, interpolated; None when it is empty."""
    if not ordered:
        return None
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


class Tally:
    """What came back, and when. Times are of time.perf_counter()."""

    def __init__(self, load: Load) -> None:
        self._bodies = len(load.bodies)
        self._kinds = load.kinds
        self._next = -1
        self.begin = time.perf_counter() + load.warmup
        self.end = self.begin + load.seconds
        self.latencies: list[float] = []
        self.by_kind: dict[str, list[float]] = {}
        self.errors: Counter[str] = Counter()

    def next_body(self) -> int:
        self._next = (self._next + 1) % self._bodies
        return self._next

    def record(self, outcome: int | str, sent: float, body: int = 0) -> bool:
        """Count one outcome (a status or the name of a failure); returns whether there is time for another request."""
        now = time.perf_counter()
        if outcome != 200:
            self.errors[str(outcome)] += 1
        elif self.begin <= now < self.end:
            self.latencies.append(now - sent)
            if self._kinds:
                self.by_kind.setdefault(self._kinds[body], []).append(now - sent)
        return now < self.end


class _RestClient(asyncio.Protocol):
    """One keep-alive connection. Parses no more of an answer than where it ends."""

    def __init__(self, requests: Sequence[bytes], tally: Tally, finished: asyncio.Future[None]) -> None:
        self._requests, self._tally, self._finished = requests, tally, finished
        self._transport: asyncio.WriteTransport | None = None
        self._received = b""
        self._sent = 0.0
        self._body = 0
        self._waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport
        self._send()

    def _send(self) -> None:
        assert self._transport is not None
        self._waiting = True
        self._sent = time.perf_counter()
        self._body = self._tally.next_body()
        self._transport.write(self._requests[self._body])

    def data_received(self, data: bytes) -> None:
        self._received += data
        head_end = self._received.find(b"\r\n\r\n")
        if head_end < 0 or not self._is_complete(head_end + 4):
            return
        status = int(self._received[9:12])
        closes = b"connection: close" in self._received[:head_end].lower()
        self._received = b""
        self._waiting = False
        more = self._tally.record(status, self._sent, self._body)
        if more and not closes:
            self._send()
        elif self._transport is not None:
            self._transport.close()

    def _is_complete(self, body_start: int) -> bool:
        head = self._received[:body_start].lower()
        at = head.find(b"content-length:")
        if at >= 0:
            length = int(head[at + 15 : head.index(b"\r\n", at)])
            return len(self._received) >= body_start + length
        return self._received.endswith(b"0\r\n\r\n")  # chunked

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting:
            self._tally.record("connection lost", self._sent)
        if not self._finished.done():
            self._finished.set_result(None)


async def _rest_client(load: Load, requests: Sequence[bytes], tally: Tally) -> None:
    while time.perf_counter() < tally.end:
        try:
            await _connection(load, requests, tally)
        except OSError as refused:
            tally.record(f"connection: {type(refused).__name__}", 0.0)
            await asyncio.sleep(0.05)


async def _connection(load: Load, requests: Sequence[bytes], tally: Tally) -> None:
    loop = asyncio.get_running_loop()
    finished: asyncio.Future[None] = loop.create_future()
    transport, _ = await loop.create_connection(lambda: _RestClient(requests, tally, finished), load.host, load.port)
    try:
        await finished
    finally:
        transport.close()


async def _rest(load: Load, tally: Tally) -> None:
    lines = [f"POST /predictions/{load.model} HTTP/1.1", f"Host: {load.host}:{load.port}"]
    if load.content_type:
        lines.append(f"Content-Type: {load.content_type}")
    if load.token:
        lines.append(f"Authorization: Bearer {load.token}")
    head = "\r\n".join(lines)
    requests = [f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body for body in load.bodies]
    await _together([_rest_client(load, requests, tally) for _ in range(load.clients)], tally)


async def _grpc(load: Load, tally: Tally) -> None:
    import grpc

    from archiver.torchserve.client import body_status, grpc_status

    messages, _ = grpc.protos_and_services("archiver/torchserve/inference.proto")
    requests = [
        messages.PredictionsRequest(model_name=load.model, input={"data": body}).SerializeToString()
        for body in load.bodies
    ]
    metadata = (("authorization", f"Bearer {load.token}"),) if load.token else ()
    # Each client has its connection, as N users have; without this option gRPC would let them share one.
    options = [("grpc.use_local_subchannel_pool", 1)]

    async def client() -> None:
        async with grpc.aio.insecure_channel(f"{load.host}:{load.port}", options=options) as channel:
            # Bytes in, bytes out: messages are made once and read only where they say that something is wrong.
            call = channel.unary_unary("/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions")
            outcome: int | str
            while True:
                sent, body = time.perf_counter(), tally.next_body()
                try:
                    answer = await call(requests[body], metadata=metadata, timeout=load.seconds + 60)
                    outcome = 200
                    if b'"error"' in answer[:32]:
                        outcome = body_status(messages.PredictionResponse.FromString(answer).prediction)
                except grpc.aio.AioRpcError as failed:
                    outcome = grpc_status(failed.code().name, failed.details() or "") or failed.code().name
                    await asyncio.sleep(0.01)
                if not tally.record(outcome, sent, body):
                    return

    await _together([client() for _ in range(load.clients)], tally)


async def _together(clients: Sequence[Coroutine[Any, Any, None]], tally: Tally) -> None:
    tasks = [asyncio.ensure_future(client) for client in clients]
    _, unfinished = await asyncio.wait(tasks, timeout=tally.end - time.perf_counter() + _GRACE_SECONDS)
    for task in unfinished:
        tally.errors["unanswered"] += 1
        task.cancel()
    await asyncio.gather(*unfinished, return_exceptions=True)
    for task in tasks:
        if not task.cancelled() and (failed := task.exception()):
            raise failed


async def _run(load: Load) -> LoadResult:
    tally = Tally(load)
    used: list[float] = []
    loop = asyncio.get_running_loop()
    for moment in (tally.begin, tally.end):
        loop.call_later(moment - time.perf_counter(), lambda: used.append(time.process_time()))
    await (_rest if load.protocol == "rest" else _grpc)(load, tally)
    await asyncio.sleep(max(0.0, tally.end - time.perf_counter()) + 0.01)
    ordered = sorted(tally.latencies)
    p50, p95, p99 = (
        None if (value := percentile(ordered, share)) is None else 1000 * value for share in (0.5, 0.95, 0.99)
    )
    kinds = {word: (_ms(found, 0.5), _ms(found, 0.99)) for word, found in tally.by_kind.items()}
    share = (used[1] - used[0]) / load.seconds if len(used) == 2 else 0.0
    return LoadResult(
        count=len(ordered),
        seconds=load.seconds,
        throughput=len(ordered) / load.seconds,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        errors=dict(sorted(tally.errors.items())),
        cpu_share=share,
        kinds=kinds,
    )


def _ms(latencies: Sequence[float], share: float) -> float:
    """A percentile of seconds, of which there is at least one, in milliseconds."""
    return 1000 * (percentile(sorted(latencies), share) or 0.0)


def _check(load: Load) -> None:
    wrong = []
    if load.protocol not in ("rest", "grpc"):
        wrong.append(f"protocol {load.protocol!r}: rest or grpc")
    if not ipaddress.ip_address(load.host).is_loopback:
        wrong.append(f"host {load.host}: a loopback address (load goes to no other machine)")
    if not load.bodies:
        wrong.append("no bodies: at least one")
    if load.kinds and len(load.kinds) != len(load.bodies):
        wrong.append(f"{len(load.kinds)} kinds of {len(load.bodies)} bodies: one for each, or none")
    if not 1 <= load.clients <= 1024:
        wrong.append(f"clients {load.clients}: 1 to 1024")
    if not 0 < load.seconds <= LONGEST_SECONDS:
        wrong.append(f"seconds {load.seconds:g}: more than 0, at most {LONGEST_SECONDS:g}")
    if wrong:
        raise LoadError("the load is impossible", wrong)


def main() -> None:
    given = json.load(sys.stdin)
    given["bodies"] = [base64.b64decode(body) for body in given["bodies"]]
    load = Load(**given)
    # Nothing here makes cycles worth collecting in so short a life, and a collection would sit in somebody's latency.
    gc.disable()
    json.dump(asdict(asyncio.run(_run(load))), sys.stdout)


if __name__ == "__main__":
    main()
