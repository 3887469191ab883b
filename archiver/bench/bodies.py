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
from handlers.errors import BadRequest
from handlers.inputs.text import TextInput
from handlers.manifest import EXAMPLES, SERVING

MOST = 2000


def bodies_of(mar: Path, recipe: Recipe | None) -> tuple[list[bytes], str]:
    """Requests for an archive.

    Args:
        recipe: whose data.validation is sent, to a task of one pass or of running text; else, and for None, the archive's
            stored examples are.
    Returns: (bodies, their content type): plain text where every input is a text without parameters, and no base64; else
        JSON.
    Raises: RecipeError where the recipe is for another task, DataError for its data.
    """
    inspect_mar(mar)
    with extracted(mar) as (folder, _):
        handler: Any = handler_of(folder)
        handler.serving = json.loads((folder / SERVING).read_text())
        kind = handler.make_input(folder)
        values = values_of(mar, recipe, handler.serving["task"])
        if values is None:
            values = [kind.from_stored(example["input"]) for example in json.loads((folder / EXAMPLES).read_bytes())]
        return _written(kind, [kind.to_request(value) for value in values])


def values_of(mar: Path, recipe: Recipe | None, task_name: str) -> list[Any] | None:
    """The inputs of the recipe's validation data; None where there is no recipe, or its task says no requests for them.

    Args:
        mar: the archive. task_name: what it is for.
    Raises: RecipeError where the recipe is for another task, DataError for its data.
    """
    if recipe is None:
        return None
    if task_name != recipe.task:
        raise RecipeError(f"{mar.name} is for {task_name}, the recipe {recipe.name} for {recipe.task}")
    task = TASKS[recipe.task]
    if task.plain_text:
        where = recipe.data.validation or FALLBACK_VALIDATION
        return [TextInput(one.text) for one in read_examples(where, recipe.data.columns, labels="none", limit=MOST)]
    source = source_of(recipe, task)
    task = task.of_model(source.path)
    if not isinstance(task, ForwardTask):
        return None
    facts = inspect_model(source.path, task.auto_class, task=task.name, **task.inspected)
    found = recipe.data.validation or task.fallback
    assert found is not None  # `build` refuses such a recipe
    return task.values(task.read(found, recipe, source, facts)[:MOST])[:MOST]


def _written(kind: Any, requests: list[tuple[Any, dict[str, Any]]]) -> tuple[list[bytes], str]:
    if all(not parameters and _is_its_own_body(kind, inputs) for inputs, parameters in requests):
        return [inputs.encode() for inputs, _ in requests], "text/plain"
    bodies = [
        {"inputs": inputs} | ({"parameters": parameters} if parameters else {}) for inputs, parameters in requests
    ]
    return [json.dumps(body).encode() for body in bodies], "application/json"


def _is_its_own_body(kind: Any, inputs: Any) -> bool:
    """Whether a text's bytes are the same input, also over gRPC, where nothing says what a body is; base64's are not."""
    try:
        return isinstance(inputs, str) and bool(kind.decode(inputs.encode(), "") == kind.decode(inputs, ""))
    except BadRequest:
        return False
