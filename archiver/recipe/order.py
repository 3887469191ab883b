"""Which order of stages makes sense. Every senseless one has its reason, said before any work starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from archiver.spec import Stage

# Integers that the exporters make at the very end; until then the weights are as they were.
_PLANNED = ("static-int8", "dynamic-int8")


def order_problems(stages: Sequence[Stage | None]) -> list[tuple[int, str]]:
    """(index of the stage that stands wrong, the reason) of every pair that cannot work; None is a stage with a mistake."""
    problems = []
    for index, stage in enumerate(stages):
        if stage is None:
            continue
        for earlier in stages[:index]:
            reason = _reason(stage, earlier) if earlier is not None else None
            if reason is not None:
                problems.append((index, reason))
                break
    return problems


def _reason(stage: Stage, earlier: Stage) -> str | None:
    """Why `stage` cannot stand after `earlier`; None where it can."""
    planned = earlier.verb == "quantize" and _is_planned(earlier)
    gridded = (earlier.verb == "quantize" and not planned) or earlier.method == "codebook"
    what, before = stage.label, earlier.label
    if planned and stage.verb == "quantize":
        return f"{what} stands after {before}: quantize once, as the last stage"
    if planned:
        return f"{what} stands after {before}, which becomes integers when the graph is written: put {before} last"
    if earlier.verb == "quantize" and stage.verb == "quantize" and not _is_planned(stage):
        if _targets(stage) is None or _targets(earlier) is None:
            return (
                f"{what} stands after {before}: each weight is quantized once; give both `targets` that differ, "
                "or remove one"
            )
        return None  # whether the targets overlap is seen on the model's own modules
    if gridded and stage.verb == "retrain" and earlier.method == "weight-only" and not _aware(earlier):
        return (
            f"{what} stands after {before} without `aware`: its scales were fitted to weights that would now move; "
            f"put {what} before it, or give {before} `aware: {{…}}`"
        )
    if gridded and stage.verb == "retrain":
        return None
    if gridded and _is_planned(stage):
        return None  # the integers are made from the quantized values: compute in int8, stored as the grid says
    if gridded and (stage.verb, stage.method) == ("share", "vocabulary"):
        return f"{what} stands after {before}, whose grids belong to all rows of the table: put {what} before it"
    if gridded:
        return (
            f"{what} stands after {before}: it would move weights off the values that were just chosen; put it before"
        )
    if earlier.method in ("layers", "svd", "activation-svd") and stage.method == "structured":
        return f"{what} stands after {before}, whose parts it cannot tell apart any more: cut first, then {before}"
    if earlier.method == "vocabulary" and stage.method == "vocabulary":
        return f"{what} stands a second time: the tokens are gone already"
    if earlier.verb == "prune" and earlier.method != "structured":
        if stage.verb == "factorize":
            return f"{what} stands after {before}: factors of a sparse matrix are dense, its zeros would be lost; swap them"
        if stage.method == "binary":
            return f"{what} stands after {before}: ±b has no zero for pruned weights; use ternary, or do not prune"
        if stage.method == "layers":
            return f"{what} stands after {before}: layers with zeros in different places cannot share; share first"
        if stage.method == "structured":
            return f"{what} stands after {before}: cut whole structures first, then single weights"
    return None


def _is_planned(stage: Stage) -> bool:
    if stage.verb != "quantize":
        return False
    if stage.method in _PLANNED:
        return True
    return stage.method == "weight-only" and not getattr(stage.options, "in_place", False)


def _targets(stage: Stage) -> tuple[str, ...] | None:
    """The globs it was given; None where it works on its default."""
    targets = getattr(stage.options, "targets", None)
    return None if targets in (None, ("*",)) else targets


def _aware(stage: Stage) -> bool:
    return getattr(stage.options, "aware", None) is not None
