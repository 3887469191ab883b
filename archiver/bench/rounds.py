"""Two archives compared live: each in a TorchServe of its own, under load in turn, until the ratio is known.

A round starts both servers afresh, so that differences between processes (memory layout, JIT compilation) are part
of the spread and are not attributed to the archive; then each combination of protocol and clients is measured on both
sides, one under load at a time. One side's time lies half before and half after the other's (A B B A, in the next
round B A A B), so that a slow change of the machine's load affects both equally. Rounds are added, two at a time, until
every ratio's interval is narrow enough, or there have been too many.
"""

from __future__ import annotations

import math
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from time import monotonic
from types import FrameType
from typing import Any

from archiver.bench.interval import Interval, ratio_interval
from archiver.bench.load import Load, LoadResult, generate
from archiver.torchserve.client import predict_rest
from archiver.torchserve.server import ServerError, TorchServe
from archiver.torchserve.settings import addresses

CONFIDENCE = 0.95
WIDEST = 0.05

Progress = Callable[[str], None]


@dataclass
class Side:
    """One of the two archives, and what its servers showed. ready_s: server start to first answer, seconds, per round;
    memory_bytes: resident memory of a worker after the round's load, the largest of the workers, per round."""

    label: str
    archive: Path
    workers: int = 0
    ready_s: list[float] = field(default_factory=list)
    memory_bytes: list[int] = field(default_factory=list)


@dataclass
class Cell:
    """One combination of protocol and clients. rounds: by side label, the stretches that each round measured."""

    protocol: str
    clients: int
    rounds: list[dict[str, list[LoadResult]]] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """Throughput of a over that of b, per round; empty when a side gave no answer in one of them."""
        pairs = [(_throughput(each["a"]), _throughput(each["b"])) for each in self.rounds if "b" in each]
        return [a / b for a, b in pairs] if all(min(pair) > 0 for pair in pairs) else []


