"""The stage `share: {method: layers}`: one set of weights for several layers.

Source: Lan et al. 2020, ALBERT, arXiv:1909.11942, § 3.1. The layers stay modules of their own (each has its place in the
cache, its activation ranges), their Parameters are the same objects: training, storage and exporters see one tensor.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from archiver.architecture import layer_list
from archiver.compression.context import StageContext
from archiver.compression.prune.structured_options import ShareLayers
from archiver.compression.report import StageReport, report_stage
from archiver.state.constraints import free


def share_layers(model: torch.nn.Module, options: ShareLayers, context: StageContext) -> StageReport:
    """Make every Parameter of the layers in a group one Parameter.

    Args:
        model: changed in place.
        options: which layers share, and what their weights start from.
        context: not looked at.
    Returns: the report.
    Raises: ValueError when no layers are found in the model.
    """
    prefix, layers = layer_list(model)
    groups = groups_of(options.groups, len(layers))
    for group in groups:
        tie([layers[index] for index in group], options.init)
        for index in group:
            for name, _ in layers[index].named_modules():
                free(model, f"{prefix}.{index}.{name}")
    notes = [f"layers {' '.join(str(list(group)) for group in groups)}: one set of weights each"]
    notes.append("makes nothing faster: every layer is still computed; the archive holds each set once")
    return report_stage("share/layers", model, options, notes)


def check(model: torch.nn.Module, options: ShareLayers) -> list[str]:
    """Problems before any work: layers that are missing or named twice, groups whose layers differ in shape."""
    layers = layer_list(model)[1]
    count = len(layers)
    if isinstance(options.groups, int):
        if options.groups > count:
            return [f"groups: {options.groups} sets of weights for {count} layers: at most {count}"]
        groups = groups_of(options.groups, count)
    else:
        groups = [list(group) for group in options.groups]
    flat = [index for group in groups for index in group]
    problems = []
    if wrong := sorted({index for index in flat if index >= count}):
        problems.append(f"groups: {', '.join(map(str, wrong))}: the model has layers 0 to {count - 1}")
    if twice := sorted({index for index in flat if flat.count(index) > 1}):
        problems.append(f"groups: {', '.join(map(str, twice))} stands more than once: name each layer in one group")
    if missing := sorted(set(range(count)) - set(flat)):
        problems.append(
            f"groups: {', '.join(map(str, missing))} is in no group: give it one, [n] alone keeps its own weights"
        )
    if problems:
        return problems
    for group in groups:
        shapes = [{name: tuple(value.shape) for name, value in layers[index].named_parameters()} for index in group]
        if any(shape != shapes[0] for shape in shapes):
            problems.append(f"groups: layers {', '.join(map(str, group))} have different shapes and cannot share")
        else:
            tie([layers[index] for index in group], "first")
    return problems


def groups_of(groups: int | Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """The groups as lists of layer indices.

    Args:
        groups: the groups, or how many runs of neighbours; the first runs are longer where the number does not divide.
        count: of layers.
    Returns: lists of indices.
    """
    if not isinstance(groups, int):
        return [list(group) for group in groups]
    size, rest = divmod(count, groups)
    found, start = [], 0
    for index in range(groups):
        end = start + size + (index < rest)
        found.append(list(range(start, end)))
        start = end
    return found


def tie(layers: Sequence[torch.nn.Module], init: str) -> None:
    """Make the Parameters of some layers the same objects.

    Args:
        layers: of equal shapes.
        init: what the shared values are: "mean" of the layers', or the "first" one's.
    """
    every = [dict(layer.named_parameters(remove_duplicate=False)) for layer in layers]
    for name, first in every[0].items():
        values = [parameters[name].detach() for parameters in every]
        value = torch.stack(values).mean(0) if init == "mean" else values[0].clone()
        shared = torch.nn.Parameter(value, requires_grad=first.requires_grad)
        owner, _, attribute = name.rpartition(".")
        for layer in layers:
            setattr(layer.get_submodule(owner), attribute, shared)
