"""The stage `retrain/layerwise`: each layer by itself learns to give what the original gives there.

One layer, its optimiser and one layer's hidden states are all that is held beside the model. Layers are taught from the
lowest to the highest, on what those below give by then, so that each makes up for what was cut below it; a layer in front
of dropped ones learns to do their work.
Source: layer by layer against the teacher's hidden states: Romero et al. 2015, FitNets, arXiv:1412.6550.
"""

from __future__ import annotations

import math

import torch

from archiver.compression.context import StageContext
from archiver.compression.report import StageReport, report_stage
from archiver.compression.retrain.objectives import hidden_distance
from archiver.compression.retrain.options import Layerwise
from archiver.compression.retrain.training import CLIP, computes_in_bf16, rate
from archiver.compression.walk.blocks import Block, walk_blocks
from archiver.compression.walk.walk import by_layer
from archiver.errors import ArchiverError, RecipeError
from archiver.state.constraints import constrained

Tensor = torch.Tensor


def layerwise(model: torch.nn.Module, options: Layerwise, context: StageContext) -> StageReport:
    """Teach the layers one after another; masks, sharing within a layer and quantizers hold.

    Args:
        model: changed in place.
        options: how long and how fast each layer learns.
        context: gives training texts and the original.
    Returns: the report.
    Raises: RecipeError for a model whose layers cannot be run by themselves; ArchiverError when a loss is no number.
    """
    linears = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    names = [name for layer, group in by_layer(model, linears) if layer is not None for name in group]
    if not names:
        raise RecipeError(
            f"retrain/layerwise teaches transformer layers, and {type(model).__name__} has none that it knows"
        )
    with constrained(model):
        kept = walk_blocks(
            model,
            names,
            context,
            options.samples,
            lambda block: _teach(block, options),
            method="layerwise",
            teacher=True,
        )
    losses = sorted((int(name.partition(".")[0]), value.tolist()) for name, value in kept.items())
    before, after = (sum(pair[which] for _, pair in losses) / len(losses) for which in (0, 1))
    worst = max(losses, key=lambda item: item[1][1])
    notes = [
        f"{len(losses)} layers, {options.steps} steps each on {options.samples} training texts",
        f"squared distance from the original's hidden states, as a share of their square: {before:.4f} → {after:.4f} on "
        f"average, {worst[1][1]:.4f} at most (layer {worst[0]})",
    ]
    return report_stage("retrain/layerwise", model, options, notes)


def _teach(block: Block, options: Layerwise) -> dict[str, Tensor]:
    """Train one layer in place.

    Returns: "LAYER.distance" → [2], the mean distance over all batches before and after.
    """
    parameters = [value for value in block.layer.parameters() if value.is_floating_point()]
    wanted = [value.requires_grad for value in parameters]
    before = [value.detach().clone() for value in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=options.learning_rate, weight_decay=0.0, fused=True)
    bf16 = computes_in_bf16(options.precision, torch.device("cpu"))
    order = torch.Generator().manual_seed(options.seed)
    first = _distance(block)
    places: list[int] = []
    try:
        for value in parameters:
            value.requires_grad_(True)
        with torch.enable_grad():
            for step in range(options.steps):
                places = places or torch.randperm(len(block.calls), generator=order).tolist()
                for group in optimizer.param_groups:
                    group["lr"] = options.learning_rate * rate(step, options.steps, options.warmup)
                index = places.pop()
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    given = block.gives(index, {})
                loss = hidden_distance(given.float(), block.targets[index], None)
                if not math.isfinite(loss.item()):
                    raise ArchiverError(
                        f"retrain/layerwise: the loss is {loss.item()} at step {step} of {block.prefix.rstrip('.')}: lower "
                        f"learning_rate ({options.learning_rate:g}), or set precision to fp32"
                    )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, CLIP)
                optimizer.step()
    finally:
        for value, was in zip(parameters, wanted, strict=True):
            value.grad = None
            value.requires_grad_(was)
    last = _distance(block)
    if not last <= first:
        with torch.no_grad():
            for value, old in zip(parameters, before, strict=True):
                value.copy_(old)
        last = first
    layer = block.prefix.rstrip(".").rpartition(".")[2]
    return {f"{layer}.distance": torch.tensor([first, last], dtype=torch.float64)}


def _distance(block: Block) -> float:
    """The mean distance of what a layer gives from what it should give, over all batches."""
    with torch.no_grad():
        found = [
            float(hidden_distance(block.gives(index, {}), target, None)) for index, target in enumerate(block.targets)
        ]  # fmt: skip
    return sum(found) / len(found)
