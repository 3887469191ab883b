"""Tokens written per second: the archive's own runtime against transformers' generate in fp32, in one run.

In turns, as far as both fit into memory together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np
import torch

from archiver.evaluation.speed import Speed
from archiver.progress import counted
from handlers.generation.backend import Backend, Sampling

ROUNDS = 3
_FIRST = 4  # tokens of the untimed first turn, which meets shapes and caches for the first time


def compare_generation(
    original: torch.nn.Module,
    backend: Backend,
    prompts: np.ndarray,
    compressed_prompts: np.ndarray,
    new_tokens: int,
    rounds: int = ROUNDS,
) -> Speed:
    """prompts: [streams, length] int64, all streams at once; compressed_prompts: as the compressed tokenizer cuts them.

    An end token ends a stream in the archive's runtime as it would serve it; what is counted is what was written.
    """
    sides = (
        lambda count: _generate(original, prompts, count),
        lambda count: run_streams(backend, compressed_prompts, count),
    )
    return Speed(*_rates(sides, new_tokens, rounds))


def original_rate(original: torch.nn.Module, prompts: np.ndarray, new_tokens: int, rounds: int = ROUNDS) -> float:
    """Tokens a second of the original alone. Args: as `compare_generation`."""
    return _rates([lambda count: _generate(original, prompts, count)], new_tokens, rounds)[0]


def backend_rate(backend: Backend, prompts: np.ndarray, new_tokens: int, rounds: int = ROUNDS) -> float:
    """Tokens a second of the archive's runtime alone. Args: as `compare_generation`."""
    return _rates([lambda count: run_streams(backend, prompts, count)], new_tokens, rounds)[0]


def _rates(sides: Sequence[Callable[[int], int]], new_tokens: int, rounds: int) -> list[float]:
    """The median rate of each side, in turns. sides: each writes so many tokens in each stream; how many in all."""
    rates: list[list[float]] = [[] for _ in sides]
    with counted(rounds + 1, "turns") as done:
        for turn in range(rounds + 1):
            for run, mine in zip(sides, rates, strict=True):
                started = time.perf_counter()
                written = run(new_tokens if turn else min(_FIRST, new_tokens))
                if turn:
                    mine.append(written / (time.perf_counter() - started))
            done(turn + 1)
    return [median(mine) for mine in rates]


def run_streams(backend: Backend, prompts: Sequence[Any] | np.ndarray, new_tokens: int) -> int:
    """Let all prompts run to their end, greedily, straight on the backend; how many tokens were written."""
    for key, prompt in enumerate(prompts):
        backend.add(key, [int(token) for token in prompt], Sampling(new_tokens))
    running, written = set(range(len(prompts))), 0
    while running:
        for step in backend.step():
            written += len(step.ids)
            if step.finish is not None:
                running.discard(step.key)
    return max(1, written)


def _generate(model: torch.nn.Module, prompts: np.ndarray, new_tokens: int) -> int:
    ids = torch.from_numpy(prompts.copy()).to(next(model.parameters()).device)
    with torch.inference_mode():
        found = model.generate(  # type: ignore[operator]  # transformers' own
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
        )
    return int((found.shape[1] - prompts.shape[1]) * prompts.shape[0])
