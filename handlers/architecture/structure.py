"""How a model whose shapes differ from its config's travels: structure.json, from which a fresh skeleton is made to fit.

The format's one owner. It names what the config cannot say: sizes of single linear layers and other Parameters, factored
layers, which names share one tensor, and attributes of modules (head counts, attention scales that depend on a layer's
place in the original). How many layers and how many tokens there are, the config says itself.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from handlers.architecture.factored import factored_ranks, install
from handlers.architecture.skeleton import apply_settings, differences
from handlers.errors import UnsoundArchive

STRUCTURE = "structure.json"
VERSION = 2


def describe(model: torch.nn.Module) -> dict[str, Any]:
    """JSON-able: version; factored {name: rank}; linears {name: [out, in]} of every linear layer; shared {name: the first
    name of the same Parameter}; parameters {name: shape} of other Parameters, and settings {module: {attribute: value}},
    both only where they are not what the config gives."""
    linears = {
        name: [module.out_features, module.in_features]
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, torch.nn.Linear)
    }
    settings, parameters = differences(model)
    return {
        "version": VERSION,
        "factored": factored_ranks(model),
        "linears": linears,
        "shared": shared_names(model),
        "parameters": parameters,
        "settings": settings,
    }


def shared_names(model: torch.nn.Module) -> dict[str, str]:
    """{name of a Parameter: the first name of the same one}, for every name but the first."""
    first: dict[int, str] = {}
    found = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        known = first.setdefault(id(parameter), name)
        if known != name:
            found[name] = known
    return found


def rebuild(model: torch.nn.Module, structure: Mapping[str, Any]) -> None:
    """Give a skeleton made from the archive's config the shapes and the sharing that `structure` describes.

    Weights of changed layers are left as they come: `load_state_dict` follows. UnsoundArchive when it does not fit.
    """
    if structure.get("version") != VERSION:
        raise UnsoundArchive(f"structure.json has version {structure.get('version')!r}; this code reads {VERSION}")
    try:
        install(model, structure["factored"])
        for name, (rows, columns) in structure["linears"].items():
            resize(model.get_submodule(name), int(rows), int(columns))
        for name, first in structure["shared"].items():
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, model.get_parameter(first))
        for name, shape in structure["parameters"].items():
            owner, _, attribute = name.rpartition(".")
            before = model.get_parameter(name)
            after = torch.nn.Parameter(
                before.new_empty([int(side) for side in shape]), requires_grad=before.requires_grad
            )
            setattr(model.get_submodule(owner), attribute, after)
        apply_settings(model, structure["settings"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UnsoundArchive(f"structure.json does not fit the model that config.json describes: {error}") from error


def load_weights(model: torch.nn.Module, folder: Path, weights: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    """A skeleton made from the archive's config, fitted to its structure.json and filled, in eval mode.

    RuntimeError when a weight is missing or surplus.
    """
    shared: Mapping[str, str] = {}
    if (folder / STRUCTURE).is_file():
        structure = json.loads((folder / STRUCTURE).read_text(encoding="utf-8"))
        rebuild(model, structure)
        shared = structure["shared"]
    missing, unexpected = model.load_state_dict(dict(weights), strict=False)
    absent = [name for name in missing if name not in shared and not name.endswith("position_ids")]
    if absent or unexpected:
        raise RuntimeError(f"the weights do not fit config.json: missing {absent[:3]}, unexpected {unexpected[:3]}")
    return model.eval()


def resize(module: torch.nn.Module, rows: int, columns: int) -> None:
    """A linear layer of another size, in place; one that fits already is left alone."""
    if not isinstance(module, torch.nn.Linear):
        raise TypeError(f"{type(module).__name__} is no linear layer")
    if (module.out_features, module.in_features) == (rows, columns):
        return
    weight = module.weight
    module.weight = torch.nn.Parameter(weight.new_empty(rows, columns), requires_grad=weight.requires_grad)
    if module.bias is not None and module.out_features != rows:
        module.bias = torch.nn.Parameter(weight.new_empty(rows), requires_grad=weight.requires_grad)
    module.out_features, module.in_features = rows, columns
