"""The stages that make single weights zero: by magnitude (l1), by weight and input (wanda), with compensation (sparsegpt).

Each leaves a Mask on every targeted weight, so that later stages keep the zeros. Zeros are stored small and multiplied like
any number: nothing becomes faster.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from archiver.compression.bisect import bisect, remembered
from archiver.compression.calibration import Moments, input_moments, readers_of
from archiver.compression.context import StageContext
from archiver.compression.modules import choose_modules
from archiver.compression.prune.gradual import gradually, regrow
from archiver.compression.prune.options import L1, SparseGpt, Wanda
from archiver.compression.prune.sparsegpt import n_of_m, prune_compensated
from archiver.compression.report import StageReport, report_stage
from archiver.compression.walk.walk import walk
from archiver.errors import GateFailed, RecipeError
from archiver.state.constraints import Mask, constrain, sharing
from archiver.storage.sizes import stored_sentence

Tensor = torch.Tensor
Masks = dict[str, Tensor]

NOT_FASTER = "makes nothing faster: zeros are stored small, and multiplied like any number"
_TRIALS = 7
_RESOLUTION = 0.01


def l1(model: torch.nn.Module, options: L1, context: StageContext) -> StageReport:
    """The importance of a weight is |w|, with one threshold over all targets unless `scope` says otherwise.

    Args:
        model: changed in place.
        options: how much is pruned, and when.
        context: gives training batches, for gradual pruning and regrowth.
    Returns: the report.
    Raises: RecipeError for modules that do not fit; GateFailed when no sparsity keeps the bounds.
    """
    names = targets_of(model, options)

    def prune(sparsity: float | None) -> Masks:
        scores = {name: _weight(model, name).abs() for name in names}
        return apply(model, masks_of(scores, sparsity, options.pattern, options.scope))

    return _run("prune/l1", model, options, context, names, prune)


def wanda(model: torch.nn.Module, options: Wanda, context: StageContext) -> StageReport:
    """The importance of a weight is |w_ij|·‖x_j‖₂, see `wanda_scores`; later layers see the pruned earlier ones.

    Args:
        model: changed in place.
        options: how much is pruned, and when.
        context: gives calibration texts and training batches.
    Returns: the report.
    Raises: RecipeError for modules that do not fit; GateFailed when no sparsity keeps the bounds.
    """
    names = targets_of(model, options)

    def prune(sparsity: float | None) -> Masks:
        def visit(group: Sequence[str], moments: Mapping[str, Moments]) -> Masks:
            scores = {name: wanda_scores(_weight(model, name), moments[name].norms) for name in group}
            return apply(model, masks_of(scores, sparsity, options.pattern, options.scope))

        if options.scope == "global":  # one threshold for all needs every score at once
            return visit(names, input_moments(model, names, context, options.samples))
        return walk(model, names, context, options.samples, visit, method="wanda", key=str(sparsity))

    return _run("prune/wanda", model, options, context, names, prune)


def sparsegpt(model: torch.nn.Module, options: SparseGpt, context: StageContext) -> StageReport:
    """Prune layer by layer with compensation, see `prune_compensated`.

    Args:
        model: changed in place.
        options: how much is pruned, and when.
        context: gives calibration texts and training batches.
    Returns: the report.
    Raises: RecipeError for modules that do not fit; GateFailed when no sparsity keeps the bounds.
    """
    names = targets_of(model, options)

    def prune(sparsity: float | None) -> Masks:
        def visit(group: Sequence[str], moments: Mapping[str, Moments]) -> Masks:
            masks: Masks = {}
            for name in group:
                weight, mask = prune_compensated(
                    _weight(model, name),
                    moments[name].gram,
                    sparsity=sparsity if options.pattern is None else None,
                    n_m=options.pattern,
                    by_row=options.scope == "row",
                    damping=options.damping,
                    block=options.block,
                )
                with torch.no_grad():
                    _weight(model, name).copy_(weight)
                masks[name] = mask
            return masks

        return walk(model, names, context, options.samples, visit, method="sparsegpt", key=str(sparsity))

    return _run("prune/sparsegpt", model, options, context, names, prune)


def wanda_scores(weight: Tensor, norms: Tensor) -> Tensor:
    """S_ij = |W_ij|·‖X_j‖₂.

    Args:
        weight: [out, in].
        norms: [in], of each input feature over all calibration tokens.
    Returns: [out, in].
    Source: Sun et al. 2024, Wanda, arXiv:2306.11695, eq. 1.
    """
    return weight.abs() * norms.to(weight.dtype)


def check(model: torch.nn.Module, options: L1) -> list[str]:
    """Problems before any work: targets that match nothing, inputs that m does not divide, tables without inputs."""
    try:
        names = targets_of(model, options)
    except RecipeError as error:
        return [error.message, *error.problems]
    problems = []
    if options.pattern is not None:
        m = options.pattern[1]
        widths = {name: _weight(model, name).shape[1] for name in names}
        if bad := [f"{name} (in_features {width})" for name, width in widths.items() if width % m]:
            problems.append(f"n_m {options.n_m}: {m} does not divide {', '.join(bad)}: add them to `ignore`")
    tables = [name for name in names if not readers_of(model, name)]
    if isinstance(options, Wanda) and tables:
        problems.append(
            f"{', '.join(tables)} is looked up, and has no inputs to score by: use l1, or leave it out of targets"
        )
    return problems


def targets_of(model: torch.nn.Module, options: L1) -> list[str]:
    """The modules whose weights are pruned, one name for each weight.

    Raises: RecipeError as `choose_modules`.
    """
    found: list[str] = []
    taken: set[str] = set()
    for name in choose_modules(model, options.targets, options.ignore):
        if name not in taken:
            found.append(name)
            taken.update(sharing(model, name))
    return found


def masks_of(scores: Mapping[str, Tensor], sparsity: float | None, n_m: tuple[int, int] | None, scope: str) -> Masks:
    """The masks that keep the highest scores.

    Args:
        scores: module name → [rows, columns].
        sparsity: exactly round(sparsity·count) of the lowest scores go, as torch.nn.utils.prune.global_unstructured counts
            them.
        n_m: (n, m): n of every m stay, and sparsity is not looked at.
        scope: what sparsity is counted over: all scores ("global"), each matrix ("layer") or each "row".
    Returns: module name → bool [rows, columns], True where a weight stays.
    """
    if n_m is not None:
        return {name: n_of_m(score, n_m) for name, score in scores.items()}
    assert sparsity is not None
    if scope == "global":
        every = torch.cat([score.flatten() for score in scores.values()])
        mask = _without_lowest(every[None], round(sparsity * every.numel()))[0]
        parts = mask.split([score.numel() for score in scores.values()])
        return {name: part.view(score.shape) for (name, score), part in zip(scores.items(), parts, strict=True)}
    if scope == "layer":
        return {
            name: _without_lowest(score.reshape(1, -1), round(sparsity * score.numel())).view(score.shape)
            for name, score in scores.items()
        }
    return {name: _without_lowest(score, round(sparsity * score.shape[1])) for name, score in scores.items()}


def _without_lowest(scores: Tensor, count: int) -> Tensor:
    mask = torch.ones_like(scores, dtype=torch.bool)
    return mask.scatter(1, scores.topk(count, dim=1, largest=False).indices, False) if count else mask


def apply(model: torch.nn.Module, masks: Mapping[str, Tensor]) -> Masks:
    """Put zeros into the weights where the masks are False; a product would leave −0 in place of negative weights.

    Returns: the masks.
    """
    with torch.no_grad():
        for name, mask in masks.items():
            _weight(model, name).masked_fill_(~mask, 0.0)
    return dict(masks)


def _run(
    method: str,
    model: torch.nn.Module,
    options: L1,
    context: StageContext,
    names: list[str],
    prune: Callable[[float | None], Masks],
) -> StageReport:
    """Find the sparsity where it is left open, prune at once or gradually, regrow, leave the masks, count."""
    notes = []
    sparsity = options.sparsity
    if sparsity is None and options.pattern is None:
        sparsity = search(model, names, prune, context)
        notes.append(f"sparsity {sparsity:.3f} is the highest found that keeps the stage's bounds")
    if options.schedule == "gradual":
        assert sparsity is not None
        masks = gradually(model, prune, sparsity, options, context)
    else:
        masks = prune(sparsity)
    if options.regrow:
        masks, line = regrow(model, masks, options, context)
        notes.append(line)
    else:
        leave(model, masks, options.pattern)
    zeros = sum(int((_weight(model, name) == 0).sum()) for name in names)
    total = sum(_weight(model, name).numel() for name in names)
    counted = f"{zeros} of {total} weights in {len(names)} modules are zero, {zeros / total:.4%}"
    notes.insert(0, f"{counted}; {stored_sentence(model, names)}")
    return report_stage(method, model, options, [*notes, NOT_FASTER])


def leave(model: torch.nn.Module, masks: Mapping[str, Tensor], n_m: tuple[int, int] | None = None) -> None:
    """Constrain the weights to their masks."""
    for name, mask in masks.items():
        constrain(model, name, Mask(mask, n_m))


def search(
    model: torch.nn.Module, names: list[str], prune: Callable[[float | None], Masks], context: StageContext
) -> float:
    """The highest sparsity, to 1 %, that keeps the stage's bounds on validation; the weights end as they were.

    Args:
        names: of the modules that are pruned.
        prune: prunes to a sparsity, in place.
        context: measures.
    Returns: 0 < sparsity < 1.
    Raises: GateFailed when not even 1 % keeps the bounds.
    """
    before = {name: _weight(model, name).clone() for name in names}

    def restore() -> None:
        with torch.no_grad():
            for name, weight in before.items():
                _weight(model, name).copy_(weight)

    def passes(sparsity: float) -> bool:
        prune(sparsity)
        kept = context.passes()
        restore()
        context.say(f"    sparsity {sparsity:.3f}: the bound is {'kept' if kept else 'missed'}")
        return kept

    def between(good: float, bad: float) -> float | None:
        return (good + bad) / 2 if bad - good > _RESOLUTION else None

    good, bad = bisect(0.0, 1.0, between, remembered(passes, context.checkpoint), _TRIALS)
    if not good:
        raise GateFailed(
            f"no sparsity down to {bad:.3f} keeps the stage's bounds: allow more loss, or remove the stage"
        )
    return good


def _weight(model: torch.nn.Module, name: str) -> Tensor:
    return model.get_submodule(name).get_parameter("weight").detach()
