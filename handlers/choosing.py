"""Archives that hold the files of several runtimes: the fastest on the host that they land on serves.

Each lies in a folder of its name. It is tried in a process of its own, one after the other: it opens its files, answers the
stored examples, and runs batches for about half a second with the threads and streams that it would serve with. So what was
tried leaves nothing in the worker's memory, and a runtime that crashes on this host is only left out.
"""

import json
import logging
import mmap
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

from handlers.base import BatchHandler
from handlers.errors import UnsoundArchive
from handlers.examples import read_examples
from handlers.manifest import ENTRY, SERVING, read_manifest

logger = logging.getLogger(__name__)

CLIENTS = 64  # whose requests wait: what one of the streams gets of them is a batch
ROUNDS, SECONDS = 5, 0.12  # the best round counts: whatever else runs on the host can only slow it down
_MOST_SECONDS = 60  # that a runtime may take to be tried
# argv: the paths where modules are looked for, the archive, its entry module, the runtime, threads, streams.
_TRIAL = """
import json, sys
paths, folder, entry, name, threads, streams = sys.argv[1:]
sys.path[:] = [folder, *json.loads(paths)]
import importlib
from pathlib import Path
handler = importlib.import_module(entry).Handler()
from handlers.requirements import leave_out_converters
leave_out_converters()
handler.streams = int(streams)
found = handler.attempt(Path(folder), name, int(threads))
print("\\n" + json.dumps(found))
"""


