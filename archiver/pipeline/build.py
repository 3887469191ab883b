"""build(): a recipe in, a verified archive out. Data runs down this file once; nothing below reaches back up."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from archiver.compression.report import StageReport
from archiver.errors import DataError, GateFailed, PackagingError, UnsupportedModelError
from archiver.evaluation.gate import missed_bounds, require_passed
from archiver.evaluation.speed import Speed, compare_speed
from archiver.export.onnx import OnnxGraph, export_onnx
from archiver.host import describe_host
from archiver.packaging.layout import created_by, seal
from archiver.packaging.mar import list_files, replace_file, write_mar
from archiver.packaging.verify import verify_folder
from archiver.pipeline import check as preparation
from archiver.pipeline.stages import Compressed, compress, forget_checkpoints
from archiver.pipeline.staging import RUNTIMES, Candidate, make_candidate
from archiver.progress import Progress
from archiver.spec import GateSpec, Recipe, as_dict
from archiver.tasks.encoders import EncoderSubject
from archiver.tasks.text import generation_staging as decoder_candidate
from archiver.tasks.text.generation_workload import DecoderSubject
from archiver.tasks.workload import Subject
from handlers.base import BatchHandler
from handlers.examples import respond_fully

# A runtime further down the list is taken when it is at least this much faster here.
FASTER = 1.10


@dataclass(frozen=True)
class Built:
    """path: the archive. manifest and timings: as they lie inside."""

    path: Path
    manifest: dict[str, Any]
    timings: dict[str, Any]


def build(recipe: Recipe, model_store: Path, progress: Progress) -> Built:
    """Compress, prove and pack what `recipe` says into `model_store/NAME.mar`.

    Raises an ArchiverError before or instead of touching an existing archive: the new one takes its place only when it
    has passed the gate and answered its own examples from its own files.
    """
    with progress.step("check the recipe, the model and the data"):
        checked = preparation.check(recipe)
    with workspace(model_store) as folder:
        with progress.step("load the model, answer the validation texts"):
            subject = preparation.load(checked)
        compressed = compress(subject, progress, model_store)
        chosen, speed, rejected = choose(subject, folder, progress)
        original = subject.original_metrics
        with progress.step("pack"):
            facts = _facts(subject, compressed.reports, chosen, original)
            timings = _timings(subject.unit, speed, rejected, compressed, progress)
            if chosen.assistance is not None:
                timings["assistance"] = chosen.assistance
            manifest = seal(chosen.folder, facts, _examples(chosen), timings)
            part = folder / "archive.mar"
            write_mar(chosen.folder, part)
        require_passed(recipe.name, _missed(recipe, original, chosen.metrics, archive_bytes=part.stat().st_size))
        with progress.step("verify: load it alone, answer its examples"):
            problems = verify_folder(chosen.folder, list_files(chosen.folder))
            if problems:
                raise PackagingError("the new archive does not stand on its own; nothing was written", problems)
        target = model_store / f"{recipe.name}.mar"
        replace_file(part, target)
        forget_checkpoints(subject, model_store)
    return Built(target, manifest, timings)


def check_only(recipe: Recipe, progress: Progress) -> None:
    """`build --check`: everything that is looked at before work starts, and no work."""
    with progress.step("check the recipe, the model and the data"):
        preparation.check(recipe)


def choose(
    subject: EncoderSubject | DecoderSubject, folder: Path, progress: Progress
) -> tuple[Candidate, Speed, dict[str, str]]:
    """The runtime that the recipe names, or for `auto` the first that passes the gate unless a later one is faster.

    Returns the candidate, its speed, and for `auto` why each other runtime was not taken.
    """
    wanted = subject.recipe.serve.runtime
    names: tuple[str, ...] = RUNTIMES if wanted == "auto" else (wanted,)
    if isinstance(subject, DecoderSubject) and wanted == "auto":
        names = decoder_candidate.RUNTIMES
    if subject.recipe.serve.device == "cuda":
        names = tuple(name for name in names if name != "openvino")
    before = subject.original_metrics
    graph: OnnxGraph | None = None
    rejected: dict[str, str] = {}
    best: tuple[Candidate, Speed] | None = None
    failures: list[str] = []
    for name in names:
        # torch computes the original's fp32 products: it can win only where nothing else runs or passes.
        if name == "torch" and best is not None and best[1].speedup > 1 / FASTER:
            rejected[name] = "computes in fp32 like the original, and another runtime is as fast or faster"
            continue
        try:
            if isinstance(subject, EncoderSubject) and graph is None and name != "torch":
                with progress.step("export to ONNX"):
                    graph = export_onnx(subject.module, max_length=subject.recipe.serve.max_length)
            with progress.step(f"{name}: write, load, measure"):
                if isinstance(subject, DecoderSubject):
                    candidate = decoder_candidate.make_decoder_candidate(subject, name, folder / name)
                else:
                    candidate = make_candidate(subject, graph, name, folder / name)
            with progress.step(f"{name}: time against PyTorch eager fp32"):
                if isinstance(subject, DecoderSubject):
                    speed = decoder_candidate.generation_speed(subject, candidate)
                else:
                    speed = _speed(subject, candidate)
        except UnsupportedModelError as error:
            if len(names) == 1:
                raise
            rejected[name] = str(error)
            progress.say(f"  {name}: {error}")
            continue
        except DataError as error:  # the compressed model's answers are no numbers: nothing about it can be measured
            failures.append(f"{name}: {error}")
            rejected[name] = str(error)
            continue
        missed = _missed(subject.recipe, before, candidate.metrics, speedup=speed.speedup)
        tolerance = candidate.handler.serving["tolerance"]
        if candidate.batch_difference > tolerance:
            missed.append(
                f"an answer in a batch differs from the same one alone by {candidate.batch_difference:.3g}, "
                f"{tolerance:g} allowed"
            )
        if missed:
            failures += [f"{name}: {sentence}" for sentence in missed]
            rejected[name] = "; ".join(missed)
        elif best is None:
            best = (candidate, speed)
        elif speed.compressed_per_s >= FASTER * best[1].compressed_per_s:
            rejected[best[0].runtime] = _slower(best[1], name, speed)
            best = (candidate, speed)
        else:
            rejected[name] = f"not {FASTER - 1:.0%} faster than {best[0].runtime} here: " + _rates(speed, best[1])
    if best is None and not failures:
        reasons = [f"{name}: {reason}" for name, reason in rejected.items()]
        raise UnsupportedModelError(f"{subject.recipe.name}: no runtime can take this model", reasons)
    if best is None:
        raise GateFailed(f"{subject.recipe.name}: the gate is not passed, and no archive was written", failures)
    return *best, rejected


def _speed(subject: EncoderSubject, candidate: Candidate) -> Speed:
    assert isinstance(candidate.handler, BatchHandler)
    run, mine = candidate.handler.session.run, subject.speed_batches()
    original, batches = subject.run_of(subject.original), subject.original_speed_batches()
    return compare_speed(original, run, batches, compressed_batches=mine, count=subject.items_of)


@contextmanager
def workspace(model_store: Path) -> Iterator[Path]:
    """A private folder on the model store's own disk, so that the finished archive moves in with one rename.

    It goes away at the end, also on Ctrl-C and SIGTERM; what a SIGKILL left is cleared by the next build.
    """
    model_store.mkdir(parents=True, exist_ok=True)
    hidden = model_store / ".building"
    hidden.mkdir(exist_ok=True)
    _clear_abandoned(hidden)
    folder = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=hidden))
    previous = signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGTERM, _interrupt)
    except ValueError:  # not in the main thread: signals are its caller's business
        previous = None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if not any(hidden.iterdir()):
            hidden.rmdir()
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _clear_abandoned(hidden: Path) -> None:
    """Remove the folders of builds whose process is gone."""
    for folder in hidden.iterdir():
        owner = folder.name.partition("-")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)


def _missed(
    recipe: Recipe,
    original: dict[str, float],
    compressed: dict[str, float],
    *,
    speedup: float | None = None,
    archive_bytes: int | None = None,
) -> list[str]:
    """What the gate and the quantize stages' own bounds say of a candidate."""
    gate = recipe.gate or GateSpec()
    missed = missed_bounds(gate, original, compressed, speedup=speedup, archive_bytes=archive_bytes)
    for stage in recipe.compress:
        if stage.verb == "quantize" and stage.bounds is not None:
            missed += [f"{stage.label}: {line}" for line in missed_bounds(stage.bounds, original, compressed)]
    return missed


