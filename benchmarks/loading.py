"""How long packed weights take to load against plain ones: both archives' sessions opened in turns, in one run.

    python -m benchmarks.loading PACKED.mar PLAIN.mar [--rounds 7]

Prints the median seconds of each and their ratio. Both are opened without the digests, whose cost goes by bytes.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median

from archiver.packaging.entry import handler_of
from archiver.packaging.mar import extracted
from handlers.cpu import container_cores


def seconds(folder: Path) -> float:
    spec = json.loads((folder / "serving.json").read_text(encoding="utf-8"))["session"]
    session = handler_of(folder).runtime
    started = time.perf_counter()
    session(folder, spec, container_cores())
    return time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packed", type=Path)
    parser.add_argument("plain", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with extracted(options.packed) as (packed, _), extracted(options.plain) as (plain, _):
        for folder in (packed, plain):  # untimed: imports and the page cache
            seconds(folder)
        found = [(seconds(packed), seconds(plain)) for _ in range(options.rounds)]
    ratio = median(one / two for one, two in found)
    print(
        f"{options.packed.name} {median(one for one, _ in found):.3f} s, "
        f"{options.plain.name} {median(two for _, two in found):.3f} s: {ratio:.2f} ×"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
