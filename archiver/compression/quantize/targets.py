"""Which modules are quantized, and what cannot work with them: no weight is quantized twice, groups divide the shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from archiver.compression.modules import linear_names, select_modules, weighted_names
from archiver.compression.quantize.options import FixedPoint, WeightOnly
from archiver.compression.quantize.rotation import check_rotation, rotation_layers
from archiver.compression.roles import roles_of
from archiver.errors import RecipeError
from archiver.state.constraints import Mask, sharing, state_of


def chosen_modules(model: torch.nn.Module, options: Any, *, tables: bool = False) -> list[str]:
    """Names of the modules to quantize, one for each weight.

    Args:
        options: `targets` and `ignore`.
        tables: the default is every linear layer and table, not only linear layers but the head. The layers that turn
            hidden states are left to other stages by the one that has put them there.
    Returns: names in the model's order.
    Raises: RecipeError as `select_modules`, and for a weight that an earlier stage has put on a grid.
    """
    if options.targets is None:
        names = select_modules(
            (weighted_names if tables else linear_names)(model), ("*",), options.ignore, roles_of(model)
        )
    else:
        names = select_modules(weighted_names(model), options.targets, options.ignore, roles_of(model))
    if getattr(options, "rotate", False):
        turning = rotation_layers(model)
        names = [name for name in names if name not in turning]
    return unquantized(model, names)


def unquantized(model: torch.nn.Module, names: Sequence[str]) -> list[str]:
    """`names` with each weight once.

    Raises: RecipeError for a weight that an earlier stage has put on a grid.
    """
    seen: set[int] = set()
    unique = []
    for name in names:
        weight = model.get_submodule(name).get_parameter("weight")
        if id(weight) not in seen:
            seen.add(id(weight))
            unique.append(name)
    chains = state_of(model).constraints
    taken = [name for name in unique if any(not isinstance(item, Mask) for item in chains.get(name, []))]
    if taken:
        raise RecipeError(f"an earlier stage has quantized {', '.join(taken)} already: add them to `ignore`")
    return unique


def check_targets(model: torch.nn.Module, options: Any) -> list[str]:
    """Problems of a stage's modules before any work: targets that match nothing, what an earlier stage quantizes."""
    return _checked(model, options, tables=False)


def check_fixed_point(model: torch.nn.Module, options: FixedPoint) -> list[str]:
    """Problems of a stage's modules before any work, for fixed point, whose default takes in the tables."""
    return _checked(model, options, tables=True)


def check_weight_only(model: torch.nn.Module, options: WeightOnly) -> list[str]:
    """Problems before any work: of the modules, and groups that do not divide a layer's inputs, every layer named."""
    if not options.in_place:
        return []
    if options.rotate and (problems := check_rotation(model, options.rotate == "auto")):
        return problems
    size = options.columns_per_group
    return _checked(model, options, tables=False, shapes=None if size is None else (1, size))


def check_codebook(model: torch.nn.Module, options: Any) -> list[str]:
    """Problems before any work: of the modules, and groups of rows that do not divide a layer's outputs."""
    size = options.rows_per_codebook
    return _checked(model, options, tables=False, shapes=None if size is None else (0, size))


_MARK = "quantized_before"


def _checked(
    model: torch.nn.Module, options: Any, *, tables: bool, shapes: tuple[int, int] | None = None
) -> list[str]:  # fmt: skip
    """shapes: (dimension of the weight, the size of a group that must divide it)."""
    try:
        names = chosen_modules(model, options, tables=tables)
    except RecipeError as error:
        return [error.message, *error.problems]
    problems = []
    if twice := [name for name in names if hasattr(model.get_submodule(name), _MARK)]:
        problems.append(f"an earlier stage quantizes {', '.join(twice)} already: add them to `ignore`")
    for name in names:
        for twin in sharing(model, name):
            setattr(model.get_submodule(twin), _MARK, True)
    if shapes is not None:
        dimension, size = shapes
        feature = ("out_features", "in_features")[dimension]
        found = {name: model.get_submodule(name).get_parameter("weight").shape[dimension] for name in names}
        bad = [f"{name} ({feature} {width})" for name, width in found.items() if width % size]
        if bad:
            fits = math.gcd(*found.values())
            problems.append(
                f"group_size {size} does not divide the {feature} of {', '.join(bad)}: "
                f"set a divisor of {fits}, or row, or add them to `ignore`"
            )
    return problems
