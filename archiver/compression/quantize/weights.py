"""The stages that move weights onto a grid: weight-only integers, fixed point, signs, three values.

Each chooses its modules, leaves a constraint on each and, with `aware`, trains the latent weights behind the rounded ones
before they are baked. Weights that modules share are quantized once. Nothing here changes what the runtime computes in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from archiver.compression.context import StageContext
from archiver.compression.quantize import int8 as quantization
from archiver.compression.quantize.layer_grids import Grids, moved_by, nearest_grids
from archiver.compression.quantize.options import Binary, FixedPoint, Ternary, WeightOnly, parse_format
from archiver.compression.quantize.quantizers import FixedPointGrid, Signs, TernaryGrid
from archiver.compression.quantize.rotation import rotate
from archiver.compression.quantize.targets import chosen_modules
from archiver.compression.report import StageReport, report_stage
from archiver.compression.retrain.options import Retrain
from archiver.compression.retrain.training import train
from archiver.errors import RecipeError
from archiver.host import drop_mapped
from archiver.state.constraints import Mask, constrain, state_of

Tensor = torch.Tensor

NOT_FASTER = "makes nothing faster: the weights are stored in fewer bits, and computed with in the runtime's precision"


def weight_only(model: torch.nn.Module, options: WeightOnly, context: StageContext) -> StageReport:
    """Integers in groups: rounded to nearest, by GPTQ, AWQ or scale estimation; plain 8 bits are left to the runtime.

    Args:
        model: changed in place.
        options: bits, groups and how scales are found.
        context: gives calibration and training texts.
    Returns: the report.
    Raises: RecipeError for modules that do not fit, and for hidden states that cannot be turned; GateFailed when `mixed`
        finds no width that keeps its bound.
    """
    if not options.in_place:
        return quantization.weight_only(model, options, context)
    notes = rotate(model, options.rotate == "auto") if options.rotate else []
    names = chosen_modules(model, options)
    before = weights_of(model, names) if options.aware is not None else {}
    bits = dict.fromkeys(names, options.bits)
    if options.mixed is not None:
        from archiver.compression.quantize.mixed import choose_bits

        bits, chosen = choose_bits(model, names, options, context)
        notes += chosen
    found = integer_grids(model, bits, options, context)
    notes += found.notes
    notes += _put(model, found.grids, options.aware, context)
    sizes = {name: model.get_submodule(name).get_parameter("weight").numel() for name in names}
    width = sum(bits[name] * size for name, size in sizes.items()) / sum(sizes.values())
    moved = found.moved if options.aware is None else moved_since(model, before)
    line = f"{len(names)} modules, {sum(sizes.values())} weights: {width:.3g} bits a weight and a scale for each group"
    # AWQ rescales weights on purpose: how far they are from where they were says nothing.
    notes.insert(0, line if options.algorithm in ("awq", "awq-gptq") else f"{line}; {ratio_of(moved)}")
    return report_stage("quantize/weight-only", model, options, [*notes, NOT_FASTER])


def integer_grids(model: torch.nn.Module, bits: Mapping[str, int], options: WeightOnly, context: StageContext) -> Grids:
    """A grid for each module, by the algorithm of the options.

    Args:
        bits: module name → width.
        options: algorithm and grouping.
        context: gives calibration texts.
    Returns: the grids. Rounding to nearest leaves the weights as they are; the other algorithms put them onto theirs.
    Raises: RecipeError when no calibration text reaches a layer.
    """
    if options.algorithm == "gptq":
        from archiver.compression.quantize.algorithms.gptq import gptq_model

        return gptq_model(model, bits, options, context)
    if options.algorithm in ("awq", "awq-gptq"):
        from archiver.compression.quantize.algorithms.awq import awq_model

        return awq_model(model, bits, options, context)
    if options.algorithm == "scale-estimation":
        from archiver.compression.quantize.algorithms.estimation import scale_estimation_model

        return scale_estimation_model(model, bits, options, context)
    if options.algorithm == "autoround":
        from archiver.compression.quantize.algorithms.learned_rounding import autoround_model

        return autoround_model(model, bits, options, context)
    return nearest_grids(model, bits, options)


def fixed_point(model: torch.nn.Module, options: FixedPoint, context: StageContext) -> StageReport:
    """Sign, integer and fraction bits, one format for all chosen weights; biases and norms stay floating point.

    Args:
        model: changed in place.
        options: format and modules.
        context: gives training texts, for `aware`.
    Returns: the report.
    Raises: RecipeError for modules that do not fit.
    """
    how = parse_format(options.format)
    limit, step = 2.0**how.integer, 2.0**-how.fraction
    names = chosen_modules(model, options, tables=True)
    before = weights_of(model, names)
    outside = sum(int(((w < -limit) | (w > limit - step)).sum()) for w in before.values())
    kept = {name: FixedPointGrid(how) for name in names}
    notes = _put(model, kept, options.aware, context)
    what = f"{how} ({how.bits} bits, −{limit:g} … {limit - step:g} in steps of {step:g}), {outside} weights saturate"
    return report_stage("quantize/fixed-point", model, options, [described(model, before, what), *notes, NOT_FASTER])


def ternary(model: torch.nn.Module, options: Ternary, context: StageContext) -> StageReport:
    """Weights as −a, 0 and a.

    Args:
        model: changed in place.
        options: granularity and modules.
        context: gives training texts, for `aware`.
    Returns: the report.
    Raises: RecipeError for modules that do not fit.
    """
    names = chosen_modules(model, options)
    before = weights_of(model, names)
    kept = {name: TernaryGrid(before[name], options.granularity) for name in names}
    notes = _put(model, kept, options.aware, context)
    zeros = sum(int((model.get_submodule(name).get_parameter("weight") == 0).sum()) for name in names)
    share = zeros / sum(weight.numel() for weight in before.values())
    line = described(model, before, f"−a, 0 and a for each {options.granularity}, {share:.0%} zeros")
    return report_stage("quantize/ternary", model, options, [line, *notes, NOT_FASTER])


def binary(model: torch.nn.Module, options: Binary, context: StageContext) -> StageReport:
    """Weights as signs, sgn(w)·b.

    Args:
        model: changed in place.
        options: magnitude, granularity and modules.
        context: gives training texts, for `aware`.
    Returns: the report.
    Raises: RecipeError for modules that do not fit, and for pruned ones.
    """
    names = chosen_modules(model, options)
    pruned = [
        name for name in names if any(isinstance(item, Mask) for item in state_of(model).constraints.get(name, []))
    ]
    if pruned:
        raise RecipeError(f"binary: ±b has no zero for the pruned weights of {', '.join(pruned)}: use ternary")
    before = weights_of(model, names)
    kept = {name: Signs(before[name], options.scale, options.granularity, options.clip) for name in names}
    if options.progressive and options.aware is not None:
        notes = _progressively(model, kept, options.aware, context)
    else:
        notes = _put(model, kept, options.aware, context)
    line = described(model, before, f"±b for each {options.granularity}")
    return report_stage("quantize/binary", model, options, [line, *notes, NOT_FASTER])


def _put(
    model: torch.nn.Module, kept: Mapping[str, Any], aware: Retrain | None, context: StageContext
) -> list[str]:  # fmt: skip
    """Constrain the modules, now or after training."""
    if aware is not None:
        return train_aware(model, kept, aware, context)
    for name, constraint in kept.items():
        constrain(model, name, constraint)
        constraint.freeze()
        drop_mapped()  # a walk leaves a large model's weights in a file: not all of them have to be looked at together
    return []


def train_aware(
    model: torch.nn.Module, kept: Mapping[str, Any], aware: Retrain, context: StageContext, part: str = "aware"
) -> list[str]:
    """Train with the constraints in the forward pass and latent weights behind them; at the end they hold, frozen.

    Args:
        kept: module name → its constraint.
        aware: how to train.
        context: gives training texts and the teacher.
        part: names the training's own checkpoint.
    Returns: notes.
    """
    for name, constraint in kept.items():
        constrain(model, name, constraint, project=False)
    done = train(model, aware, context.part(part))
    for constraint in kept.values():
        constraint.freeze()
    losses = ", ".join(f"{loss:.4f}" for loss in done.losses)
    return [f"trained with rounded weights for {done.steps} steps; loss of each epoch: {losses}"]


def _progressively(
    model: torch.nn.Module, kept: Mapping[str, Any], aware: Retrain, context: StageContext
) -> list[str]:  # fmt: skip
    """One epoch for each transformer layer, the last first, in which it and those behind it are signs; then `aware`.

    What still is floating point makes up for the layers behind it, which learn from hidden states that are not yet noise.
    Each training ends with its layers baked; the next one takes the signs' latent weights up at ±b.
    """
    import dataclasses

    from archiver.compression.walk.walk import by_layer

    groups = [group for _, group in by_layer(model, list(kept))][::-1]
    one = dataclasses.replace(aware, epochs=1, patience=None)
    notes: list[str] = []
    for index, group in enumerate(groups):
        last = index == len(groups) - 1
        context.say(f"    {len(group)} more layers become signs ({index + 1} of {len(groups)})")
        found = train_aware(
            model, {name: kept[name] for name in group}, aware if last else one, context, f"aware-{index}"
        )  # fmt: skip
        notes += found
    return notes


def weights_of(model: torch.nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    """Copies of the weights of some modules, by name."""
    return {name: model.get_submodule(name).get_parameter("weight").detach().clone() for name in names}


def described(model: torch.nn.Module, before: Mapping[str, Tensor], what: str) -> str:
    """A sentence on how many weights became what, and how far they moved.

    Args:
        before: module name → its weight before. what: what the weights are now.
    """
    count = sum(weight.numel() for weight in before.values())
    return f"{len(before)} modules, {count} weights: {what}; {ratio_of(moved_since(model, before))}"


def moved_since(model: torch.nn.Module, before: Mapping[str, Tensor]) -> Tensor:
    """[2] float64, Σ‖w‖² before and Σ‖w' − w‖²."""
    weights = {name: model.get_submodule(name).get_parameter("weight").detach() for name in before}
    return sum(
        (moved_by(before[name], weight) for name, weight in weights.items()), torch.zeros(2, dtype=torch.float64)
    )


def ratio_of(moved: Tensor) -> str:
    """The signal-to-noise ratio in dB of weights that were moved: [2], Σ‖w‖² and Σ‖w' − w‖²."""
    signal, noise = moved.tolist()
    return f"SQNR {10 * math.log10(signal / noise):.1f} dB" if signal and noise else "SQNR nothing lost"
