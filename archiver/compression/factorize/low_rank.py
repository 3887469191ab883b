"""The stage `factorize`: linear layers and embedding tables as products of two thin matrices.

Executed factored, a layer becomes a FactoredLinear; recombined, it stays dense with the nearest weight of
that rank, is stored as two factors, and later training moves those (LowRank). Layers that share a weight keep sharing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from archiver.compression.bisect import bisect, remembered
from archiver.compression.calibration import input_moments, watched_inputs
from archiver.compression.context import StageContext, calibration_forward
from archiver.compression.factorize.constraint import LowRank
from archiver.compression.factorize.low_rank_math import (
    Decomposition,
    decompose,
    decompose_on,
    decompose_rows,
    rank_for_energy,
    saves,
)
from archiver.compression.factorize.options import ActivationSvd, Svd
from archiver.compression.factorize.targets import ALONE, FACTORED, RECOMBINED, Target, is_table, targets_of
from archiver.compression.report import StageReport, report_stage
from archiver.state.constraints import constrain, free, state_of
from handlers.architecture.factored import FactoredEmbedding, FactoredLinear, factored_like, put

Tensor = torch.Tensor

_TRIALS = 8
_LEAST_DROPPED = 1e-4  # a search for the energy ends here: less than this share dropped is not worth two factors


@dataclass
class _Split:
    """A target with its decomposition and the rank that was chosen."""

    target: Target
    parts: Decomposition
    rank: int = field(default=0)


def svd(model: torch.nn.Module, options: Svd, context: StageContext) -> StageReport:
    """W ≈ U·diag(d)·Vᵀ, nearest in ‖W − W'‖_F.

    Args:
        model: changed in place.
        options: modules, and how much is kept.
        context: measures, where the energy is searched.
    Returns: the report.
    Raises: RecipeError for modules that do not fit.
    Source: Eckart & Young 1936.
    """
    targets = targets_of(model, options)
    splits = [_Split(target, decompose(_weight(model, target))) for target in targets]
    return _factorize("factorize/svd", model, options, context, splits)


def activation_svd(model: torch.nn.Module, options: ActivationSvd, context: StageContext) -> StageReport:
    """W ≈ A·Bᵀ, nearest in ‖X·(W − W')ᵀ‖_F on calibration inputs X.

    Args:
        model: changed in place.
        options: modules, how much is kept, number of calibration texts.
        context: gives calibration texts, and measures.
    Returns: the report.
    Raises: RecipeError for modules that do not fit, or that no text reaches.
    Source: Wang et al., SVD-LLM, arXiv:2403.07378.
    """
    targets = targets_of(model, options)
    linears = [target.names[0] for target in targets if not target.table]
    tables = [name for target in targets if target.table for name in target.names if is_table(model, name)]
    moments = input_moments(model, linears, context, options.samples) if linears else {}
    counts = _row_counts(model, tables, context, options.samples) if tables else {}
    splits = []
    for target in targets:
        weight = _weight(model, target)
        if target.table:
            parts = decompose_rows(weight, torch.stack([counts[n] for n in target.names if n in counts]).sum(0))
        else:
            parts = decompose_on(weight, moments[target.names[0]].gram)
        splits.append(_Split(target, parts))
    return _factorize("factorize/activation-svd", model, options, context, splits)


def _factorize(
    method: str, model: torch.nn.Module, options: Svd, context: StageContext, splits: Sequence[_Split]
) -> StageReport:
    notes = []
    searched = options.rank is None and options.ratio is None and options.energy is None
    if searched:
        notes.append(_search(model, options, context, splits))
    else:
        for split in splits:
            rank = split.target.rank(options)
            split.rank = rank if rank is not None else rank_for_energy(split.parts.d, options.energy or 1.0)
    done = {FACTORED: 0, RECOMBINED: 0, ALONE: 0}
    for split in splits:
        how = split.target.execution(options.execute, split.rank)
        done[how] += 1
        if how == FACTORED:
            _put_factors(model, split)
        elif how == RECOMBINED:
            _put_product(model, split)
        notes.append(_say(split, how, on_inputs=isinstance(options, ActivationSvd)))
    if done[RECOMBINED]:
        notes.append(
            f"{done[RECOMBINED]} recombined: stored as two factors and computed as dense layers, which makes nothing faster"
        )
    slower = [
        split.target.names[0]
        for split in splits
        if split.target.execution(options.execute, split.rank) == FACTORED
        and not saves(split.target.rows, split.target.columns, split.rank)
    ]
    if slower:
        notes.append(f"factored at more multiplications than the dense layer needs: {', '.join(slower)}")
    return report_stage(method, model, options, notes)


def _search(model: torch.nn.Module, options: Svd, context: StageContext, splits: Sequence[_Split]) -> str:
    """Find the least energy, one for all layers, that keeps the stage's bounds: bisection over the logarithm of what is
    dropped. Sets every split's rank; the weights are as before at the end."""
    before = [_weight(model, split.target).clone() for split in splits]

    def attempt(dropped: float) -> bool:
        _set_energy(splits, 1 - dropped)
        with torch.no_grad():
            for split, weight in zip(splits, before, strict=True):
                if split.target.execution(options.execute, split.rank) != ALONE:
                    a, b = split.parts.pair(split.rank)
                    weight = a @ b.T
                _weight(model, split.target).copy_(weight)
        passes = context.passes()
        context.say(f"    energy {1 - dropped:.4f}: the bound is {'kept' if passes else 'missed'}")
        return passes

    def between(good: float, bad: float) -> float | None:
        dropped = (max(good, _LEAST_DROPPED) * bad) ** 0.5 if good or bad < 1.0 else 0.1
        return dropped if dropped > _LEAST_DROPPED * 1.05 else None

    good, _ = bisect(0.0, 1.0, between, remembered(attempt, context.checkpoint), _TRIALS)
    with torch.no_grad():
        for split, weight in zip(splits, before, strict=True):
            _weight(model, split.target).copy_(weight)
    _set_energy(splits, 1 - good)
    if not good:
        return f"no energy up to {1 - _LEAST_DROPPED} keeps the stage's bounds: every layer is left alone"
    return f"energy {1 - good:.4f} in each layer is the least found that keeps the stage's bounds"


def _set_energy(splits: Sequence[_Split], energy: float) -> None:
    for split in splits:
        split.rank = rank_for_energy(split.parts.d, energy) if energy < 1 else split.target.full_rank


def _put_factors(model: torch.nn.Module, split: _Split) -> None:
    """Two thin layers in the place of each name, of the same two Parameters."""
    a, b = split.parts.pair(split.rank)
    first: torch.nn.Module | None = None
    for name in split.target.names:
        made = factored_like(model.get_submodule(name), split.rank, name)
        pair = _factors_of(made)
        if first is None:
            with torch.no_grad():
                pair[0].weight.copy_(a)
                pair[1].weight.copy_(b if isinstance(made, FactoredEmbedding) else b.T)
            first = made
        else:
            for layer, shared in zip(pair, _factors_of(first), strict=True):
                layer.weight = shared.weight
        free(model, name)
        put(model, name, made)


def _factors_of(made: torch.nn.Module) -> tuple[torch.nn.Linear | torch.nn.Embedding, torch.nn.Linear]:
    """(the layer that holds A [rows, rank], the one that holds B: [columns, rank] for a table, transposed for a linear)."""
    if isinstance(made, FactoredEmbedding):
        return made.rows, made.projection
    assert isinstance(made, FactoredLinear)
    return made.u, made.v


def _put_product(model: torch.nn.Module, split: _Split) -> None:
    """A·Bᵀ in the dense weight, its factors kept for storage; later training moves the factors."""
    constraint = LowRank(*split.parts.pair(split.rank))
    for name in split.target.names:
        free(model, name)
    constrain(model, split.target.names[0], constraint)
    # The Parameters themselves: what training makes of the factors is what storage finds.
    for name in split.target.names:
        state_of(model).factors[name] = (constraint.a, constraint.b)


def _say(split: _Split, how: str, *, on_inputs: bool) -> str:
    target, parts, rank = split.target, split.parts, split.rank
    what = " = ".join(target.names)
    if how == ALONE:
        why = "full rank" if rank >= target.full_rank else "as many multiplications as the dense layer, or more"
        return f"{what}: left alone, rank {rank} of {target.full_rank} is {why}"
    where = "on calibration inputs" if on_inputs else "of the weight"
    return (
        f"{what}: rank {rank} of {target.full_rank}, {how}, {parts.kept(rank):.2%} of the energy kept, "
        f"relative error {where} {parts.error(rank):.3f}"
    )


def _weight(model: torch.nn.Module, target: Target) -> Tensor:
    return model.get_submodule(target.names[0]).get_parameter("weight").detach()


def _row_counts(model: torch.nn.Module, names: Sequence[str], context: StageContext, samples: int) -> dict[str, Tensor]:
    """How often each row of the tables `names` is looked up in the calibration texts, [num_embeddings] each."""
    counts = {name: torch.zeros(model.get_submodule(name).get_parameter("weight").shape[0]) for name in names}

    def see(name: str, ids: Tensor) -> None:
        counts[name] += torch.bincount(ids.flatten().cpu(), minlength=len(counts[name]))

    with watched_inputs(model, names, see):
        calibration_forward(context.module, context.calibrate(samples))
    return counts