def run_bench(
    a: Path,
    b: Path | None,
    bodies: Sequence[bytes],
    content_type: str | None = "application/json",
    *,
    clients: Sequence[int] = (1, 16, 64),
    seconds: float = 10.0,
    protocols: Sequence[str] = ("rest", "grpc"),
    settle: float = 2.0,
    min_rounds: int = 4,
    max_rounds: int = 12,
    config: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compare archive `a` with archive `b`; with b = None, only measure `a` (two rounds, no ratios).

    bodies: request bodies, sent in turn; seconds: measured per side, combination and round
    settle: seconds of load per side and protocol that come before, in every round, and count for nothing
    min_rounds, max_rounds: pairs per combination, at least 2; odd numbers count up, so that each side goes first as
    often
    returns what format_bench prints, as JSON-able values; ratios are "a is x times b"
    raises ServerError when a server does not come up or its first answer is not 200; LoadError
    Ctrl-C and SIGTERM end both servers before they end the process.
    """
    say = progress or (lambda line: None)
    sides = [Side("a", a)] + ([Side("b", b)] if b is not None else [])
    cells = [Cell(protocol, count) for protocol in protocols for count in clients]
    least = _even(min_rounds) if b is not None else 2
    most = max(least, _even(max_rounds)) if b is not None else 2
    load = {"bodies": bodies, "content_type": content_type, "seconds": seconds}
    unsettled = list(cells)
    done = 0
    with _sigterm_as_exit():
        while unsettled and done < most:
            # The side that goes first may meet the machine in another state: each side is first every other time.
            order = sides if done % 2 == 0 else sides[::-1]
            say(f"round {done + 1}: {' and '.join(side.archive.name for side in order)}, {len(unsettled)} to measure")
            _round(order, unsettled, load, settle, config, say)
            done += 1
            if done >= least and done % 2 == 0:
                unsettled = [cell for cell in cells if b is not None and not _is_settled(cell, len(cells))]
    return _result(sides, cells, done, seconds)


def cell_confidence(cells: int) -> float:
    """The confidence of one ratio that makes all of a table's `cells` ratios hold together with 95 %.

    Bonferroni's share for each cell, halved: stopping at the first look that is narrow enough favours rounds that
    happen to agree. Simulated for identical sides (1 to 6 cells, spread of a pair 1 to 5 %), some interval of the
    table then excludes 1.00 in 2 to 5 % of the runs; without the halving in up to 9 %, with plain 95 % intervals in
    up to 36 %.
    """
    return 1 - (1 - CONFIDENCE) / (2 * cells)


def _round(
    order: Sequence[Side],
    cells: Sequence[Cell],
    load: dict[str, Any],
    settle: float,
    config: Path | None,
    say: Progress,
) -> None:
    servers: dict[str, TorchServe] = {}
    try:
        for side in order:
            began = monotonic()
            server = servers[side.label] = TorchServe([side.archive], config=config)
            server.start().wait_ready()
            _first_answer(server, load)
            side.ready_s.append(monotonic() - began)
            side.workers = len(server.workers(server.models[0]))
        for side in order:
            for protocol in dict.fromkeys(cell.protocol for cell in cells):
                # Every shape that the texts bring, the JVM's compiler, the connections' code: before anything counts.
                busiest = max(cell.clients for cell in cells)
                generate(_load(servers[side.label], protocol, busiest, {**load, "seconds": settle}))
        for cell in cells:
            measured: dict[str, list[LoadResult]] = {side.label: [] for side in order}
            stretches = [(order[0], 0.5), (order[1], 1.0), (order[0], 0.5)] if len(order) == 2 else [(order[0], 1.0)]
            for side, share in stretches:
                part = {**load, "seconds": share * load["seconds"]}
                found = generate(_load(servers[side.label], cell.protocol, cell.clients, part))
                measured[side.label].append(found)
            cell.rounds.append(measured)
            for side in order:
                results = measured[side.label]
                say(
                    f"  {side.archive.name} ({side.label}), {cell.protocol}, {cell.clients} clients: "
                    f"{_throughput(results):.1f}/s, p50 {_number(results[0].p50_ms)} ms, "
                    f"errors {_errors(results).total()}"
                )
        for side in order:
            side.memory_bytes.append(max(servers[side.label].memory_per_worker()))
    finally:
        for server in servers.values():
            server.terminate()
        for server in servers.values():
            server.stop()


def _load(server: TorchServe, protocol: str, clients: int, load: dict[str, Any]) -> Load:
    key = "inference_address" if protocol == "rest" else "grpc_inference_port"
    host, port = addresses(server.properties)[key]
    return Load(protocol, host, port, server.models[0], token=server.inference_key, clients=clients, **load)


def _first_answer(server: TorchServe, load: dict[str, Any]) -> None:
    url = server.prediction_url(server.models[0])
    answer = predict_rest(url, load["bodies"][0], load["content_type"], token=server.inference_key)
    if answer.status != 200:
        raise ServerError(f"{server.archives[0]}: the first request was answered {answer.status}: {answer.text[:500]}")


def _interval(cell: Cell, cells: int) -> Interval | None:
    ratios = cell.ratios
    return ratio_interval(ratios, cell_confidence(cells)) if len(ratios) >= 2 else None


def _is_settled(cell: Cell, cells: int) -> bool:
    interval = _interval(cell, cells)
    # A side that answers nothing gets no better by being asked again.
    return interval is None or interval.half_width <= WIDEST


def _result(sides: Sequence[Side], cells: Sequence[Cell], rounds: int, seconds: float) -> dict[str, Any]:
    every = [found for cell in cells for each in cell.rounds for results in each.values() for found in results]
    result: dict[str, Any] = {
        "sides": {side.label: _side(side) for side in sides},
        "cells": [_cell(cell, len(cells)) for cell in cells],
        "rounds": rounds,
        "seconds": seconds,
        "confidence": CONFIDENCE,
        "errors": _errors(every).total(),
        "load_cpu_share": max(found.cpu_share for found in every),
    }
    if len(sides) == 2:
        a, b = sides
        result["ready_ratio"] = median(a.ready_s) / median(b.ready_s)
        result["memory_ratio"] = median(a.memory_bytes) / median(b.memory_bytes)
    return result


def _side(side: Side) -> dict[str, Any]:
    return {
        "archive": side.archive.name,
        "archive_bytes": side.archive.stat().st_size,
        "workers": side.workers,
        "ready_s": [round(seconds, 3) for seconds in side.ready_s],
        "memory_per_worker_bytes": side.memory_bytes,
    }


def _cell(cell: Cell, cells: int) -> dict[str, Any]:
    shown: dict[str, Any] = {"protocol": cell.protocol, "clients": cell.clients, "rounds": len(cell.rounds)}
    for label in ("a", "b"):
        rounds = [each[label] for each in cell.rounds if label in each]
        if not rounds:
            continue
        found = [stretch for results in rounds for stretch in results]
        shown[label] = {
            "throughput": median(map(_throughput, rounds)),
            **{name: _median([getattr(each, name) for each in found]) for name in ("p50_ms", "p95_ms", "p99_ms")},
            "count": sum(each.count for each in found),
            "errors": dict(_errors(found)),
            "load_cpu_share": median(each.cpu_share for each in found),
            "throughputs": [round(_throughput(results), 2) for results in rounds],
        }
    if "b" in shown:
        interval = _interval(cell, cells)
        shown["ratio"] = None if interval is None else _finite(asdict(interval))
        shown["too_noisy"] = interval is not None and interval.half_width > WIDEST
        shown["ratios"] = [round(ratio, 4) for ratio in cell.ratios]
    return shown


def _throughput(results: Sequence[LoadResult]) -> float:
    return sum(each.count for each in results) / sum(each.seconds for each in results)


def _errors(results: Sequence[LoadResult]) -> Counter[str]:
    total: Counter[str] = Counter()
    for each in results:
        total.update(each.errors)
    return total


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: an unbounded interval's bounds are null."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()
    }


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _even(rounds: int) -> int:
    return max(2, rounds + rounds % 2)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


@contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """SIGTERM unwinds the stack, as Ctrl-C does, so that every server is stopped. (Main thread only.)"""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
