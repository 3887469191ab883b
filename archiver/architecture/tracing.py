"""An example call of a module, and which of its sizes vary: what exporters trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Tensor = torch.Tensor

MAX_ROWS = 4096


@dataclass(frozen=True)
class Tracing:
    """One call of a module.

    Args:
        arguments: name of a tensor of `forward` → an example, in the order of `forward`. At least two rows of different
            size: an example of one row, or without padding, would be traced as the only case.
        varying: name → {axis: name of the size}; sizes of one name are equal.
        bounds: name of a size → (least, most).
    """

    arguments: Mapping[str, Tensor]
    varying: Mapping[str, Mapping[int, str]]
    bounds: Mapping[str, tuple[int, int]]


def samples_tracing(least: int, most: int) -> Tracing:
    """The call of a module that takes input_values and attention_mask [rows, samples].

    Args:
        least, most: samples of a row.
    """
    length = min(most, 16 * least + 5)
    values = torch.randn(2, length, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(values.shape, dtype=torch.int64)
    mask[1, max(least, length // 2) :] = 0
    names = ("input_values", "attention_mask")
    return Tracing(
        {"input_values": values, "attention_mask": mask},
        {name: {0: "rows", 1: "samples"} for name in names},
        {"rows": (1, MAX_ROWS), "samples": (least, most)},
    )


def spectrogram_tracing(frames: int, bins: int) -> Tracing:
    """The call of a module that takes input_values [rows, frames, bins], of which only the rows vary."""
    values = torch.randn(2, frames, bins, generator=torch.Generator().manual_seed(0))
    return Tracing({"input_values": values}, {"input_values": {0: "rows"}}, {"rows": (1, MAX_ROWS)})


def text_tracing(module: Any, *, max_length: int, max_places: int = 1) -> Tracing:
    """The call of a module that takes token ids.

    Args:
        module: whose `inputs` name input_ids, attention_mask and, where it takes them, token_type_ids and places.
        max_length: most tokens of a row, from 4. max_places: most places.
    """
    length = min(16, max_length)
    input_ids = torch.randint(5, 100, (2, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(input_ids)
    mask[1, length // 2 :] = 0
    known = {"input_ids": input_ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(input_ids)}
    bounds = {"rows": (1, MAX_ROWS), "tokens": (1, max_length)}
    if "places" in module.inputs:
        known["places"] = torch.tensor([[1, 3, 0], [2, 1, 1]])
        bounds["places"] = (1, max_places)
    return Tracing(
        {name: known[name] for name in module.inputs},
        {name: {0: "rows", 1: "places" if name == "places" else "tokens"} for name in module.inputs},
        bounds,
    )


@dataclass(frozen=True)
class SourceExample:
    """An example call to trace and to compare with.

    Args:
        arrays: the encoder's inputs, at least two sources. source: the name of its main one.
        heads: (layer, head) pairs whose cross-attention the writing graph tells.
    """

    arrays: Mapping[str, torch.Tensor]
    source: str = "input_ids"
    heads: Sequence[Sequence[int]] = ()

    @property
    def masked(self) -> bool:
        """Whether sources have padding that the decoder must not see."""
        return "attention_mask" in self.arrays


def history_tracing(items: int, *, max_length: int) -> Tracing:
    """The call of a module that takes item_ids and attention_mask.

    Args:
        items: how many there are. max_length: most items of a row.
    """
    length = min(16, max_length)
    item_ids = torch.randint(items, (2, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(item_ids)
    mask[1, length // 2 :] = 0
    return Tracing(
        {"item_ids": item_ids, "attention_mask": mask},
        {name: {0: "rows", 1: "places"} for name in ("item_ids", "attention_mask")},
        {"rows": (1, MAX_ROWS), "places": (1, max_length)},
    )
