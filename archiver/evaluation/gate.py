"""The gate: every bound of the recipe against what was measured. One that is missed, or not measurable: no archive."""

from collections.abc import Mapping

from archiver.errors import GateFailed
from archiver.spec import GateSpec

# Metrics are rounded to six digits; a bound met exactly must not fail by the seventh.
SLACK = 5e-7


def missed_bounds(
    gate: GateSpec,
    original: Mapping[str, float],
    compressed: Mapping[str, float],
    *,
    speedup: float | None = None,
    archive_bytes: int | None = None,
) -> list[str]:
    """A sentence for each bound that is missed or cannot be measured; empty when the gate is passed.

    speedup, archive_bytes: None while they are not known yet: their bounds are then not looked at.
    """
    missed = []
    for kind, bounds in (("max_drop", gate.max_drop), ("max_increase", gate.max_increase), ("min", gate.min)):
        for name, bound in bounds.items():
            if name not in compressed or name not in original:
                missed.append(
                    f"{kind}.{name}: could not be measured on the validation data; labels or pairs are missing"
                )
                continue
            before, after = original[name], compressed[name]
            value = {"max_drop": before - after, "max_increase": _increase(before, after), "min": after}[kind]
            # Written so that a NaN, which is neither above nor below anything, does not pass.
            if not (value >= bound - SLACK if kind == "min" else value <= bound + SLACK):
                change = f"{name} is {after:.6g}, the original has {before:.6g}"
                missed.append(f"{kind}.{name}: {value:.6g} measured, {bound} allowed ({change})")
    if gate.min_speedup is not None and speedup is not None and not speedup >= gate.min_speedup:
        missed.append(f"min_speedup: {speedup:.2f} × PyTorch eager fp32 measured, {gate.min_speedup:g} × asked for")
    if gate.max_size_mb is not None and archive_bytes is not None and archive_bytes > gate.max_size_mb * 1e6:
        missed.append(f"max_size_mb: the archive has {archive_bytes / 1e6:.2f} MB, {gate.max_size_mb:g} allowed")
    return missed


def require_passed(name: str, missed: list[str]) -> None:
    """Raise GateFailed with every missed bound."""
    if missed:
        count = "one bound" if len(missed) == 1 else f"{len(missed)} bounds"
        raise GateFailed(f"{name}: the gate is not passed, {count} missed; no archive was written", missed)


def _increase(before: float, after: float) -> float:
    return (after - before) / before if before else float("inf") if after > 0 else 0.0
