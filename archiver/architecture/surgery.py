"""Cuts made: rows and columns of linear layers are taken out, and the modules that hold them follow."""

from __future__ import annotations

import torch

from archiver.architecture.discovery import layer_parts
from archiver.architecture.parts import Cut
from handlers.architecture.skeleton import set_setting

Tensor = torch.Tensor


def cuts_of(model: torch.nn.Module, kind: str) -> list[Cut]:
    """Everything of one kind that can be cut in the model as it is now, layer by layer."""
    return [cut for parts in layer_parts(model) for cut in parts.of_kind(kind)]


def cut_layer(model: torch.nn.Module, cut: Cut, kept: Tensor) -> None:
    """Keep only the structures `kept` of one cut, in place; on the meta device too. `layer_parts` follows.

    Args:
        kept: [1 … blocks] int64, indices of the structures that stay, rising.
    """
    for name, owner in cut.producers.items():
        rows = ((owner < 0) | torch.isin(owner, kept)).nonzero()[:, 0]
        _slice(model, name, 0, rows)
    _slice(model, cut.consumer, 1, torch.isin(cut.columns, kept).nonzero()[:, 0])
    for name, values in cut.settings.items():
        for key, each in values.items():
            set_setting(model.get_submodule(name), key, each * len(kept), model.config)


def _slice(model: torch.nn.Module, name: str, dimension: int, index: Tensor) -> None:
    """Keep rows (0) or columns (1) of a linear layer, or rows of a Parameter."""
    owner, _, key = name.rpartition(".")
    parent = model.get_submodule(owner)
    if key in parent._parameters:
        setattr(parent, key, _taken(parent.get_parameter(key), 0, index))
        return
    layer = model.get_submodule(name)
    assert isinstance(layer, torch.nn.Linear)
    layer.weight = _taken(layer.weight, dimension, index)
    if dimension == 0 and layer.bias is not None:
        layer.bias = _taken(layer.bias, 0, index)
    layer.out_features, layer.in_features = layer.weight.shape


def _taken(parameter: Tensor, dimension: int, index: Tensor) -> torch.nn.Parameter:
    tensor = parameter.detach()
    if tensor.device.type == "meta":  # only the shape is known there
        shape = list(tensor.shape)
        shape[dimension] = len(index)
        tensor = tensor.new_empty(shape)
    else:
        tensor = tensor.index_select(dimension, index.to(tensor.device)).contiguous()
    return torch.nn.Parameter(tensor, requires_grad=parameter.requires_grad)
