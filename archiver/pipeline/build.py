"""build(): a recipe in, a verified archive out. Data runs down this file once; nothing below reaches back up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archiver.compression.report import StageReport
from archiver.errors import PackagingError
from archiver.evaluation.gate import require_passed
from archiver.host import describe_host, peak_memory
from archiver.packaging.layout import created_by, seal, write_timings
from archiver.packaging.mar import list_files, replace_file, write_mar
from archiver.packaging.verify import Verified, verify_folder
from archiver.pipeline.check import check
from archiver.pipeline.choose import Choice, bounds_missed, choose
from archiver.pipeline.forecast import LOAD, PACK, VERIFY, forecast, require_room
from archiver.pipeline.new_model import start_of
from archiver.pipeline.stages import Compressed, compress, forget_checkpoints
from archiver.pipeline.staging import Staged
from archiver.pipeline.workspace import workspace
from archiver.progress import Progress
from archiver.recipe.plain import as_dict
from archiver.spec import Recipe
from archiver.tasks.workload import Workload
from handlers.examples import respond_fully

CHECKING = "check the recipe, the model and the data"


@dataclass(frozen=True)
class Built:
    """An archive that a build has written.

    Args:
        path: the archive. manifest, timings: as they lie inside.
    """

    path: Path
    manifest: dict[str, Any]
    timings: dict[str, Any]


def build(recipe: Recipe, model_store: Path = Path("model_store"), progress: Progress | None = None) -> Built:
    """Compress, prove and pack what `recipe` says into `model_store/NAME.mar`.

    Raises: an ArchiverError before or instead of touching an existing archive: the new one takes its place only when it
        has passed the gate and answered its own examples from its own files.
    """
    progress = progress or Progress()
    with progress.step(CHECKING):
        checked = check(recipe)
    needed = forecast(checked)
    progress.say(f"  needs {needed.sentence()}, roughly")
    require_room(needed, model_store)
    progress.expected.update(needed.seconds or {})
    with workspace(model_store) as folder:
        start = start_of(checked, model_store, progress)
        with progress.step(LOAD):
            workload = start.checked.load()
        compressed = compress(workload, progress, model_store)
        choice = choose(workload, folder, progress)
        staged = choice.staged
        with progress.step(VERIFY):
            facts = _facts(workload, compressed.reports, staged)
            timings = _timings(workload, choice, compressed, progress)
            manifest = seal(staged.folder, facts, _examples(staged), timings)
            verified = verify_folder(staged.folder, list_files(staged.folder))
            if verified.problems:
                raise PackagingError(
                    "the new archive does not stand on its own; nothing was written", verified.problems
                )
        with progress.step(PACK):
            timings |= {"stage_seconds": dict(progress.seconds), "peak_memory": _peaks(verified)}
            write_timings(staged.folder, timings)
            part = folder / "archive.mar"
            write_mar(staged.folder, part)
        size = part.stat().st_size
        require_passed(
            recipe.name, bounds_missed(recipe, staged.found.original, staged.found.metrics, archive_bytes=size)
        )
        target = model_store / f"{recipe.name}.mar"
        replace_file(part, target)
        forget_checkpoints(workload, model_store)
        start.forget()
    return Built(target, manifest, timings)


def check_only(recipe: Recipe, progress: Progress | None = None) -> None:
    """`build --check`: everything that is looked at before work starts, and no work.

    Raises: RecipeError, UnsupportedModelError or DataError that lists every problem.
    """
    progress = progress or Progress()
    with progress.step(CHECKING):
        checked = check(recipe)
    progress.say(f"  its build needs {forecast(checked).sentence()}, roughly")


def _facts(workload: Workload, stages: list[StageReport], staged: Staged) -> dict[str, Any]:
    """marpress.json without its file list: all that must be the same when the same recipe is built again."""
    recipe = as_dict(workload.recipe)
    return {
        "name": workload.recipe.name,
        "version": workload.recipe.version,
        "task": workload.recipe.task,
        "runtime": staged.runtime.name,
        **({"runtimes": _part_facts(workload, staged)} if staged.parts else {}),
        "created_by": created_by([package for part in staged.parts or [staged] for package in part.way.built_with]),
        "original_dtype": workload.facts.dtype,
        "model": {"source": workload.source.source, "sha256": workload.source.sha256},
        "recipe": recipe,
        "stages": [stage.as_dict() for stage in stages],
        "size": {
            "original_bytes": workload.facts.weight_bytes,
            "weight_bytes": staged.weight_bytes,
        },
        "metrics": {"original": staged.found.original, "compressed": staged.found.metrics},
        "measured_on": {"source": recipe["data"].get("validation", workload.task.fallback), **staged.found.extent},
        **({"intervals": intervals} if (intervals := staged.found.as_dict()) else {}),
        "tolerance": {
            "allowed": staged.handler.serving["tolerance"],
            "alone_against_in_a_batch": round(staged.batch_difference, 6),
        },
        "gate": recipe.get("gate", {}),
        "max_body_bytes": staged.handler.input.max_bytes,
        **({"adapters": dict(staged.adapters)} if staged.adapters else {}),
    }


def _part_facts(workload: Workload, staged: Staged) -> list[dict[str, Any]]:
    """What an archive of several runtimes says of each of them."""
    compared = workload.compared(staged.examples)
    first = respond_fully(staged.handler, compared)
    facts = []
    for part in staged.parts:
        others = first if part.handler is staged.handler else respond_fully(part.handler, compared)
        differences = [staged.handler.compare(one, other) for one, other in zip(first, others, strict=True)]
        tolerance = {
            "allowed": part.handler.serving["tolerance"],
            "alone_against_in_a_batch": round(part.batch_difference, 6),
            "against_the_first_runtime": round(max(differences, default=0.0), 6),
        }
        name, metrics = part.runtime.name, part.found.metrics
        facts.append({"runtime": name, "weight_bytes": part.weight_bytes, "metrics": metrics, "tolerance": tolerance})
    return facts


def _examples(staged: Staged) -> list[dict[str, Any]]:
    """The inputs to store, with the answers given now; `answers` are those of the second runtime, the third, …"""
    answers = respond_fully(staged.handler, staged.examples)
    stored = map(staged.handler.input.to_stored, staged.examples)
    examples = [{"input": item, "answer": answer} for item, answer in zip(stored, answers, strict=True)]
    for part in staged.parts[1:]:
        for example, answer in zip(examples, respond_fully(part.handler, staged.examples), strict=True):
            example.setdefault("answers", {})[part.runtime.name] = answer
    for item, more in staged.adapter_examples:
        (answer,) = respond_fully(staged.handler, [item], more)
        examples.append({"input": staged.handler.input.to_stored(item), "answer": answer, "parameters": more})
    return examples


def _peaks(verified: Verified) -> dict[str, int]:
    """The most memory that the build had resident until now, and a worker that answered the examples; what is known."""
    peaks = {"build_bytes": peak_memory(), "worker_bytes": verified.worker_bytes}
    return {name: peak for name, peak in peaks.items() if peak is not None}


def _timings(workload: Workload, choice: Choice, compressed: Compressed, progress: Progress) -> dict[str, Any]:
    """timings.json: what another run or another host would measure differently."""
    return {
        "unit": workload.task.unit,
        "original_per_s": round(choice.speed.original_per_s, 1),
        "compressed_per_s": round(choice.speed.compressed_per_s, 1),
        "speedup": round(choice.speed.speedup, 2),
        "host": describe_host(workload.recipe.serve.device),
        "original_on": workload.timed_on,
        "stage_seconds": dict(progress.seconds),
        "stages": compressed.speeds,
        "other_runtimes": choice.rejected,
        **({"served_per_s": {name: round(rate, 1) for name, rate in choice.rates.items()}} if choice.rates else {}),
        **({"speedups": {name: round(one.speedup, 2) for name, one in choice.speeds.items()}} if choice.speeds else {}),
        **workload.task.timings(choice.speed),
        **choice.staged.measured,
    }
