"""What a language model's continuation is by definition: the reference that the serving runtimes are held against."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch


def greedy_steps(model: torch.nn.Module, prompt: Sequence[int]) -> Iterator[tuple[int, float]]:
    """(token, margin) after token: always the likeliest one, keys and values of earlier places kept. Never ends by itself.

    margin: by how much the token's logit exceeds the second best, as a share of the largest |logit|
    """
    device = next(model.parameters()).device
    ids, cache = torch.tensor([list(prompt)], device=device), None
    while True:
        with torch.inference_mode():
            output = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits, cache = output.logits[0, -1].float(), output.past_key_values
        if not bool(torch.isfinite(logits).all()):
            raise ArithmeticError("the model's logits are not finite")
        best = logits.topk(min(2, logits.shape[0]))
        token = int(best.indices[0])
        yield token, float((best.values[0] - best.values[-1]) / logits.abs().max().clamp(min=1e-12))
        ids = best.indices[:1].reshape(1, 1)


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