class ChoosingHandler(BatchHandler[Any]):
    """Stands before the task's handler in an entry of several runtimes, and opens one of them.

    runtimes: session classes by the runtime's name, which the archive's entry sets. serving: that of the runtime that was
    taken; serving.json's `runtimes` lists what differs between them, in the recipe's order.
    """

    runtimes: ClassVar[Mapping[str, Callable[..., Any]]]
    _only: str | None = None
    _taken: mmap.mmap | None = None  # one byte that outlives the process that serves: the place of what it took, from 1

    def initialize(self, context: Any) -> None:
        self._taken = mmap.mmap(-1, 1)
        super().initialize(context)

    def open(self, folder: Path, *, threads: int, trust_files: bool = False, only: str | None = None) -> None:
        """As `TaskHandler.open`. only: the one runtime to open; None: the fastest here."""
        self._only = only
        super().open(folder, threads=threads, trust_files=trust_files)

    def begin(self, folder: Path, threads: int, trust_files: bool) -> None:
        alternatives = alternatives_of(self.serving)
        if self._only is not None:
            self._take(alternatives[self._only], folder, threads, trust_files)
            return
        ranked, why = list(alternatives), "the recipe turns the measurement off (choose_at_load: false)"
        if self._taken is not None and self._taken[0]:
            ranked.insert(0, ranked.pop(self._taken[0] - 1))
            why = "the process before this one took it"
        elif self.serving["choose_at_load"]:
            rates = self._rates(folder, threads, ranked)
            ranked = sorted(rates, key=lambda name: -rates[name])
            streams = f"{self.streams} stream{'s' * (self.streams > 1)} of {threads} thread{'s' * (threads > 1)}"
            why = ", ".join(f"{name} {rates[name]:.1f}" for name in ranked) + f" items/s here, in {streams}"
        for name in ranked:
            try:
                self._take(alternatives[name], folder, threads, trust_files)
            except Exception as error:  # whatever it lacks here: another may have it
                logger.warning("runtime %s is left out: %s", name, error)
                continue
            logger.info("runtime %s is taken: %s", name, why)
            if self._taken is not None:
                self._taken[0] = 1 + list(alternatives).index(name)
            return
        raise UnsoundArchive(
            f"none of the archive's runtimes ({', '.join(alternatives)}) serves on this host: the warnings before this "
            "say what each lacks"
        )

    def _take(self, serving: dict[str, Any], folder: Path, threads: int, trust_files: bool) -> None:
        self.serving = serving
        super().begin(folder, threads, trust_files)

    def load(self, folder: Path, threads: int) -> None:
        name = self.serving["session"]["runtime"]
        self.runtime = self.runtimes[name]
        super().load(folder / name, threads)

    def examples(self, folder: Path) -> list[dict[str, Any]]:
        """Each runtime rounds in its own way: its answers are compared with its own."""
        name = self.serving["session"]["runtime"]
        found = read_examples(folder)
        return [{"input": one["input"], "answer": one.get("answers", {}).get(name, one["answer"])} for one in found]

    # ---- the measurement ----------------------------------------------------------------------------------------------

    def _rates(self, folder: Path, threads: int, names: Sequence[str]) -> dict[str, float]:
        """Items a second of those that open and answer the examples; a warning for each of the others."""
        rates = {}
        for name in names:
            found = self._tried(folder, name, threads)
            if "rate" in found:
                rates[name] = float(found["rate"])
            else:
                logger.warning("runtime %s is left out: %s", name, found["problem"])
        return rates

    def _tried(self, folder: Path, name: str, threads: int) -> dict[str, Any]:
        """What `attempt` says in a process of its own, or how that one ended."""
        words = [json.dumps(sys.path), folder.resolve(), ENTRY.removesuffix(".py"), name, threads, self.streams]
        command = [sys.executable, "-I", "-B", "-c", _TRIAL, *map(str, words)]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_MOST_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {"problem": f"it was not tried within {_MOST_SECONDS} s"}
        if done.returncode == 0:
            found: dict[str, Any] = json.loads(done.stdout.strip().rpartition("\n")[2])
            return found
        last = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        return {"problem": f"its process ended with status {done.returncode}: {last}"}

    def attempt(self, folder: Path, name: str, threads: int) -> dict[str, Any]:
        """Open one runtime of an archive whose digests were checked, answer the examples, measure.

        Args:
            folder: the archive. name: the runtime's. threads: for one run; `streams` run at once.
        Returns: {"rate": items a second}, or {"problem": one sentence}.
        """
        try:
            self.digest = read_manifest(folder)["content_sha256"]
            self._take(alternatives_of(json.loads((folder / SERVING).read_text()))[name], folder, threads, False)
            inputs = [self.input.from_stored(one["input"]) for one in read_examples(folder)]
            items = [item for items in self.prepare(inputs, self.full_parameters) for item in items]
            return {"rate": self._rate(items)}
        except Exception as error:  # the process that asked logs it
            return {"problem": str(error) or repr(error)}

    def _rate(self, items: Sequence[Any]) -> float:
        """Items that the streams run a second, as many together as 64 clients would leave to each of them."""
        rows, most = 1, max(1, CLIENTS // self.streams)
        while (took := self._took(items, rows)) < SECONDS / 2 and rows < most:  # what is slow runs alone
            rows = min(most, 2 * rows)
        self._took(items, rows)
        with ThreadPoolExecutor(self.streams) as pool:
            rounds = ROUNDS if took < SECONDS else 1

            def stream(_: int) -> float:
                done, started = 0, time.perf_counter()
                while (passed := time.perf_counter() - started) < SECONDS or not done:
                    self._took(items, rows)
                    done += rows
                return done / passed

            return max(sum(pool.map(stream, range(self.streams))) for _ in range(rounds))

    def _took(self, items: Sequence[Any], count: int) -> float:
        """Seconds that `count` of the items take, again and again the same ones where there are not as many."""
        started = time.perf_counter()
        ran = self.run([items[index % len(items)] for index in range(count)])
        if ran.failed:
            raise next(iter(ran.failed.values()))
        return time.perf_counter() - started


def alternatives_of(serving: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The runtimes' names → serving.json as each of them alone would have it, in the recipe's order."""
    shared = {key: value for key, value in serving.items() if key != "runtimes"}
    return {one["session"]["runtime"]: shared | one for one in serving["runtimes"]}
