"""How much each attention head, feed-forward neuron and layer matters.

All three scores look at the layer that consumes a structure's output x (W_out of attention, W_down of the feed-forward), so
heads and neurons are blocks of its input features:
- taylor: Σ over texts of |Σ_tokens x·∂L/∂x|, the first-order change of the loss when a gate on the block closes
  (Michel et al. 2019, arXiv:1905.10650, eq. 2; Molchanov et al. 2019, arXiv:1906.10771, eq. 7)
- activation: Σ over tokens of |x_j|·‖W[:, j]‖, how much the block adds to what comes behind
- magnitude: the norm of the block's weights, those that produce it and those that consume it

A fourth, surgeon, is in surgeon.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from archiver.architecture import Cut, layer_list, removable, without_layers
from archiver.compression.calibration import removed, watched_inputs
from archiver.compression.context import Batch, StageContext, calibration_forward, inputs_of, real_places, rows_of

Tensor = torch.Tensor
_ROWS = 16
_TOKENS = 1024  # of a batch that gradients are asked of: some megabytes each, in a language model


def block_scores(
    model: torch.nn.Module, cuts: Sequence[Cut], importance: str, context: StageContext, samples: int
) -> list[Tensor]:
    """[blocks] scores for each cut, of the structures that its consumer takes.

    Args:
        cuts: what may be cut, each with a consumer of its own.
        importance: "taylor", "activation" or "magnitude".
        samples: how many training texts the first two look at.
    """
    if importance == "magnitude":
        return [_magnitude(model, cut) for cut in cuts]
    if importance == "activation":
        return _activation(model, cuts, context, samples)
    return _taylor(model, cuts, context, samples)


def per_block(values: Tensor, cut: Cut) -> Tensor:
    """Sums over the inputs of each structure: [..., in_features] → [..., blocks]."""
    order = cut.columns.argsort(stable=True)
    width = len(order) // cut.blocks
    if torch.equal(cut.columns[order], torch.arange(cut.blocks).repeat_interleave(width)):
        return values[..., order].reshape(*values.shape[:-1], cut.blocks, width).sum(-1)
    return values.new_zeros(*values.shape[:-1], cut.blocks).index_add_(-1, cut.columns, values)


def _magnitude(model: torch.nn.Module, cut: Cut) -> Tensor:
    squares = per_block(model.get_submodule(cut.consumer).get_parameter("weight").detach().square().sum(0), cut)
    for name, owner in cut.producers.items():
        # Keys and values of a group are fewer than its queries, which speak for it.
        if cut.kind == "heads" and len(owner) != len(cut.columns):
            continue
        if f"{name}.weight" in dict(model.named_parameters(remove_duplicate=False)):
            rows = model.get_submodule(name).get_parameter("weight").detach().square().sum(1)
            squares = squares.index_add(0, owner[owner >= 0], rows[owner >= 0])
    return squares.sqrt()


def _activation(model: torch.nn.Module, cuts: Sequence[Cut], context: StageContext, samples: int) -> list[Tensor]:
    sums: dict[str, Tensor] = {}

    def see(name: str, x: Tensor) -> None:
        total = x.detach().reshape(-1, x.shape[-1]).abs().sum(0)
        sums[name] = sums[name] + total if name in sums else total

    names = [cut.consumer for cut in cuts]
    with watched_inputs(model, names, see):
        calibration_forward(context.module, context.calibrate(samples))
    weights = [model.get_submodule(name).get_parameter("weight").detach() for name in names]
    return [
        per_block(sums[cut.consumer] * weight.norm(dim=0), cut) for cut, weight in zip(cuts, weights, strict=True)
    ]  # fmt: skip


def _taylor(model: torch.nn.Module, cuts: Sequence[Cut], context: StageContext, samples: int) -> list[Tensor]:
    scores = [torch.zeros(cut.blocks) for cut in cuts]
    seen: dict[str, list[Tensor]] = {}

    def see(name: str, x: Tensor) -> None:
        x.retain_grad()
        seen.setdefault(name, []).append(x)  # more than once where layers share their weights

    with watched_inputs(model, [cut.consumer for cut in cuts], see):
        with torch.enable_grad():
            for batch in labelled(context, samples):
                loss_of(context, batch).backward()
                for cut, score in zip(cuts, scores, strict=True):
                    change: Any = 0
                    for x in seen[cut.consumer]:
                        assert x.grad is not None
                        by_text = (x * x.grad).detach().reshape(rows_of(batch), -1, x.shape[-1])
                        change = change + by_text.sum(1)  # [texts, features]: over tokens
                    score += per_block(change, cut).abs().sum(0)
                seen.clear()
                model.zero_grad(set_to_none=True)
    return scores


def labelled(context: StageContext, samples: int) -> list[Batch]:
    """Training batches of about `samples` texts together, or all of them.

    Batches come sorted by length: those taken lie evenly between the shortest and the longest, as the data does.
    """
    every = list(context.train(_ROWS, 0))
    wanted = min(len(every), -(-samples // _ROWS))
    chosen = [every[(2 * place + 1) * len(every) // (2 * wanted)] for place in range(wanted)]
    return [part for batch in chosen for part in _short(batch)]


def _short(batch: Batch) -> list[Batch]:
    """The texts of a batch in parts of some _TOKENS tokens, one at least; other inputs as they are."""
    ids = batch.get("input_ids")
    if ids is None or ids.numel() <= _TOKENS or any(len(item) != len(ids) for item in batch.values()):
        return [batch]
    rows = max(1, _TOKENS // ids[0].numel())
    return [{name: item[start : start + rows] for name, item in batch.items()} for start in range(0, len(ids), rows)]


def loss_of(context: StageContext, batch: Batch) -> Tensor:
    """What a cut should not change: the labels' loss, summed over texts; without labels, the outputs along random signs.

    The distance to the original's own outputs would do for neither: where nothing is cut yet it is zero, and flat. A
    random direction r gives ∂(rᵀy)/∂x, whose size is in the mean that of the outputs' whole change.
    """
    outputs = context.module(**inputs_of(batch, context.module))
    if "labels" in batch and context.objective.loss is not None:
        return context.objective.loss(outputs, batch["labels"]) * len(outputs)
    signs = torch.randint(0, 2, outputs.shape, generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    total: Tensor = (outputs * signs).sum()
    return total


def layer_order(model: torch.nn.Module, count: int, importance: str, context: StageContext, samples: int) -> list[int]:
    """The `count` layers that matter least, the least first.

    taylor: one after another, each time the layer without which the loss over `samples` texts is lowest (the loss itself,
    not its first order: a layer is too much for that). activation: the layers whose output is most like their input,
    1 − cos (block influence, Men et al. 2024, arXiv:2403.03853, eq. 1). magnitude: the norm of all their weights.
    """
    layers = layer_list(model)[1]
    may_go = removable(model)
    if importance == "taylor":
        return _greedy(model, count, may_go, context, samples)
    if importance == "magnitude":
        scores = [_norm(layer.parameters()) for layer in layers]
    else:
        scores = _influence(model, context, samples)
    return sorted(may_go, key=scores.__getitem__)[:count]


def _norm(parameters: Iterable[Tensor]) -> float:
    return math.sqrt(sum(float(value.detach().square().sum()) for value in parameters))


def _influence(model: torch.nn.Module, context: StageContext, samples: int) -> list[float]:
    layers = layer_list(model)[1]
    sums, tokens = [0.0] * len(layers), [0] * len(layers)

    def watch(index: int) -> Callable[[torch.nn.Module, tuple[Tensor, ...], dict[str, Any], Any], None]:
        def hook(module: torch.nn.Module, arguments: tuple[Tensor, ...], named: dict[str, Any], output: Any) -> None:
            y = output[0] if isinstance(output, tuple) else output
            x = arguments[0] if arguments else named["hidden_states"]
            likeness = torch.nn.functional.cosine_similarity(x, y, dim=-1)
            sums[index] += float((1 - likeness).sum())
            tokens[index] += likeness.numel()

        return hook

    with removed([layer.register_forward_hook(watch(index), with_kwargs=True) for index, layer in enumerate(layers)]):
        calibration_forward(context.module, context.calibrate(samples))
    return [total / max(1, count) for total, count in zip(sums, tokens, strict=True)]


def _greedy(
    model: torch.nn.Module, count: int, may_go: Sequence[int], context: StageContext, samples: int
) -> list[int]:  # fmt: skip
    batches = labelled(context, samples)
    targets = []
    with torch.no_grad():
        if context.objective.loss is None or "labels" not in batches[0]:
            targets = [context.module(**inputs_of(batch, context.module)) for batch in batches]
        gone: list[int] = []
        for _ in range(count):
            found = {}
            for index in may_go:
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
        return float(objective.distance(outputs, targets[place], real_places(batch, context.module), 1.0))
    return float(objective.loss(outputs, batch["labels"]))
