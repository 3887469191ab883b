"""Which sources an archive stores, and how many tokens of their answers: those that no rounding can change."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from archiver.errors import DataError
from handlers.inputs.text import TextInput

if TYPE_CHECKING:
    import torch

EXAMPLE_TOKENS = 16
_MORE = 4  # looked at for each that is stored


def choose_sources(
    handler: Any, model: torch.nn.Module, values: list[TextInput], count: int
) -> tuple[list[TextInput], int]:
    """Choose the sources to store: those whose answer is decided longest.

    Args:
        handler: opened on the staged archive. model: transformers' …ForConditionalGeneration, as the stages left it.
        values: to choose from. count: how many.
    Returns: (sources, how many tokens of their answers are stored, the same for all).
    Raises: DataError when not one token is decided.
    """
    looked_at = values[: count * _MORE]
    decided = [(tokens, place) for place, value in enumerate(looked_at) if (tokens := _decided(handler, model, value))]
    if not decided:
        raise DataError(
            f"no text can be stored as an example: each of {len(looked_at)} has several first tokens that are equally "
            "likely; name a file of other texts in serve.examples"
        )
    best = sorted(sorted(decided, key=lambda item: -item[0])[:count], key=lambda item: item[1])
    return [looked_at[place] for _, place in best], min(tokens for tokens, _ in best)


def _decided(handler: Any, model: torch.nn.Module, value: TextInput) -> int:
    """How many tokens of the answer two runs agree on that are each off by the tolerance, and the served one wrote."""
    from handlers.generation.seq2seq.rules import apply
    from handlers.runtimes.torch_seq2seq import TorchSeq2Seq

    most = min(EXAMPLE_TOKENS, int(handler.serving["max_target"]))
    rules = replace(handler.rules, max_new_tokens=most, num_beams=1, do_sample=False)
    served = handler.written(value, rules)
    item = handler.input.encode([value], {})[0]
    decoder = TorchSeq2Seq.of_model(model).read(handler.input.collate([item], len(item.ids), 1))
    ids, new = list(rules.start), list(rules.start)
    for count in range(most):
        logits = decoder.step(np.array([new]), [0], [0])[0]
        scores = apply(rules, logits, ids, item.ids)
        first, second = np.sort(scores)[::-1][:2]
        token = int(scores.argmax())
        if np.isfinite(second) and first - second <= 2 * handler.serving["tolerance"] * np.abs(logits).max():
            return count
        if token in rules.end_ids:
            return most if len(served) == count else count
        if count >= len(served) or served[count] != token:
            return count
        ids.append(token)
        new = [token]
    return most
