"""Bytes of a model's weights as they will lie in the archive."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from archiver.host import drop_mapped
from archiver.state.plan import plan_of
from archiver.storage.codec_choice import WeightLayout
from archiver.storage.int8_rows import quantize_rows
from archiver.storage.layouts import layouts_of
from archiver.storage.packing import encoded_bytes


def stored_bytes(model: torch.nn.Module) -> int:
    """Bytes of a model's weights as they will be stored: each Parameter once, in its smallest codec.

    Weights that are planned as int8 count as the integers they will be, and four bytes a row for the scale.
    """
    plan = plan_of(model)
    planned = {f"{name}.weight" for name in (*plan.linears, *plan.embeddings, *plan.convolutions)} if plan else set()
    layouts = layouts_of(model)
    return sum(
        _encoded(quantize_rows(parameter.flatten(1))[0], None) + 4 * parameter.shape[0]
        if name in planned
        else _encoded(parameter, layouts.get(name))
        for name, parameter in model.named_parameters()
    )


def stored_sentence(model: torch.nn.Module, names: Sequence[str]) -> str:
    """How small the weights of these modules lie on disk: "42.47 MB in fp32, 1.41 MB stored (1/30.1)"."""
    layouts = layouts_of(model)
    plain = stored = 0
    for name in names:
        weight = model.get_submodule(name).get_parameter("weight")
        plain += 4 * weight.numel()
        stored += _encoded(weight, layouts.get(f"{name}.weight"))
    return f"{plain / 1e6:.2f} MB in fp32, {stored / 1e6:.2f} MB stored (1/{plain / max(1, stored):.1f})"


def _encoded(parameter: torch.Tensor, layout: WeightLayout | None) -> int:
    found = encoded_bytes(parameter.detach().cpu().numpy(), layout)
    drop_mapped()  # a walk leaves a large model's weights in a file: not all of them have to be looked at together
    return found
