"""Which runtime an archive is for: the one the recipe names, or the first that passes unless a later one is faster.

A recipe that names several gets all of them, and the worker chooses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from archiver.errors import DataError, GateFailed, UnsupportedModelError
from archiver.evaluation.gate import missed_bounds
from archiver.evaluation.speed import Speed
from archiver.pipeline.forecast import served_step
from archiver.pipeline.staging import Staged, join_archives, stage_archive
from archiver.progress import Progress
from archiver.runtimes import RUNTIMES, Runtime, serves_adapters, serving_runtimes
from archiver.spec import Recipe
from archiver.state.plan import plan_of
from archiver.tasks.workload import Workload
from handlers.cpu import BF16_ISA, host_isa

# A runtime further down the list is taken when it is at least this much faster here.
FASTER = 1.10


@dataclass
class Choice:
    """The archive that was chosen, its speed, and why each other runtime was not taken.

    rates: what each runtime that passed answers a second as it is served; empty where only one did.
    speeds: of an archive of several runtimes each one's, of which `speed` is the fastest as it is served.
    """

    staged: Staged
    speed: Speed
    rejected: dict[str, str] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)
    speeds: Mapping[str, Speed] = field(default_factory=dict)


def choose(workload: Workload, folder: Path, progress: Progress) -> Choice:
    """Stage, measure and time the runtimes that come into question.

    Args:
        folder: where each is staged, in a folder of its own.
    Raises: GateFailed with every missed bound; UnsupportedModelError where no runtime can take the model.
    """
    workload.park(folder)
    if workload.recipe.serve.runtimes:
        return _all_named(workload, folder, progress)
    candidates = _candidates(workload)
    rejected: dict[str, str] = {}
    passed: dict[str, Choice] = {}
    failures: list[str] = []
    for name, (runtime, workload.precision) in candidates.items():
        if runtime.fallback and any(choice.speed.speedup > 1 / FASTER for choice in passed.values()):
            rejected[name] = "computes in fp32 like the original, and another runtime is as fast or faster"
            continue
        try:
            staged, speed = _staged(workload, runtime, name, folder, progress)
        except UnsupportedModelError as error:
            if len(candidates) == 1:
                raise
            rejected[name] = str(error)
            progress.say(f"  {name}: {error}")
            continue
        except DataError as error:  # the compressed model's answers are no numbers: nothing about it can be measured
            failures.append(f"{name}: {error}")
            rejected[name] = str(error)
            continue
        missed = _missed(workload, staged, speed)
        if missed:
            failures += [f"{name}: {sentence}" for sentence in missed]
            rejected[name] = "; ".join(missed)
        else:
            passed[name] = Choice(staged, speed)
    if not passed and not failures:
        reasons = [f"{name}: {reason}" for name, reason in rejected.items()]
        raise UnsupportedModelError(f"{workload.recipe.name}: no runtime can take this model", reasons)
    if not passed:
        raise GateFailed(f"{workload.recipe.name}: the gate is not passed, and no archive was written", failures)
    best = _fastest(workload, passed, rejected, folder, progress)
    best.rejected = rejected
    return best


def _staged(workload: Workload, runtime: Runtime, name: str, folder: Path, progress: Progress) -> tuple[Staged, Speed]:
    with progress.step(f"{name}: write, load, measure"):
        staged = stage_archive(workload, runtime, folder / name.replace(" ", "-"))
    with progress.step(f"{name}: time against PyTorch eager fp32"):
        return staged, workload.speed(staged.handler)


def _all_named(workload: Workload, folder: Path, progress: Progress) -> Choice:
    """An archive of all of `serve.runtimes`. Each has to keep the bounds, the fastest here that of speed."""
    made: dict[str, tuple[Staged, Speed]] = {}
    failures: list[str] = []
    for name in workload.recipe.serve.runtimes:
        try:
            made[name] = _staged(workload, RUNTIMES[name], name, folder, progress)
        except DataError as error:
            failures.append(f"{name}: {error}")
            continue
        failures += [f"{name}: {sentence}" for sentence in _missed(workload, made[name][0], None)]
    if not failures:
        with progress.step(served_step(made)):
            rates = workload.served_rates({name: (one.handler, one.folder) for name, (one, _) in made.items()}, folder)
        best = max(rates, key=lambda name: rates[name])
        staged, speed = made[best]
        failures += [f"{best}: {sentence}" for sentence in _missed(workload, staged, speed)]
    if failures:
        raise GateFailed(f"{workload.recipe.name}: the gate is not passed, and no archive was written", failures)
    joined = join_archives(workload, [one for one, _ in made.values()], folder / "joined")
    return Choice(joined, speed, rates=rates, speeds={name: one for name, (_, one) in made.items()})


def _fastest(
    workload: Workload, passed: dict[str, Choice], rejected: dict[str, str], folder: Path, progress: Progress
) -> Choice:
    """The first, unless a later one is FASTER: by what their workers answer side by side, where that can be measured."""
    name, *others = passed
    if not others:
        return passed[name]
    with progress.step(served_step(passed)):
        archives = {one: (choice.staged.handler, choice.staged.folder) for one, choice in passed.items()}
        rates = workload.served_rates(archives, folder)
    rates = rates or {one: choice.speed.compressed_per_s for one, choice in passed.items()}
    for one in others:
        if rates[one] >= FASTER * rates[name]:
            rejected[name] = f"{one} is at least {FASTER - 1:.0%} faster here: {_rates(rates, one, name)}"
            name = one
        else:
            rejected[one] = f"not {FASTER - 1:.0%} faster than {name} here: {_rates(rates, one, name)}"
    passed[name].rates = rates
    return passed[name]


def _candidates(workload: Workload) -> dict[str, tuple[Runtime, str]]:
    """What to try: a name → the runtime and its precision."""
    serve = workload.recipe.serve
    if serve.precision == "bf16":
        return {"openvino bf16": (RUNTIMES["openvino"], "bf16")}
    if serve.runtime != "auto":
        runtimes = [RUNTIMES[serve.runtime]]
    else:
        runtimes = [one for one in serving_runtimes(workload.task.execution, serve.device) if one.automatic]
    if serve.adapters:
        runtimes = [one for one in runtimes if serves_adapters(one, workload.task.execution)]
    found = {one.name: (one, "f32") for one in runtimes}
    # Beside int8 products it won nothing: 1 401 to 1 745 against 1 403 to 1 537 sentences a second, at 0.4 points less.
    if (
        serve.precision == "auto"
        and plan_of(workload.model) is None
        and "openvino" in found
        and BF16_ISA & set(host_isa())
    ):
        found["openvino bf16"] = (RUNTIMES["openvino"], "bf16")
    return found


def bounds_missed(
    recipe: Recipe,
    original: dict[str, float],
    compressed: dict[str, float],
    *,
    speedup: float | None = None,
    archive_bytes: int | None = None,
) -> list[str]:
    """What the gate and the quantize stages' own bounds say of an archive, one sentence a missed bound."""
    missed = []
    for label, bounds in recipe.final_bounds:
        lines = missed_bounds(bounds, original, compressed, speedup=speedup, archive_bytes=archive_bytes)
        missed += [f"{label}: {line}" if label else line for line in lines]
    return missed


def _missed(workload: Workload, staged: Staged, speed: Speed | None) -> list[str]:
    """Bounds that are not kept; without a speed all but those of speed."""
    speedup = speed.speedup if speed is not None else None
    missed = bounds_missed(workload.recipe, staged.found.original, staged.found.metrics, speedup=speedup)
    tolerance = staged.handler.serving["tolerance"]
    if staged.batch_difference > tolerance:
        missed.append(
            f"an answer in a batch differs from the same one alone by {staged.batch_difference:.3g}, {tolerance:g} allowed"
        )
    return missed


def _rates(rates: Mapping[str, float], one: str, other: str) -> str:
    return f"{rates[one]:.0f} against {rates[other]:.0f} a second"
