"""Which folds of a model are open to a scale: those whose weights no earlier stage has put onto a grid or shared."""

from __future__ import annotations

from collections import Counter

import torch

from archiver.architecture import Fold, layer_parts
from archiver.state.constraints import Mask, state_of


def folds_of(model: torch.nn.Module, chosen: set[str]) -> list[Fold]:
    """The folds into layers that are all among `chosen`; none where a weight is shared or on a grid already."""
    uses = Counter(
        id(parameter)
        for _, module in model.named_modules(remove_duplicate=False)
        for parameter in getattr(module, "_parameters", {}).values()
        if parameter is not None
    )

    def unbound(name: str) -> bool:
        module = model.get_submodule(name)
        chain = state_of(model).constraints.get(name, [])
        alone = all(uses[id(parameter)] == 1 for parameter in module.parameters(recurse=False))
        return alone and all(isinstance(item, Mask) for item in chain)

    return [
        fold
        for parts in layer_parts(model)
        for fold in parts.folds
        if set(fold.after) <= chosen and all(unbound(name) for name in (fold.before, *fold.after))
    ]
