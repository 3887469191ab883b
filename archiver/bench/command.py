"""The verb `bench`: reads the archives and the texts, and runs the comparison of `archiver.bench.rounds`."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from archiver.bench.bodies import bodies_of, values_of
from archiver.bench.roofline import format_roofline, roofline
from archiver.bench.rounds import run_bench
from archiver.bench.stock import build_stock
from archiver.bench.table import format_bench
from archiver.errors import ArchiverError, PackagingError, RecipeError
from archiver.packaging.verify import verify
from archiver.recipe.load import load_recipe
from archiver.report.inspection import inspect_mar
from archiver.spec import NewModel, Recipe
from archiver.tasks import TASKS
from archiver.tasks.base import FORWARD

STOCK = "stock"


class BenchInput(ArchiverError):
    """An archive or text that bench cannot use."""

    exit_code = 2


def bench(
    mar: Path,
    against: str | None,
    recipe_path: Path | None,
    overrides: Sequence[str],
    *,
    clients: Sequence[int],
    seconds: float,
    protocols: Sequence[str],
    max_rounds: int,
    progress: Callable[[str], None],
) -> tuple[dict[str, Any], str]:
    """Measure `mar` alone, or in turns with `against` (an archive, or «stock»). Returns the numbers and a table."""
    _check(mar)
    recipe = load_recipe(recipe_path, overrides) if recipe_path is not None else None
    if against == STOCK and recipe is None:
        raise RecipeError("--against stock needs --recipe: it names the original model that the plain handler serves")
    bodies, content_type = bodies_of(mar, recipe)
    with tempfile.TemporaryDirectory(prefix="marpress-bench-") as temporary:
        other: Path | None = None
        if against == STOCK and recipe is not None:
            progress("packing the plain fp32 handler with torch-model-archiver")
            other = _stock(recipe, Path(temporary))
        elif against is not None:
            other = Path(against)
            _check(other)
        result = run_bench(
            mar,
            other,
            bodies,
            content_type,
            clients=clients,
            seconds=seconds,
            protocols=protocols,
            max_rounds=max_rounds,
            progress=progress,
        )
    return result, format_bench(result)


def roofline_of(
    mar: Path, recipe_path: Path | None, overrides: Sequence[str], *, progress: Callable[[str], None]
) -> tuple[dict[str, Any], str]:
    """How near `mar` comes to what this host can do. Returns the numbers and a few lines that tell them."""
    _check(mar)
    recipe = load_recipe(recipe_path, overrides) if recipe_path is not None else None
    found = roofline(mar, values_of(mar, recipe, inspect_mar(mar)["task"]), progress)
    return found, format_roofline(found)


def _check(mar: Path) -> None:
    """Refuse an archive that is missing (BenchInput) or that `verify` finds unsound."""
    if not mar.is_file():
        raise BenchInput(f"{mar} is no file: name a .mar that `build` has written")
    problems = verify(mar)
    if problems:
        raise PackagingError(f"{mar.name} is unsound and is not measured", problems)


def _stock(recipe: Recipe, folder: Path) -> Path:
    from archiver.models.facts import inspect_model
    from archiver.models.source import resolve_model

    if isinstance(recipe.model, NewModel):
        raise RecipeError(f"there is no plain handler for {recipe.name}, whose model is made by the recipe itself")
    source = resolve_model(recipe.model)
    task = TASKS[recipe.task].of_model(source.path)
    if task.execution != FORWARD:
        raise RecipeError(f"there is no plain handler for {task.name}, which writes its answers token by token")
    inspect_model(source.path, task.auto_class, task=task.name, **task.inspected)
    return build_stock(source.path, task.name, task.auto_class, folder, max_length=recipe.serve.max_length)
