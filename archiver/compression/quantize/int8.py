"""Post-training quantization to 8 bits: which modules, and for static activations the ranges they were seen in.

A stage leaves the model's weights as they are and sets a QuantizationPlan (`model.quantization`); the exporter of the
chosen runtime writes the integers, since each runtime has its own way to hold them. What is the same in all of them:
weights symmetric per output channel, w ≈ s·q with s = max|w|/127 (Jacob et al. 2018, arXiv:1712.05877, § 3).
"""

from collections.abc import Sequence
from typing import Any

import torch

from archiver.compression.calibration import require_seen, watched_inputs
from archiver.compression.context import Batch, StageContext, inputs_of
from archiver.compression.modules import select_modules
from archiver.compression.report import StageReport, report_stage
from archiver.compression.roles import roles_of
from archiver.state.plan import QuantizationPlan, plan_of


def dynamic_int8(model: torch.nn.Module, options: Any, context: StageContext) -> StageReport:
    """Plan int8 weights, and activations quantized at run time with a scale per token, so that an answer does not depend
    on the other texts of its batch.

    Args:
        model: its linear layers and tables are what `targets` chooses from.
        options: `targets` and `ignore`.
        context: not looked at.
    Returns: the report; the plan is on the model.
    Raises: RecipeError when `targets` and `ignore` do not fit the model.
    """
    return _plan(model, options, "dynamic-int8")


def weight_only(model: torch.nn.Module, options: Any, context: StageContext) -> StageReport:
    """Plan int8 weights, and activations as the runtime computes them: fp32, or 8 bits in small groups where it can.

    Args:
        model: its linear layers and tables are what `targets` chooses from.
        options: `targets` (None: all) and `ignore`.
        context: not looked at.
    Returns: the report; the plan is on the model.
    Raises: RecipeError when `targets` and `ignore` do not fit the model.
    """
    return _plan(model, options, "weight-only")


def static_int8(model: torch.nn.Module, options: Any, context: StageContext) -> StageReport:
    """Plan int8 weights, and activations of 8 bits with ranges measured on calibration texts.

    Args:
        model: its linear layers, tables and convolutions are what `targets` chooses from.
        options: `targets`, `ignore`, and `samples`: how many calibration texts.
        context: gives the texts.
    Returns: the report; the plan with its ranges is on the model.
    Raises: RecipeError when `targets` and `ignore` do not fit the model, or a layer is not reached by any text.
    """
    report = _plan(model, options, "static-int8")
    plan = plan_of(model)
    assert plan is not None
    plan.calibration = context.calibrate(options.samples)
    plan.ranges = activation_ranges(model, plan.linears, plan.calibration, context.module)
    return report


def activation_ranges(
    model: torch.nn.Module, names: Sequence[str], batches: Sequence[Batch], module: torch.nn.Module | None = None
) -> dict[str, tuple[float, float]]:
    """The extremes of each module's input in each batch, averaged over the batches.

    The average depends less on a single unusual text than the extreme of all texts; what lies outside is clipped. Zero
    always lies inside, so that padding and dropped values stay exact.

    Args:
        names: of the modules.
        batches: inputs by name. module: what takes them: the model within what makes its answer; None: the model itself.
    Returns: name → (low ≤ 0, high ≥ 0).
    Raises: RecipeError when a module is never reached.
    """
    sums: dict[str, list[float]] = {name: [0.0, 0.0] for name in names}
    seen = dict.fromkeys(names, 0)

    def see(name: str, x: torch.Tensor) -> None:
        sums[name][0] += min(0.0, x.min().item())
        sums[name][1] += max(0.0, x.max().item())
        seen[name] += 1

    taking = model if module is None else module
    with watched_inputs(model, names, see), torch.inference_mode():
        for batch in batches:
            taking(**inputs_of(batch, taking))
    require_seen(names, lambda name: seen[name] > 0, "static-int8")
    return {name: (low / seen[name], high / seen[name]) for name, (low, high) in sums.items()}


def affine_uint8(low: float, high: float) -> tuple[float, int]:
    """Scale and zero point that map a range onto 0 … 255: x ≈ scale·(q − zero_point), exact for zero.

    Args:
        low, high: low ≤ 0 ≤ high.
    Returns: (scale > 0, zero_point in 0 … 255).
    Source: Jacob et al. 2018, arXiv:1712.05877, eq. 1.
    """
    scale = (high - low) / 255 or 1.0
    return scale, min(255, max(0, round(-low / scale)))


def _plan(model: torch.nn.Module, options: Any, kind: str) -> StageReport:
    convolutions = (torch.nn.Conv1d, torch.nn.Conv2d) if kind == "static-int8" else ()
    kinds = {
        name: type(module)
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, torch.nn.Embedding, *convolutions))
    }
    chosen = select_modules(kinds, options.targets or ("*",), options.ignore, roles_of(model))
    plan = QuantizationPlan(
        kind,
        linears=tuple(name for name in chosen if issubclass(kinds[name], torch.nn.Linear)),
        embeddings=tuple(name for name in chosen if issubclass(kinds[name], torch.nn.Embedding)),
        convolutions=tuple(name for name in chosen if issubclass(kinds[name], convolutions)),
    )
    setattr(model, "quantization", plan)  # noqa: B010 - a plain attribute; Module would have it a tensor
    return report_stage(f"quantize/{kind}", model, options)
