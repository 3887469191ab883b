"""What a language model's continuation is by definition: the reference that the serving runtimes are held against."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from handlers.architecture.outputs.decoder import greedy_steps


def continue_greedily(
    model: torch.nn.Module, prompt: Sequence[int], max_new_tokens: int, end_ids: Collection[int]
) -> list[int]:
    """At most `max_new_tokens` tokens behind the prompt; fewer where one of `end_ids` comes, which is left out."""
    found: list[int] = []
    for token, _ in greedy_steps(model, prompt):
        if token in end_ids:
            break
        found.append(token)
        if len(found) == max_new_tokens:
            break
    return found
