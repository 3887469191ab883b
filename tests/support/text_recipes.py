"""A recipe of a tiny language model with its text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from tiny_models import SENTENCES

from archiver.recipe.load import load_recipe
from archiver.spec import Recipe

TASK = "text-generation"


def recipe_of(folder: Path, model: Path, **more: Any) -> Recipe:
    (folder / "text.txt").write_text("".join(f"{a} , {b} .\n" for a in SENTENCES for b in SENTENCES))
    recipe: dict[str, Any] = {
        "name": "writer",
        "task": TASK,
        "model": str(model),
        "data": {"train": "text.txt", "validation": "text.txt", "context": 16},
        "serve": {"max_length": 48, "examples": 2},
    }
    for key, value in more.items():
        recipe[key] = recipe[key] | value if isinstance(recipe.get(key), dict) else value
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return load_recipe(folder / "recipe.yaml")
