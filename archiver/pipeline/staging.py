"""The one skeleton of an archive: one runtime's files of the compressed model, opened by its own handler, and measured.

An archive of several runtimes is made of such ones: each runtime's files lie in a folder of its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from archiver.evaluation.comparison import Comparison
from archiver.packaging.entry import make_handler
from archiver.packaging.layout import REQUIREMENTS, add_requirements, write_code, write_serving
from archiver.requirements import requirement
from archiver.runtimes import Runtime, Way
from archiver.tasks.workload import BATCHING, Workload
from handlers.base import TaskHandler
from handlers.cpu import container_cores
from handlers.examples import respond_fully

_PACKED = {"weights", "adapters"}  # keys of `session` that name packed files


@dataclass
class Staged:
    """An archive that is not packed yet.

    Args:
        folder: its files. handler: opened on them.
        found: of the compressed model, through the handler, beside the original. weight_bytes: of the model's files.
        batch_difference: the largest difference between an answer given alone and the same one given in a batch.
        examples: the inputs to store with their answers.
        model_files: names of those that the export wrote. measured: what it measured, for the report's timings.
        parts: of an archive of several runtimes one for each, in the recipe's order; what is said above is of the first.
        adapter_examples, adapters: as `Workload.adapter_examples` gives them.
    """

    runtime: Runtime
    way: Way
    folder: Path
    handler: TaskHandler[Any]
    found: Comparison
    weight_bytes: int
    batch_difference: float
    examples: list[Any]
    model_files: list[str] = field(default_factory=list)
    measured: Mapping[str, Any] = field(default_factory=dict)
    parts: Sequence[Staged] = ()
    adapter_examples: Sequence[tuple[Any, dict[str, Any]]] = ()
    adapters: Mapping[str, Any] = field(default_factory=dict)


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
    written = _files(folder) - before
    weight_bytes = sum(path.stat().st_size for path in written)
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
    add_requirements(
        folder, [*(["safetensors"] if session.keys() & _PACKED else []), *workload.serving_packages(serving)]
    )
    write_serving(folder, serving)
    handler = make_handler(task.handler, way.session)
    handler.open(folder, threads=container_cores(), trust_files=True)
    examples, more = workload.choose_examples(handler)
    if more:
        serving |= more
        handler.serving |= more
        write_serving(folder, serving)
    more_examples, adapters = workload.adapter_examples(handler)
    found = workload.compare_served(handler, way, folder)
    difference = batch_difference(handler, workload.compared(examples))
    names = sorted(path.relative_to(folder).as_posix() for path in written)
    return Staged(
        runtime,
        way,
        folder,
        handler,
        found,
        weight_bytes,
        difference,
        examples,
        names,
        exported.measured,
        adapter_examples=more_examples,
        adapters=adapters,
    )


def join_archives(workload: Workload, parts: Sequence[Staged], folder: Path) -> Staged:
    """One archive of several runtimes' staged ones, whose model files move into it.

    Args:
        parts: in the order of preference. folder: does not exist yet.
    """
    task, recipe, first = workload.task, workload.recipe, parts[0]
    folder.mkdir(parents=True)
    requirements = {line for part in parts for line in (part.folder / REQUIREMENTS).read_text().splitlines()}
    write_code(
        folder,
        name=recipe.name,
        version=recipe.version,
        handler=task.handler,
        session={part.runtime.name: part.way.session for part in parts},
        modules=[task.module] if any(part.way.carries_module for part in parts) else [],
        requirements=sorted(requirements),
        config=task.server_config(recipe.serve),
    )
    workload.write_inputs(folder)
    for part in parts:
        for name in part.model_files:
            target = folder / part.runtime.name / name
            target.parent.mkdir(parents=True, exist_ok=True)
            (part.folder / name).rename(target)
    served = [part.handler.serving for part in parts]
    differing = [{key: value for key, value in one.items() if served[0].get(key) != value} for one in served[1:]]
    named = {"session": served[0]["session"]}
    alternatives = {"runtimes": [named, *differing], "choose_at_load": recipe.serve.choose_at_load}
    write_serving(folder, served[0] | alternatives)
    return replace(first, folder=folder, weight_bytes=sum(part.weight_bytes for part in parts), parts=parts)


def batch_difference(handler: TaskHandler[Any], inputs: Sequence[Any]) -> float:
    """The largest difference of an answer alone from the same answer among the others."""
    together = respond_fully(handler, inputs)
    alone = [respond_fully(handler, [item])[0] for item in inputs]
    return max((handler.compare(a, b) for a, b in zip(together, alone, strict=True)), default=0.0)


def _files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}
