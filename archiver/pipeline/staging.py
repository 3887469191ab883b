"""The one skeleton of an archive: one runtime's files of the compressed model, opened by its own handler, and measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from archiver.evaluation.comparison import Comparison
from archiver.packaging.entry import make_handler
from archiver.packaging.layout import add_requirements, write_code, write_serving
from archiver.requirements import requirement
from archiver.runtimes import Runtime, Way
from archiver.tasks.workload import BATCHING, Workload
from handlers.base import TaskHandler
from handlers.cpu import container_cores
from handlers.examples import respond_fully


@dataclass
class Staged:
    """An archive that is not packed yet.

    Args:
        folder: its files. handler: opened on them.
        found: of the compressed model, through the handler, beside the original. weight_bytes: of the model's files.
        batch_difference: the largest difference between an answer given alone and the same one given in a batch.
        examples: the inputs to store with their answers.
        measured: what the export measured, for the report's timings.
    """

    runtime: Runtime
    way: Way
    folder: Path
    handler: TaskHandler[Any]
    found: Comparison
    weight_bytes: int
    batch_difference: float
    examples: list[Any]
    measured: Mapping[str, Any] = field(default_factory=dict)


def stage_archive(workload: Workload, runtime: Runtime, folder: Path) -> Staged:
    """Put `runtime`'s files into `folder`, open them with the handler that will serve them, and measure.

    Raises: UnsupportedModelError where the runtime cannot take the model; DataError where nothing can be measured.
    """
    task, recipe = workload.task, workload.recipe
    way = runtime.ways[task.execution]
    folder.mkdir(parents=True)
    write_code(
        folder,
        name=recipe.name,
        version=recipe.version,
        handler=task.handler,
        session=way.session,
        modules=[task.module] if way.carries_module else [],
        requirements=[*map(requirement, task.packages), requirement("numpy", "1.24"), *way.required()],
        config=task.server_config(recipe.serve),
    )
    workload.write_inputs(folder)
    before = _files(folder)
    exported = way.load_export()(workload, folder)
    session = {"runtime": runtime.name, "device": recipe.serve.device, **exported.session}
    weight_bytes = sum(path.stat().st_size for path in _files(folder) - before)
    serving = {
        "task": task.name,
        "session": session,
        "max_inputs": recipe.serve.max_inputs,
        **workload.serving(session),
    }
    if task.batched:
        batching = {**BATCHING, **task.batching, **exported.batching}
        batching["max_rows"] = min(batching["max_rows"], recipe.serve.batch_size)
        serving |= {"batching": batching, "max_queue": recipe.serve.max_queue}
    add_requirements(folder, [*(["safetensors"] if "weights" in session else []), *workload.serving_packages(serving)])
    write_serving(folder, serving)
    handler = make_handler(task.handler, way.session)
    handler.open(folder, threads=container_cores(), trust_files=True)
    examples, more = workload.choose_examples(handler)
    if more:
        serving |= more
        handler.serving |= more
        write_serving(folder, serving)
    found = workload.compare_served(handler, way, folder)
    difference = batch_difference(handler, workload.compared(examples))
    return Staged(runtime, way, folder, handler, found, weight_bytes, difference, examples, exported.measured)


def batch_difference(handler: TaskHandler[Any], inputs: Sequence[Any]) -> float:
    """The largest difference of an answer alone from the same answer among the others."""
    together = respond_fully(handler, inputs)
    alone = [respond_fully(handler, [item])[0] for item in inputs]
    return max((handler.compare(a, b) for a, b in zip(together, alone, strict=True)), default=0.0)


def _files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}
