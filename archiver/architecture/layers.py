"""Where the repeated layers of a model are, and how a model goes on with fewer of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from archiver.errors import UnsupportedModelError
from handlers.architecture.factored import FactoredLinear
from handlers.architecture.skeleton import skeleton

Module = torch.nn.Module


def is_linear(module: Module) -> bool:
    """A linear layer, factored or not."""
    return isinstance(module, torch.nn.Linear | FactoredLinear)


def layer_list(model: Module) -> tuple[str, Any]:
    """The repeated layers of a model: the outermost ModuleList whose members each hold several linear layers.

    Returns: its name from the model down, and the torch.nn.ModuleList.
    Raises: UnsupportedModelError where there is none, or there are several stacks of like size.
    """
    found = _stacks(model)
    kind = type(model).__name__
    if not found:
        raise UnsupportedModelError(f"{kind}: no list of repeated layers with linear layers was found in its modules")
    if len(found) > 1 and 4 * found[1][0] > found[0][0]:
        raise UnsupportedModelError(f"{kind} has several stacks of layers: {found[0][1]} and {found[1][1]}")
    if any(isinstance(member, torch.nn.ModuleList) for member in found[0][2]):
        raise UnsupportedModelError(f"{kind}: {found[0][1]} is a list of lists of layers; one list is expected")
    return found[0][1], found[0][2]


def layer_stacks(model: Module) -> list[Any]:
    """The torch.nn.ModuleList of repeated layers; of a model with an encoder and a decoder both, in the order of names."""
    found = _stacks(model)
    return [module for size, _, module in sorted(found, key=lambda item: item[1]) if 4 * size > found[0][0]]


def _stacks(model: Module) -> list[tuple[int, str, torch.nn.ModuleList]]:
    """(linear weights, name, list) of each outermost ModuleList whose members hold several linear layers, largest first."""
    found: list[tuple[int, str, torch.nn.ModuleList]] = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and not any(name.startswith(f"{other}.") for _, other, _ in found):
            sizes = [_linear_sizes(member) for member in module]
            if sizes and all(len(item) > 1 for item in sizes):
                found.append((sum(map(sum, sizes)), name, module))
    return sorted(found, key=lambda item: -item[0])


def _linear_sizes(module: Module) -> list[int]:
    return [int(item.in_features) * int(item.out_features) for item in module.modules() if is_linear(item)]  # type: ignore[arg-type]


def _refusal(model: Any) -> str | None:
    """Why no layer of the model can be dropped; None where layers can."""
    name, layers = layer_list(model)
    count = getattr(model.config, "num_hidden_layers", None)
    if count is None:
        return f"the config of {type(model).__name__} does not say how many layers there are: none can be dropped"
    if count != len(layers):
        return (
            f"{type(model).__name__} has {len(layers)} members in {name} and runs {count} layers: the same weights are "
            "run several times, so that no layer can be dropped"
        )
    return None


def removable(model: Module) -> list[int]:
    """Indices of the layers that can be dropped, each by itself.

    Raises: UnsupportedModelError where no layer can be, with the reason.
    """
    if reason := _refusal(model):
        raise UnsupportedModelError(reason)
    layers = layer_list(model)[1]
    shapes = [_modules_of(layer) for layer in layers]
    every = range(len(layers))
    if all(shape == shapes[0] for shape in shapes):
        return list(every)
    return [index for index in every if _misfit(model, [other for other in every if other != index]) is None]


def keep_layers(model: Any, kept: Sequence[int]) -> None:
    """Drop all layers but those with the indices `kept`, in this order; the config and the caches' indices follow.

    Raises: UnsupportedModelError where the model cannot be rebuilt from a config without those layers.
    """
    if reason := _refusal(model) or _misfit(model, kept):
        raise UnsupportedModelError(reason)
    name, layers = layer_list(model)
    parent, _, attribute = name.rpartition(".")
    chosen = [layers[index] for index in kept]
    setattr(model.get_submodule(parent), attribute, type(layers)(chosen))
    for index, layer in enumerate(chosen):
        for module in layer.modules():
            if getattr(module, "layer_idx", None) is not None:
                module.layer_idx = index
    for key, value in _fields_without(model.config, len(layers), kept).items():
        setattr(model.config, key, value)


@contextmanager
def without_layers(model: Any, gone: Sequence[int]) -> Iterator[None]:
    """Inside, the layers `gone` (their indices) are skipped, and no keys and values are kept unless asked for."""
    name, layers = layer_list(model)
    parent, _, attribute = name.rpartition(".")
    owner, config = model.get_submodule(parent), model.config
    stay = [index for index in range(len(layers)) if index not in gone]
    fields = _fields_without(config, len(layers), stay)
    if hasattr(config, "use_cache"):
        fields["use_cache"] = False  # a cache has as many layers as the config, and its places are the whole model's
    before = {key: getattr(config, key) for key in fields}
    setattr(owner, attribute, torch.nn.ModuleList(layers[index] for index in stay))
    for key, value in fields.items():
        setattr(config, key, value)
    try:
        yield
    finally:
        setattr(owner, attribute, layers)
        for key, value in before.items():
            setattr(config, key, value)


def _fields_without(config: Any, count: int, kept: Sequence[int]) -> dict[str, Any]:
    """Fields of the config for fewer layers: their number, and each list with an entry for every layer."""
    fields: dict[str, Any] = {"num_hidden_layers": len(kept)}
    for key, value in vars(config).items():
        if "layer" in key and isinstance(value, list | tuple) and len(value) == count:
            fields[key] = type(value)(value[index] for index in kept)
    return fields


def _misfit(model: Any, kept: Sequence[int]) -> str | None:
    """Why a config with the layers `kept` alone would build other layers than those; None where it builds the same."""
    name, layers = layer_list(model)
    kind, config = type(model), copy.deepcopy(model.config)
    before = skeleton(kind, config).get_submodule(name)
    try:
        for key, value in _fields_without(config, len(layers), kept).items():
            setattr(config, key, value)
        after = skeleton(kind, config).get_submodule(name)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        return f"{kind.__name__} cannot be built with the layers {', '.join(map(str, kept))} alone: {error}"
    for place, index in enumerate(kept):
        made, wanted = _modules_of(after.get_submodule(str(place))), _modules_of(before.get_submodule(str(index)))
        if unlike := sorted(key for key in made.keys() | wanted.keys() if made.get(key) != wanted.get(key)):
            return (
                f"layer {index} of {kind.__name__} cannot become layer {place}: its config builds {unlike[0]} there as "
                f"{made.get(unlike[0], 'nothing')}, and this layer has {wanted.get(unlike[0], 'nothing')}"
            )
    return None


def _modules_of(layer: Module) -> dict[str, str]:
    return {name: type(module).__name__ for name, module in layer.named_modules()}
