"""Bytes of a model's weights as they will lie in the archive."""

from __future__ import annotations

import torch

from archiver.compression.constraints import state_of
from archiver.compression.plan import plan_of
from handlers.packed_weights import encoded_bytes


def stored_bytes(model: torch.nn.Module) -> int:
    """Of every Parameter once: planned int8 as one byte a weight and four a row, the rest in its smallest codec."""
    plan = plan_of(model)
    planned = {f"{name}.weight" for name in (*plan.linears, *plan.embeddings)} if plan else set()
    chains = state_of(model).constraints
    total = 0
    for name, parameter in model.named_parameters():
        if name in planned:
            total += parameter.numel() + 4 * parameter.shape[0]
            continue
        chain = chains.get(name.removesuffix(".weight"), [])
        grouping = next((found for item in reversed(chain) if (found := item.grouping()) is not None), None)
        total += encoded_bytes(parameter.detach().numpy(), grouping)
    return total
