"""The order of stages: every method declares what it leaves and what it refuses, and each pair is checked."""

from __future__ import annotations

from collections.abc import Sequence

from archiver.spec import Stage


def order_problems(stages: Sequence[Stage | None]) -> list[tuple[int, str]]:
    """Every stage that stands wrong, once.

    Args:
        stages: in the recipe's order; None is a stage that has a mistake of its own, which is passed over.
    Returns: (index of the stage, why it cannot stand after an earlier one) of each.
    """
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
    effect = earlier.entry.effect(earlier.options)
    refusal = stage.entry.refusals(stage.options).get(effect) if effect is not None else None
    if refusal is None:
        return None
    if refusal.unless_targets and _targets(stage) is not None and _targets(earlier) is not None:
        return None
    return refusal.reason.format(stage=stage.label, earlier=earlier.label)


def _targets(stage: Stage) -> tuple[str, ...] | None:
    """The globs it was given; None where it works on its default."""
    targets: tuple[str, ...] | None = getattr(stage.options, "targets", None)
    return None if targets in (None, ("*",)) else targets
