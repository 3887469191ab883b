"""Before the first minute of work: everything that can be wrong with the model, the data and the stages, all at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from archiver.errors import DataError, RecipeError
from archiver.models.adapters import adapter_problems, linear_layers
from archiver.models.facts import ModelFacts, inspect_model
from archiver.models.load import skeleton
from archiver.models.source import ModelSource
from archiver.pipeline.sources import source_of
from archiver.runtimes import RUNTIMES
from archiver.spec import NewModel, Recipe
from archiver.tasks import FORWARD, TASKS, Task
from archiver.tasks.workload import Workload


@dataclass(frozen=True)
class Checked:
    """A recipe whose model, data and stages fit together.

    Args:
        validation, train: as the task reads them; train is empty where no stage needs it.
    """

    recipe: Recipe
    task: Task
    source: ModelSource
    facts: ModelFacts
    validation: list[Any]
    train: list[Any]

    def load(self) -> Workload:
        """Load the model and take the original's answers to the validation data."""
        workload: Workload = self.task.load(self.recipe, self.source, self.facts, self.validation, self.train)
        return workload


def check(recipe: Recipe) -> Checked:
    """Read the model's facts and all data, and let every stage look at the model's shapes.

    Raises: RecipeError that lists every problem; UnsupportedModelError where the model cannot be used at all.
    """
    task = TASKS[recipe.task]
    source = source_of(recipe, task)
    task = task.of_model(source.path)
    facts = inspect_model(source.path, task.auto_class, task=task.name, **task.inspected)
    problems = (
        _runtime_problems(recipe, task) + _length_problems(recipe, source, facts) + task.check(recipe, source, facts)
    )
    found: dict[str, list[Any]] = {"train": [], "validation": []}
    data = recipe.data
    learns = isinstance(recipe.model, NewModel) or any(stage.needs_data for stage in recipe.compress)
    wants_train = data.train is not None and learns
    sources = {"train": data.train if wants_train else None, "validation": data.validation or task.fallback}
    if sources["validation"] is None:
        problems.append(
            f"data.validation is missing: {task.name} is measured, and its stored examples are taken, from it"
        )
    for part, where in sources.items():
        try:
            if where is not None:
                found[part] = task.read(where, recipe, source, facts)
        except DataError as error:
            problems += [f"data.{part}: {error.message}", *error.problems]
    problems += _tokenizer_problems(recipe, task) + _stage_problems(recipe, task, source)
    if problems:
        raise RecipeError(f"the recipe {recipe.name} does not fit its model and data:", problems)
    return Checked(recipe, task, source, facts, found["validation"], found["train"])


def _runtime_problems(recipe: Recipe, task: Task) -> list[str]:
    """Packages that the runtime needs and this host has not: an archive is measured by the engine that serves it."""
    if recipe.serve.runtimes and task.execution != FORWARD:  # of a model on the hub that is known only now
        return ["serve.runtimes is for tasks that answer with one pass, and this model writes token by token: name one"]
    named = [RUNTIMES[name] for name in recipe.serve.runtimes or [recipe.serve.runtime] if name in RUNTIMES]
    problems = [f"serve.runtime {runtime.name}: {advice}" for runtime in named for advice in runtime.missing()]
    if recipe.serve.device == "cuda" and not problems and not _sees_gpu():
        problems.append(
            "serve.device is cuda, and neither PyTorch nor ONNX Runtime sees a GPU here; an archive is measured on what "
            "serves it: build where nvidia-smi lists one and torch is a CUDA build, or set serve.device: cpu"
        )
    return problems


def _sees_gpu() -> bool:
    import onnxruntime
    import torch

    # Not is_available(): that one starts CUDA, after which vLLM could not fork its engine's process.
    return torch.cuda.device_count() > 0 or "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def _length_problems(recipe: Recipe, source: ModelSource, facts: ModelFacts) -> list[str]:
    if recipe.serve.max_length <= facts.max_positions:
        return []
    return [
        f"serve.max_length is {recipe.serve.max_length}; {source.source} has positions for {facts.max_positions} "
        "tokens: set serve.max_length to at most that"
    ]


def _tokenizer_problems(recipe: Recipe, task: Task) -> list[str]:
    """Stages that change the tokenizer, where the task's input has none."""
    if task.input_name == "input_ids":
        return []
    stages = enumerate(recipe.compress)
    return [
        f"compress.{index}: {stage.label} changes the tokenizer, and {task.name} has none: remove it"
        for index, stage in stages
        if stage.entry.needs_tokenizer
    ]


def _stage_problems(recipe: Recipe, task: Task, source: ModelSource) -> list[str]:
    """What the stages and the adapters say of the model's modules and shapes, on a model without weights (meta device).

    A stage's check changes the shapes as the stage will, so that the next one sees what it will meet.
    """
    checks = [(index, stage, stage.entry.load_check()) for index, stage in enumerate(recipe.compress)]
    adapters = recipe.serve.adapters
    if not any(function for _, _, function in checks) and not adapters:
        return []
    problems = []
    with torch.device("meta"):
        model = skeleton(source, task.auto_class, **task.inspected)
        before = linear_layers(model)
        for index, stage, function in checks:
            if function is not None:
                found = function(model, stage.options)
                problems += [f"compress.{index}: {stage.label}: {line}" for line in found]
    return problems + [f"serve.adapters.{line}" for line in adapter_problems(adapters, model, before)]
