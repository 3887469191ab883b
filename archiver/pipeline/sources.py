"""The model directory that a recipe starts from: the one it names, or a fresh one."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path

from archiver.models.files import digest, read_directory
from archiver.models.source import ModelSource, resolve_model
from archiver.spec import NewModel, Recipe
from archiver.tasks import Task


def source_of(recipe: Recipe, task: Task) -> ModelSource:
    """Where the recipe's model lies. A new one is made, with random weights: it goes when its source goes.

    Raises: UnsupportedModelError where there is no such model; DataError where a new one's data cannot be read.
    """
    if not isinstance(recipe.model, NewModel):
        return resolve_model(recipe.model)
    folder = Path(tempfile.mkdtemp(prefix="marpress-new-"))
    try:
        task.make_model(recipe, folder)
        return directory_of(recipe.model, folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def directory_of(model: NewModel, folder: Path) -> ModelSource:
    """A folder with a new model as a source; the folder goes with it."""
    source = ModelSource(folder, f"new:{model.family}", digest(read_directory(folder).weights))
    weakref.finalize(source, shutil.rmtree, folder, ignore_errors=True)
    return source