def _rates(speed: Speed, other: Speed) -> str:
    return f"{speed.compressed_per_s:.0f} against {other.compressed_per_s:.0f} a second"


def _slower(old: Speed, name: str, new: Speed) -> str:
    return f"{name} is at least {FASTER - 1:.0%} faster here: {_rates(new, old)}"


def _facts(
    subject: Subject, stages: list[StageReport], chosen: Candidate, original: dict[str, float]
) -> dict[str, Any]:
    """marpress.json without its file list: all that must be the same when the same recipe is built again."""
    recipe = as_dict(subject.recipe)
    return {
        "name": subject.recipe.name,
        "version": subject.recipe.version,
        "task": subject.recipe.task,
        "runtime": chosen.runtime,
        "created_by": created_by(chosen.runtime, subject.recipe.task),
        "model": {"source": subject.source.source, "sha256": subject.source.sha256},
        "recipe": recipe,
        "stages": [stage.as_dict() for stage in stages],
        "size": {"original_bytes": subject.facts.weight_bytes, "weight_bytes": chosen.weight_bytes},
        "metrics": {"original": original, "compressed": chosen.metrics},
        "measured_on": {
            "source": recipe["data"].get("validation", preparation.FALLBACK_VALIDATION),
            **subject.extent,
        },
        "tolerance": {
            "allowed": chosen.handler.serving["tolerance"],
            "alone_against_in_a_batch": round(chosen.batch_difference, 6),
        },
        "gate": recipe.get("gate", {}),
    }


def _timings(
    unit: str, speed: Speed, rejected: dict[str, str], compressed: Compressed, progress: Progress
) -> dict[str, Any]:
    """timings.json: what another run or another host would measure differently."""
    return {
        "unit": unit,
        "original_per_s": round(speed.original_per_s, 1),
        "compressed_per_s": round(speed.compressed_per_s, 1),
        "speedup": round(speed.speedup, 2),
        "host": describe_host(),
        "stage_seconds": dict(progress.seconds),
        "stages": compressed.speeds,
        "other_runtimes": rejected,
    }


def _examples(chosen: Candidate) -> list[dict[str, Any]]:
    """Inputs with the answers given now."""
    answers = respond_fully(chosen.handler, chosen.examples)
    return [
        {"input": chosen.handler.input.to_stored(item), "answer": answer}
        for item, answer in zip(chosen.examples, answers, strict=True)
    ]
