"""What `bench` sends: the recipe's validation data as requests, else the archive's own examples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from archiver.data.examples import read_examples
from archiver.errors import RecipeError
from archiver.models.facts import inspect_model
from archiver.packaging.entry import handler_of
from archiver.packaging.mar import extracted
from archiver.pipeline.sources import source_of
from archiver.report.inspection import inspect_mar
from archiver.spec import Recipe
from archiver.tasks import FALLBACK_VALIDATION, TASKS
from archiver.tasks.forward import ForwardTask
from handlers.manifest import EXAMPLES, SERVING

MOST = 2000


def bodies_of(mar: Path, recipe: Recipe | None) -> tuple[list[bytes], str]:
    """Requests for an archive.

    Args:
        recipe: whose data.validation is sent; None: the archive's stored examples.
    Returns: (bodies, their content type): plain text where every input is a text, else JSON.
    Raises: RecipeError where the recipe is for another task, DataError for its data.
    """
    with extracted(mar) as (folder, _):
        if recipe is None:
            inspect_mar(mar)
            inputs = [example["input"] for example in json.loads((folder / EXAMPLES).read_bytes())]
            return _written(inputs, {})
        serving = json.loads((folder / SERVING).read_text())
        if serving["task"] != recipe.task:
            raise RecipeError(f"{mar.name} is for {serving['task']}, the recipe {recipe.name} for {recipe.task}")
        task = TASKS[recipe.task]
        if not isinstance(task, ForwardTask):
            return _written(_texts(recipe), {})
        handler: Any = handler_of(folder)
        handler.serving = serving
        kind = handler.make_input(folder)
        source = source_of(recipe, task)
        facts = inspect_model(source.path, task.auto_class, task=task.name, **task.inspected)
        where = recipe.data.validation or task.fallback
        assert where is not None  # `build` refuses such a recipe
        values = task.values(task.read(where, recipe, source, facts)[:MOST])[:MOST]
        return _written([kind.to_stored(value) for value in values], dict(task.measured_with))


def _texts(recipe: Recipe) -> list[Any]:
    columns = {key: value for key, value in recipe.data.columns.items() if key != "label"}
    found = read_examples(recipe.data.validation or FALLBACK_VALIDATION, columns, labels="none", limit=MOST)
    return [item.text for item in found]


def _written(inputs: list[Any], parameters: dict[str, Any]) -> tuple[list[bytes], str]:
    if not parameters and all(isinstance(item, str) for item in inputs):
        return [item.encode() for item in inputs], "text/plain"
    more = {"parameters": parameters} if parameters else {}
    return [json.dumps({"inputs": item, **more}).encode() for item in inputs], "application/json"
