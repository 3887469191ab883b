"""What LoRA adapters cost: an archive that has some, written with and without, against the same archive without them.

    python -m benchmarks.generation_adapters ARCHIVE.mar [--rounds 5] [--threads N]

Tokens a second of 1 and 8 streams (32 tokens read, 64 written) ÷ the same archive opened without its adapters, in one
process, sides in turns; medians of the rounds, lowest to highest. And seconds to the first token of 512, likewise.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from archiver.packaging.mar import extracted
from benchmarks.generation_load import Bench
from benchmarks.table import SHARED
from handlers.cpu import container_cores
from handlers.generation.engine import Engine, Job
from handlers.protocols.continuation import Sampling
from handlers.storage.adapters import read_adapters

READ, WRITTEN, LONG = 32, 64, 512


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=container_cores())
    options = parser.parse_args()
    if not SHARED.is_dir():
        sys.exit(f"no real data at {SHARED}: set MARPRESS_SHARED")
    with extracted(options.archive) as (folder, _):
        bench = Bench(folder, options.threads)
        count = len(read_adapters(folder / bench.session["adapters"]).names)
        plain = bench.engine({key: value for key, value in bench.session.items() if key != "adapters"})
        served = bench.engine(bench.session)
        # What each stream asks for: nothing, all the first adapter, each something else.
        sides = {"no text with one": [0], "all with one": [1], "all different": list(range(count + 1))}
        for streams in (1, 8):
            found: dict[str, list[float]] = {name: [] for name in sides}
            for turn in range(options.rounds + 1):
                prompts = [bench.take(READ) for _ in range(streams)]
                before = rate(plain, prompts, [0])
                for name, numbers in sides.items():
                    ratio = rate(served, [bench.take(READ) for _ in range(streams)], numbers) / before
                    found[name] += [ratio] if turn else []
            for name, ratios in found.items():
                told(f"{streams} streams, {name}: tokens/s ÷ without adapters", ratios)
        firsts = []
        for turn in range(options.rounds + 1):
            before = first(plain, bench.take(LONG), 0)
            firsts += [first(served, bench.take(LONG), 1) / before] if turn else []
        told(f"first token behind {LONG} ÷ without adapters", firsts)
    return 0


def rate(engine: Engine, prompts: Sequence[Sequence[int]], numbers: Sequence[int]) -> float:
    """Tokens a second. numbers: of the texts' adapters, again and again."""
    jobs = [
        Job(prompt, Sampling(WRITTEN), adapter=numbers[place % len(numbers)]) for place, prompt in enumerate(prompts)
    ]
    started = time.perf_counter()
    engine.generate(jobs)
    return len(jobs) * WRITTEN / (time.perf_counter() - started)


def first(engine: Engine, prompt: Sequence[int], number: int) -> float:
    job = Job(prompt, Sampling(1), adapter=number)
    engine.generate([job])
    return job.first - job.submitted


def told(name: str, found: Sequence[float]) -> None:
    print(f"{name}: {median(found):.2f} ({min(found):.2f} to {max(found):.2f})", flush=True)


if __name__ == "__main__":
    sys.exit(main())
