"""An example call of a module, and which of its sizes vary: what exporters trace."""

from __future__ import annotations

from collections.abc import Mapping
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


def text_tracing(module: Any, *, max_length: int) -> Tracing:
    """The call of a module that takes token ids.

    Args:
        module: whose `inputs` name input_ids, attention_mask and, where it takes them, token_type_ids.
        max_length: most tokens of a row.
    """
    length = min(16, max_length)
    input_ids = torch.randint(5, 100, (2, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(input_ids)
    mask[1, length // 2 :] = 0
    known = {"input_ids": input_ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(input_ids)}
    return Tracing(
        {name: known[name] for name in module.inputs},
        {name: {0: "rows", 1: "tokens"} for name in module.inputs},
        {"rows": (1, MAX_ROWS), "tokens": (1, max_length)},
    )


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
