"""Bits per layer by measured sensitivity: the layers that lose least are stored in the fewest bits.

Each layer alone is rounded at each width, and what that does to the model's outputs on training texts is its
sensitivity. From the largest width, the step with the least loss for each byte saved is taken, again and again: a path of
ever smaller models. On it, bisection finds the smallest one that keeps the bound on validation.
Source: sensitivities by one layer at a time as in HAQ's and ZeroQ's analyses (Cai et al. 2020, arXiv:2001.00281, eq. 3,
whose KL divergence between the outputs this is); they are added up as if layers did not influence each other.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence

import torch

from archiver.compression.bisect import bisect
from archiver.compression.context import StageContext, inputs_of, real_places, stacked
from archiver.compression.quantize.grids import round_to_nearest
from archiver.compression.quantize.options import Mixed, WeightOnly
from archiver.errors import DataError, GateFailed

Tensor = torch.Tensor


def cheapest_path(
    losses: Mapping[str, Mapping[int, float]], sizes: Mapping[str, int], widths: Sequence[int]
) -> list[dict[str, int]]:
    """Choices of a width for each layer, from the largest width everywhere to the smallest, one step at a time.

    Each step takes the layer whose next narrower width adds the least loss for each bit saved; equal ones in the order
    given.

    Args:
        losses: layer → width → loss.
        sizes: layer → number of its weights.
        widths: bits to choose from.
    Returns: the choices (layer → width), the largest model first.
    """
    order = sorted(widths, reverse=True)
    current = dict.fromkeys(losses, order[0])
    path = [dict(current)]
    heap: list[tuple[float, int, str]] = []
    place = {name: index for index, name in enumerate(losses)}

    def push(name: str) -> None:
        here = order.index(current[name])
        if here + 1 < len(order):
            saved = (order[here] - order[here + 1]) * sizes[name]
            rise = losses[name][order[here + 1]] - losses[name][order[here]]
            heapq.heappush(heap, (rise / saved, place[name], name))

    for name in losses:
        push(name)
    while heap:
        _, _, name = heapq.heappop(heap)
        current[name] = order[order.index(current[name]) + 1]
        path.append(dict(current))
        push(name)
    return path


def choose_bits(
    model: torch.nn.Module, names: Sequence[str], options: WeightOnly, context: StageContext
) -> tuple[dict[str, int], list[str]]:
    """Find the widths of the smallest model that keeps the bound on validation; the weights are as before afterwards.

    Args:
        names: of the modules to quantize.
        options: grouping, and in `mixed` the bound and the widths to choose from.
    Returns: (module name → width, notes).
    Raises: GateFailed when not even the largest width everywhere keeps the bound; DataError when no headline metric can
        be measured.
    """
    mixed = options.mixed or Mixed()
    weights = {name: model.get_submodule(name).get_parameter("weight") for name in names}
    before = {name: weight.detach().clone() for name, weight in weights.items()}

    def put(name: str, bits: int) -> None:
        how = (bits, options.columns_per_group, options.is_symmetric(bits))
        with torch.no_grad():
            weights[name].copy_(round_to_nearest(before[name], *how)[0])

    def restore(name: str) -> None:
        with torch.no_grad():
            weights[name].copy_(before[name])

    losses = _sensitivities(names, mixed, context, put, restore)
    sizes = {name: weight.numel() for name, weight in weights.items()}
    path = cheapest_path(losses, sizes, mixed.bits)

    def measured_drop(choice: Mapping[str, int]) -> float:
        try:
            for name, bits in choice.items():
                put(name, bits)
            return context.objective.headline_drop(context.original_metrics, context.measure())[1]
        except DataError:  # the answers are no numbers
            return float("inf")
        finally:
            for name in choice:
                restore(name)

    metric, _ = context.objective.headline_drop(context.original_metrics, context.original_metrics)
    drops = {0: measured_drop(path[0])}
    if drops[0] > mixed.max_drop:
        raise GateFailed(
            f"mixed: with {max(mixed.bits)} bits in every layer {metric} drops by {drops[0]:.4f}, and max_drop allows "
            f"{mixed.max_drop:g}: allow more, a larger width in bits, or ignore what is sensitive"
        )

    def passes(place: int) -> bool:
        drops[place] = measured_drop(path[place])
        bits = _average(path[place], sizes)
        context.say(f"    mixed: {bits:.2f} bits a weight, {metric} drops by {drops[place]:.4f}")
        return drops[place] <= mixed.max_drop

    best, _ = bisect(0, len(path), lambda low, high: (low + high) // 2 if high - low > 1 else None, passes)
    chosen = path[best]
    counts = ", ".join(
        f"{sum(bits == width for bits in chosen.values())} layers {width} bits" for width in sorted(mixed.bits)
    )
    notes = [
        f"mixed: {counts}; rounded to nearest so, {metric} drops by {drops[best]:.4f} ({mixed.max_drop:g} allowed)",
        "mixed, bits of each: " + ", ".join(f"{name} {bits}" for name, bits in chosen.items()),
    ]
    return chosen, notes


def _average(choice: Mapping[str, int], sizes: Mapping[str, int]) -> float:
    return sum(bits * sizes[name] for name, bits in choice.items()) / sum(sizes.values())


def _sensitivities(
    names: Sequence[str],
    mixed: Mixed,
    context: StageContext,
    put: Callable[[str, int], None],
    restore: Callable[[str], None],
) -> dict[str, dict[int, float]]:
    """layer → width → distance of the outputs from those before, on training texts."""
    batches = stacked(context.calibrate(mixed.texts))
    module, objective = context.module, context.objective
    found: dict[str, dict[int, float]] = {}
    with torch.no_grad():
        answers = [module(**inputs_of(batch, module)) for batch in batches]
        for index, name in enumerate(names):
            found[name] = {}
            for bits in mixed.bits:
                put(name, bits)
                total, count = 0.0, 0
                for batch, answer in zip(batches, answers, strict=True):
                    outputs = module(**inputs_of(batch, module))
                    rows = len(outputs)
                    loss = objective.distance(outputs, answer, real_places(batch, module), 1.0)
                    total, count = total + float(loss) * rows, count + rows
                found[name][bits] = total / count
            restore(name)
            if index % 8 == 7:
                context.say(f"    mixed: sensitivity of {index + 1} of {len(names)} layers measured")
    return found
