"""Sentences per second, the compressed model against PyTorch eager fp32, in turns in one run."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from handlers.inputs.base import Input

Arrays = Mapping[str, np.ndarray]
Run = Callable[[Arrays], np.ndarray]

BATCH = 16
ROUNDS = 3
MAX_ITEMS = 384


@dataclass(frozen=True)
class Speed:
    """Texts (or tokens) per second of each side and their ratio; medians over the rounds."""

    original_per_s: float
    compressed_per_s: float

    @property
    def speedup(self) -> float:
        return self.compressed_per_s / self.original_per_s


def sorted_batches(kind: Input[Any, Any], items: Sequence[Any], *, limit: int = MAX_ITEMS) -> list[Arrays]:
    """Batches of 16 of like size; of more than `limit` items every k-th by size, so that the mix stays.

    Args:
        kind: the kind of input that has made the items.
    """
    ordered = sorted(items, key=kind.size)
    step = -(-len(ordered) // limit)
    kept = ordered[::step]
    groups = [kept[i : i + BATCH] for i in range(0, len(kept), BATCH)]
    return [kind.collate(group, kind.size(group[-1]), len(group)) for group in groups]


def compare_speed(
    original: Run,
    compressed: Run,
    batches: Sequence[Arrays],
    *,
    compressed_batches: Sequence[Arrays] | None = None,
    rounds: int = ROUNDS,
    count: Callable[[Arrays], float] = lambda batch: len(batch["input_ids"]),
) -> Speed:
    """Untimed first, of the compressed model all batches (it prepares each shape), of the original the smallest and the
    largest (its buffers); then A B A B … over all batches.

    compressed_batches: the same texts as the compressed model's own tokenizer cuts them, where it has one of its own
    count: what a batch holds of what is counted
    """
    texts = sum(map(count, batches))
    seconds: dict[str, list[float]] = {"original": [], "compressed": []}
    sides = (("original", original, batches), ("compressed", compressed, compressed_batches or batches))
    for turn in range(rounds + 1):
        for name, run, mine in sides:
            started = time.perf_counter()
            all_of_them = turn or name == "compressed"
            for place in range(len(mine)) if all_of_them else sorted({0, len(mine) - 1}):
                run(mine[place])
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return Speed(texts / median(seconds["original"]), texts / median(seconds["compressed"]))
