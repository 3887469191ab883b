"""A recipe as plain data, as the archive carries it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from archiver.spec import NewModel, Recipe, Stage
from archiver.tasks import foreign_serve_keys, task_of


def as_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain JSON-able data for the archive: no host paths, a file or folder by its base name only."""
    data = {key: value for key, value in _plain(dataclasses.asdict(recipe.data)).items() if value not in (None, {})}
    result: dict[str, Any] = {
        "name": recipe.name,
        "version": recipe.version,
        "task": recipe.task,
        "model": _model(recipe.model),
        "data": data,
        "compress": [_stage_dict(stage) for stage in recipe.compress],
    }
    if recipe.gate is not None:
        bounds = _plain(dataclasses.asdict(recipe.gate))
        result["gate"] = {key: value for key, value in bounds.items() if value not in (None, {})}
    serve = _plain(dataclasses.asdict(recipe.serve))
    others = foreign_serve_keys(task_of(recipe.task, recipe.model))
    others |= {"runtime"} if recipe.serve.runtimes else {"runtimes", "choose_at_load"}
    others |= set() if recipe.serve.adapters else {"adapters"}
    result["serve"] = {key: value for key, value in serve.items() if key not in others}
    return result


def _model(model: Path | str | NewModel) -> Any:
    """A new model as the mapping that a recipe has for it; where it is kept is the host's matter."""
    if isinstance(model, NewModel):
        return {"new": model.family, **_plain(dataclasses.asdict(model.options))}
    return _plain(model)


def _stage_dict(stage: Stage) -> dict[str, Any]:
    body = {"method": stage.method, **_plain(dataclasses.asdict(stage.options))}
    body |= {key: dict(getattr(stage, key)) for key in ("max_drop", "max_increase") if getattr(stage, key)}
    body |= {"measure": True} if stage.measure else {}
    return {stage.verb: body}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return value.absolute().name or value.resolve().name
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
