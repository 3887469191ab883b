"""How much each attention head, feed-forward neuron and layer matters.

All three scores look at the layer that consumes a structure's output x (W_out of attention, W_down of the feed-forward), so
heads and neurons are blocks of its input features:
- taylor: Σ over texts of |Σ_tokens x·∂L/∂x|, the first-order change of the loss when a gate on the block closes
  (Michel et al. 2019, arXiv:1905.10650, eq. 2; Molchanov et al. 2019, arXiv:1906.10771, eq. 7)
- activation: Σ over tokens of |x_j|·‖W[:, j]‖, how much the block adds to what comes behind
- magnitude: the norm of the block's weights, those that produce it and those that consume it
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from archiver.compression.calibration import removed, watched_inputs
from archiver.compression.context import Batch, StageContext, calibration_forward, inputs_of
from handlers.architecture.anatomy import layer_list

Tensor = torch.Tensor
_ROWS = 16


def block_scores(
    model: torch.nn.Module,
    blocks: Mapping[str, int],
    producers: Mapping[str, Sequence[str]],
    importance: str,
    context: StageContext,
    samples: int,
) -> dict[str, Tensor]:
    """[in_features / width] scores for each consuming layer.

    blocks: {name of the consuming linear layer: width of a block of its inputs}
    producers: {the same name: linear layers whose output rows make those inputs, in equal order}
    """
    if importance == "magnitude":
        return {name: _magnitude(model, name, producers[name], width) for name, width in blocks.items()}
    if importance == "activation":
        return _activation(model, blocks, context, samples)
    return _taylor(model, blocks, context, samples)


def _magnitude(model: torch.nn.Module, name: str, producers: Sequence[str], width: int) -> Tensor:
    squares = model.get_submodule(name).get_parameter("weight").detach().square().sum(0)
    for producer in producers:
        rows = model.get_submodule(producer).get_parameter("weight").detach().square().sum(1)
        if (
            rows.shape == squares.shape
        ):  # keys and values of a group are fewer than its queries: the queries speak for it
            squares = squares + rows
    return squares.view(-1, width).sum(1).sqrt()


def _activation(
    model: torch.nn.Module, blocks: Mapping[str, int], context: StageContext, samples: int
) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}

    def see(name: str, x: Tensor) -> None:
        total = x.detach().reshape(-1, x.shape[-1]).abs().sum(0)
        sums[name] = sums[name] + total if name in sums else total

    with watched_inputs(model, list(blocks), see):
        calibration_forward(context.module, context.calibrate(samples))
    scores = {}
    for name, width in blocks.items():
        weight = model.get_submodule(name).get_parameter("weight").detach()
        scores[name] = (sums[name] * weight.norm(dim=0)).view(-1, width).sum(1)
    return scores


def _taylor(
    model: torch.nn.Module, blocks: Mapping[str, int], context: StageContext, samples: int
) -> dict[str, Tensor]:
    scores = {
        name: torch.zeros(model.get_submodule(name).get_parameter("weight").shape[1] // width)
        for name, width in blocks.items()
    }
    seen: dict[str, Tensor] = {}

    def see(name: str, x: Tensor) -> None:
        x.retain_grad()
        seen[name] = x

    with watched_inputs(model, list(blocks), see):
        with torch.enable_grad():
            for batch in labelled(context, samples):
                loss_of(context, batch).backward()
                for name, width in blocks.items():
                    x = seen[name]
                    assert x.grad is not None
                    change = (x * x.grad).detach().flatten(1, -2).sum(1)  # [texts, features]: over tokens
                    scores[name] += change.view(len(change), -1, width).sum(-1).abs().sum(0)
                model.zero_grad(set_to_none=True)
    return scores


def labelled(context: StageContext, samples: int) -> list[Batch]:
    """Training batches of about `samples` texts together, or all of them.

    Batches come sorted by length: those taken lie evenly between the shortest and the longest, as the data does.
    """
    every = list(context.train(_ROWS, 0))
    wanted = min(len(every), -(-samples // _ROWS))
    return [every[(2 * place + 1) * len(every) // (2 * wanted)] for place in range(wanted)]


def loss_of(context: StageContext, batch: Batch) -> Tensor:
    """What a cut should not change: the labels' loss, summed over texts; without labels, the outputs along random signs.

    The distance to the original's own outputs would do for neither: where nothing is cut yet it is zero, and flat. A
    random direction r gives ∂(rᵀy)/∂x, whose size is in the mean that of the outputs' whole change.
    """
    outputs: Tensor = context.module(**inputs_of(batch, context.module))
    loss = context.objective.loss
    if loss is not None and "labels" in batch:
        return loss(outputs, batch["labels"]) * len(outputs)
    signs = torch.randint(0, 2, outputs.shape, generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    return (outputs * signs).sum()


def layer_order(model: torch.nn.Module, count: int, importance: str, context: StageContext, samples: int) -> list[int]:
    """The `count` layers that matter least, the least first.

    taylor: one after another, each time the layer without which the loss over `samples` texts is lowest (the loss itself,
    not its first order: a layer is too much for that). activation: the layers whose output is most like their input,
    1 − cos (block influence, Men et al. 2024, arXiv:2403.03853, eq. 1). magnitude: the norm of all their weights.
    """
    layers = layer_list(model)[1]
    if importance == "taylor":
        return _greedy(model, count, context, samples)
    if importance == "magnitude":
        scores = [_norm(layer.parameters()) for layer in layers]
    else:
        scores = _influence(model, context, samples)
    return sorted(range(len(layers)), key=scores.__getitem__)[:count]


def _norm(parameters: Iterable[Tensor]) -> float:
    norm: float = float(sum(value.detach().square().sum() for value in parameters)) ** 0.5
    return norm


def _influence(model: torch.nn.Module, context: StageContext, samples: int) -> list[float]:
    layers = layer_list(model)[1]
    sums, tokens = [0.0] * len(layers), [0] * len(layers)

    def watch(index: int) -> Callable[..., None]:
        def hook(module: torch.nn.Module, arguments: tuple[Tensor, ...], output: Any) -> None:
            y = output[0] if isinstance(output, tuple) else output
            likeness = torch.nn.functional.cosine_similarity(arguments[0], y, dim=-1)
            sums[index] += float((1 - likeness).sum())
            tokens[index] += likeness.numel()

        return hook

    with removed([layer.register_forward_hook(watch(index)) for index, layer in enumerate(layers)]):
        calibration_forward(context.module, context.calibrate(samples))
    return [total / max(1, count) for total, count in zip(sums, tokens, strict=True)]


def _greedy(model: torch.nn.Module, count: int, context: StageContext, samples: int) -> list[int]:
    from archiver.compression.prune.structured import without_layers

    batches = labelled(context, samples)
    targets = []
    with torch.no_grad():
        if context.objective.loss is None or "labels" not in batches[0]:
            targets = [context.module(**inputs_of(batch, context.module)) for batch in batches]
        gone: list[int] = []
        for _ in range(count):
            found = {}
            for index in range(len(layer_list(model)[1])):
                if index in gone:
                    continue
                with without_layers(model, [*gone, index]):
                    found[index] = sum(_distance(context, batch, targets, place) for place, batch in enumerate(batches))
            gone.append(min(found, key=found.__getitem__))
            context.say(f"    layer {gone[-1]} hurts least ({found[gone[-1]] / len(batches):.4f} without it)")
    return gone


def _distance(context: StageContext, batch: Batch, targets: Sequence[Tensor], place: int) -> float:
    outputs, objective = context.module(**inputs_of(batch, context.module)), context.objective
    if targets or objective.loss is None:
        return float(objective.distance(outputs, targets[place], batch["attention_mask"], 1.0))
    return float(objective.loss(outputs, batch["labels"]))
