"""Interactions whose next item is nearly certain, made from a seed, and recipes over them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import yaml

ITEMS = 30
COLUMNS = {"user": "who", "item": "what", "time": "when"}


def write_interactions(folder: Path, users: int = 60, seed: int = 0) -> Path:
    """folder/seen.tsv, shuffled: each user walks from item i to 7·i + 3 (mod 30) and, one time of ten, elsewhere.

    Beside it names.tsv: "Film 101" for item 101, but one name for the items 128 and 129. Ids are from 100 on.
    """
    draw = random.Random(seed)
    rows = []
    for user in range(users):
        item = draw.randrange(ITEMS)
        for time in range(draw.randint(4, 12)):
            rows.append(f"u{user}\t{100 + item}\t{1000 + time}\n")
            item = draw.randrange(ITEMS) if draw.random() < 0.1 else (7 * item + 3) % ITEMS
    draw.shuffle(rows)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "seen.tsv").write_text("\t".join(COLUMNS.values()) + "\n" + "".join(rows))
    names = [f"{100 + item}\t{'Twice' if item >= ITEMS - 2 else f'Film {100 + item}'}\n" for item in range(ITEMS)]
    (folder / "names.tsv").write_text("item\ttitle\n" + "".join(names))
    return folder / "seen.tsv"


def write_recipe(folder: Path, **more: Any) -> Path:
    """folder/recipe.yaml: a new, tiny SASRec from the interactions beside it; `more` is put over it."""
    write_interactions(folder)
    training = {"epochs": 12, "learning_rate": 0.01, "batch_size": 16, "dropout": 0.0}
    recipe: dict[str, Any] = {
        "name": "films",
        "task": "recommendation",
        "model": {"new": "sasrec", "layers": 1, "hidden": 16, "feed_forward": 32, "max_length": 12, "train": training},
        "data": {"train": "seen.tsv", "validation": "seen.tsv", "items": "names.tsv", "columns": COLUMNS},
        "serve": {"runtime": "onnxruntime", "max_length": 12, "examples": 3, "workers": 1},
    }
    for key, value in more.items():
        recipe[key] = recipe[key] | value if isinstance(recipe.get(key), dict) and isinstance(value, dict) else value
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path
