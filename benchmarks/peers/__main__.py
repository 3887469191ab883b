"""`make bench-peers`: a model served by marpress and by other people's servers, in turns.

    python -m benchmarks.peers [classifiers|embedders] [--rounds N] [--seconds S] [--only NAME …]

classifiers: MiniLM fine-tuned on SST-2, static int8 (environment variable MARPRESS_SHARED, or ../shared beside the
repository). LitServe and BentoML serve the archive's own OpenVINO graph with two workers, batches of 32 and 2 ms of waiting
for company, as a careful user writes it; TorchServe's plain handler computes in fp32. embedders: all-MiniLM-L6-v2 as the
default recipe and in static int8, beside infinity with each of its engines for CPUs, in OpenAI's form; the same sentences.
The peers come from PyPI into environments of their own (.bench-peers, in the current directory). Each is started afresh
every round, warmed up, and loaded by 1, 16 and 64 REST clients that send a sentence each; nothing else runs meanwhile.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from types import ModuleType

import psutil

from archiver.bench.load import Load, LoadResult, generate
from benchmarks.peers import classifiers, embedders
from benchmarks.peers.servers import Running, Unstarted
from benchmarks.table import SHARED
from handlers.cpu import container_cores, host_isa

CLIENTS = (1, 16, 64)
KINDS: dict[str, ModuleType] = {"classifiers": classifiers, "embedders": embedders}


@dataclass
class Row:
    """What one side's rounds measured."""

    results: dict[int, list[LoadResult]] = field(default_factory=lambda: {count: [] for count in CLIENTS})
    memory: list[float] = field(default_factory=list)
    start: list[float] = field(default_factory=list)
    failed: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", nargs="?", choices=sorted(KINDS), default="classifiers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--only", nargs="*", help="of: " + "; ".join(" ".join(kind.SIDES) for kind in KINDS.values()))
    options = parser.parse_args()
    if not SHARED.is_dir():
        sys.exit(f"no real data at {SHARED}: set MARPRESS_SHARED")
    kind = KINDS[options.kind]
    if unknown := set(options.only or ()) - set(kind.SIDES):
        sys.exit(f"--only {' '.join(sorted(unknown))}: allowed are {' '.join(kind.SIDES)}")
    with tempfile.TemporaryDirectory(prefix="marpress-bench-") as name:
        sides = kind.sides(Path(name))
        rows = {side: Row() for side in sides if not options.only or side in options.only}
        for turn in range(options.rounds):
            for side in list(rows) if turn % 2 == 0 else list(rows)[::-1]:
                if not rows[side].failed:
                    print(f"round {turn + 1}: {side}", file=sys.stderr, flush=True)
                    _measure(sides[side], rows[side], kind.texts(), options.seconds)
    print(f"{container_cores()} cores, {', '.join(host_isa())}; {options.rounds} rounds, median; ratios to marpress")
    print("| | 1 client: req/s, p50 ms | 16 clients | 64 clients: req/s | p50, p99 ms | PSS, MB | start, s |")
    print("|---|---|---|---|---|---|---|")
    for side, row in rows.items():
        print(
            f"| {side} | does not start: {row.failed} | | | | | |"
            if row.failed
            else _shown(side, row, rows.get("marpress"))
        )


def _measure(
    start: Callable[[], AbstractContextManager[Running]], row: Row, texts: Sequence[str], seconds: float
) -> None:
    began = time.perf_counter()
    with start() as server:
        bodies = server.bodies(texts)
        try:
            server.wait(bodies[0])
        except Unstarted as reason:
            row.failed = str(reason)
            return
        row.start.append(time.perf_counter() - began)

        def load(clients: int, how_long: float) -> LoadResult:
            return generate(
                Load(
                    "rest",
                    server.host,
                    server.port,
                    server.path,
                    bodies,
                    token=server.token,
                    clients=clients,
                    seconds=how_long,
                )
            )

        load(max(CLIENTS), 3.0)
        for clients in CLIENTS:
            found = load(clients, seconds)
            if found.errors:
                sys.exit(f"{server}: {found.errors}")
            row.results[clients].append(found)
        row.memory.append(sum(psutil.Process(pid).memory_full_info().pss for pid in server.pids()) / 1e6)


def _shown(side: str, row: Row, ours: Row | None) -> str:
    def rate(clients: int, of: Row = row) -> float:
        return median(found.throughput for found in of.results[clients])

    def latency(clients: int, name: str, of: Row = row) -> float:
        return median(getattr(found, name) or float("nan") for found in of.results[clients])

    def against(clients: int) -> str:
        return "" if ours is None or side == "marpress" else f" ({rate(clients, ours) / rate(clients):.2f} ×)"

    cells = [
        side,
        f"{rate(1):.0f}, {latency(1, 'p50_ms'):.2f}",
        f"{rate(16):.0f}{against(16)}",
        f"{rate(64):.0f}{against(64)}",
        f"{latency(64, 'p50_ms'):.1f}, {latency(64, 'p99_ms'):.1f}",
        f"{median(row.memory):.0f}",
        f"{median(row.start):.1f}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
