"""How many inputs a second the workers of staged archives answer: side by side on all cores, in batches as requests come.

What serving runs differs from what one process runs on sorted batches of 16: each worker has its share of the threads, all
of them share the caches and the memory's bandwidth, and a batch holds whatever lengths have arrived.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import yaml

from archiver.packaging.layout import CONFIG
from handlers.cpu import container_cores
from handlers.manifest import ENTRY

CLIENTS = 64  # whose requests wait, each with one input
INPUTS, ROUNDS, SECONDS = 256, 3, 0.8
TOGETHER = 1e9  # bytes of weights that the workers of all archives may hold at once
WEIGHTS = (".bin", ".onnx", ".safetensors")
_WARM = 1.5  # seconds at most that a worker runs before it is timed
# A worker: opens the archive, says so, and runs for as many seconds as each line of its input says.
_WORKER = """
import importlib, json, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
folder, entry, inputs, workers, rows, warm = sys.argv[1:]
sys.path.insert(0, folder)
handler = importlib.import_module(entry).Handler()
from handlers.cpu import threads_per_worker
handler.streams = threads_per_worker(int(workers))
handler.open(Path(folder), threads=1, trust_files=True)
asked = json.loads(Path(inputs).read_text(encoding="utf-8"))
values = [handler.input.from_stored(one) for one in asked["inputs"]]
batches = [values[start : start + int(rows)] for start in range(0, len(values), int(rows))]
def stream(place, seconds):
    done, started = 0, time.perf_counter()
    while not done or time.perf_counter() - started < seconds:
        handler.find(batches[place % len(batches)], asked["parameters"])
        done += len(batches[place % len(batches)])
        place += 1
    return done / (time.perf_counter() - started)
pool = ThreadPoolExecutor(handler.streams)
def run(seconds):
    return sum(pool.map(lambda place: stream(place, seconds), range(handler.streams)))
run(float(warm))
print("ready", flush=True)
for line in sys.stdin:
    print(run(float(line)), flush=True)
"""


def served_rates(
    folders: Mapping[str, Path], inputs: Sequence[Any], parameters: Mapping[str, Any], place: Path
) -> dict[str, float]:
    """Inputs a second of each archive's workers together, in turns; of large ones one archive after the other.

    Args:
        folders: name → a staged archive.
        inputs: as its handler stores examples. parameters: a request's.
        place: a folder for a file with the inputs while this runs.
    Returns: name → median over the rounds.
    Raises: ArithmeticError, with what it said last, when a worker does not answer.
    """
    order = np.random.default_rng(0).permutation(len(inputs))[:INPUTS]
    file = place / "inputs.json"
    chosen = [inputs[index] for index in order]
    file.write_text(json.dumps({"inputs": chosen, "parameters": dict(parameters)}), encoding="utf-8")
    sides = {name: _Side(folder, file) for name, folder in folders.items()}
    rates: dict[str, list[float]] = {name: [] for name in folders}
    large = sum(side.weight_bytes for side in sides.values()) > TOGETHER
    try:
        for group in [[name] for name in sides] if large else [list(sides)]:
            with ExitStack() as stack:
                opened = {name: stack.enter_context(sides[name]) for name in group}
                for _ in range(ROUNDS):
                    for name, side in opened.items():
                        rates[name].append(side.run(SECONDS))
    finally:
        file.unlink(missing_ok=True)
    return {name: median(found) for name, found in rates.items()}


class _Side:
    """One archive's workers."""

    def __init__(self, folder: Path, inputs: Path) -> None:
        config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
        workers = int(config.get("minWorkers") or container_cores())
        rows = -(-CLIENTS // max(workers, container_cores()))  # what one of the streams on all cores gets of them
        words = [folder.resolve(), ENTRY.removesuffix(".py"), inputs.resolve(), workers, rows, _WARM]
        self._command = [sys.executable, "-P", "-s", "-B", "-c", _WORKER, *map(str, words)]
        self._count = workers
        self._workers: list[subprocess.Popen[str]] = []
        files = (path for path in folder.iterdir() if path.suffix in WEIGHTS)
        self.weight_bytes = workers * sum(path.stat().st_size for path in files)

    def __enter__(self) -> _Side:
        self._said = tempfile.TemporaryFile()
        try:
            environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
            for _ in range(self._count):
                pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._said}
                self._workers.append(subprocess.Popen(self._command, text=True, env=environment, **pipes))
            for worker in self._workers:
                self._line(worker)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.kill()
            worker.communicate()
        self._said.close()

    def run(self, seconds: float) -> float:
        """All at once: the sum of their rates."""
        for worker in self._workers:
            assert worker.stdin is not None
            worker.stdin.write(f"{seconds}\n")
            worker.stdin.flush()
        return sum(float(self._line(worker)) for worker in self._workers)

    def _line(self, worker: subprocess.Popen[str]) -> str:
        assert worker.stdout is not None
        line = worker.stdout.readline()
        if not line:
            self._said.seek(0)
            said = self._said.read().decode("utf-8", "replace").strip().splitlines()
            raise ArithmeticError(f"a worker ended before it had answered: {said[-1] if said else 'it said nothing'}")
        return line
