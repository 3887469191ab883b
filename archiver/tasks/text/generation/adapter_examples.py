"""The prompts that an archive stores for its adapters: such as tell each of them from the model and from the others."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from archiver.errors import DataError
from archiver.tasks.text.generation.examples import EXAMPLE_TOKENS, decided
from handlers.inputs.text import TextInput
from handlers.storage.adapters import NONE, side_by_side

if TYPE_CHECKING:
    import numpy as np
    import torch

_LOOKED_AT = 16  # prompts
_ENOUGH = 4  # tokens of one that tells an adapter from all others: no further prompt is looked at
_MODEL = "the model itself"


def choose_adapter_prompts(
    handler: Any,
    model: torch.nn.Module,
    prompts: list[TextInput],
    adapters: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]],
) -> tuple[list[tuple[TextInput, dict[str, Any]]], dict[str, list[str]]]:
    """Choose for each adapter a prompt that it continues otherwise than anything else in the archive, or several.

    Args:
        handler, model, prompts: as archiver.tasks.text.generation.examples.choose_prompts has them.
        adapters: name → layer → (A, B), in the order of their numbers.
    Returns: (prompts with the parameters that they are asked with, for each adapter what no prompt tells it from). The
        tokens are such as no rounding can change, and those that torch writes, with the adapter in float32.
    Raises: DataError where an adapter's answers are not decided, or are others than torch's, on any prompt.
    """
    from handlers.architecture.adapters import AdaptedModel

    names = [_MODEL, *adapters]
    encoded = [handler.input.encoder.encode([prompt], truncate=False)[0].ids for prompt in prompts[:_LOOKED_AT]]
    room = handler.serving["max_length"] - EXAMPLE_TOKENS
    fitting = [(prompt, ids) for prompt, ids in zip(prompts, encoded, strict=False) if 0 < len(ids) < room]

    @cache
    def written(place: int, number: int) -> list[int]:
        found: list[int] = handler.continuation(fitting[place][1], EXAMPLE_TOKENS, number)
        return found

    chosen: list[tuple[TextInput, dict[str, Any]]] = []
    alike: dict[str, list[str]] = {}
    with AdaptedModel(model, side_by_side(adapters), len(adapters)) as using:
        for number, name in enumerate(names):
            if number == NONE:
                continue
            told: list[tuple[set[str], int, int]] = []  # what a prompt tells the adapter from, by how many tokens
            for place, (_, ids) in enumerate(fitting):
                with using.use([number]):
                    count = decided(handler, model, ids, number)
                own = written(place, number)[:count]
                apart = {other for at, other in enumerate(names) if count and written(place, at)[:count] != own}
                if count:
                    told.append((apart, count, place))
                if count >= _ENOUGH and len(apart) == len(names) - 1:
                    break
            if not told:
                raise DataError(
                    f"serve.adapters.{name}: on none of {len(fitting)} prompts it writes a token that torch writes with it "
                    "and that is likelier than any other beyond the tolerance; name a file of other texts in serve.examples"
                )
            left = set(names) - {name}
            while told:
                apart, count, place = max(told, key=lambda one: (len(one[0] & left), one[1]))
                if chosen and chosen[-1][1]["adapter"] == name and not apart & left:
                    break
                left -= apart
                told = [one for one in told if one[2] != place]
                chosen.append((fitting[place][0], {"adapter": name, "max_new_tokens": count}))
            alike[name] = sorted(left)
    return chosen, alike
