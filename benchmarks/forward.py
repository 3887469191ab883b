"""Forward speed of one archive against another in process: the same texts, the same batches, in turns in one run.

    python -m benchmarks.forward FAST.mar PLAIN.mar TEXTS.tsv [--batch 16,64] [--rounds 7]

Batches are sorted by length on both sides. Prints sentences/s of each side, the ratio's median over the rounds, and the
least and greatest ratio seen. TEXTS: one text a line, what stands behind a tab is left out.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np

from archiver.packaging.entry import handler_of
from archiver.packaging.mar import extracted
from handlers.cpu import container_cores
from handlers.inputs.text import TextInput
from handlers.tasks.encoder import EncoderHandler


def open_archive(folder: Path) -> EncoderHandler:
    """The archive's handler, on all cores, after its own checks."""
    handler = handler_of(folder)
    assert isinstance(handler, EncoderHandler), f"{folder.name} holds no encoder: it has no forward speed"
    handler.open(folder, threads=container_cores())
    return handler


def batches(handler: EncoderHandler, texts: Sequence[str], size: int) -> list[dict[str, np.ndarray]]:
    """All texts in length-sorted batches of `size`, as this archive's tokenizer cuts them."""
    encoded = sorted(handler.input.encoder.encode([TextInput(text) for text in texts]), key=lambda item: len(item.ids))
    groups = [encoded[i : i + size] for i in range(0, len(encoded), size)]
    return [handler.input.encoder.pad(group, len(group[-1].ids)) for group in groups]


def seconds(handler: EncoderHandler, work: Sequence[dict[str, np.ndarray]]) -> float:
    started = time.perf_counter()
    for batch in work:
        handler.session.run(batch)
    return time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fast", type=Path)
    parser.add_argument("plain", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--batch", default="16,64")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    texts = [line.partition("\t")[0] for line in options.texts.read_text(encoding="utf-8").splitlines() if line.strip()]
    with extracted(options.fast) as (one, _), extracted(options.plain) as (two, _):
        fast, plain = open_archive(one), open_archive(two)
        for size in map(int, options.batch.split(",")):
            sides = [(handler, batches(handler, texts, size)) for handler in (fast, plain)]
            for handler, work in sides:  # untimed: shapes and caches
                seconds(handler, work)
            found = [[seconds(handler, work) for handler, work in sides] for _ in range(options.rounds)]
            ratios = [slow / quick for quick, slow in found]
            rates = [len(texts) / median(column) for column in zip(*found, strict=True)]
            print(
                f"batch {size}: {options.fast.name} {rates[0]:.0f}/s against {options.plain.name} {rates[1]:.0f}/s: "
                f"{median(ratios):.2f} × ({min(ratios):.2f} to {max(ratios):.2f}, {options.rounds} rounds)"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
