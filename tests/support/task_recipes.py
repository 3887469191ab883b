"""Recipes of text tasks over tiny models, each with its data beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from tiny_models import SENTENCES

from archiver.recipe.load import load_recipe
from archiver.spec import Recipe

NLI = {
    "id2label": {0: "contradiction", 1: "neutral", 2: "entailment"},
    "label2id": {"contradiction": 0, "neutral": 1, "entailment": 2},
}
# task → (model task and config of `tiny_model`, data columns)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "text-ranking": ("text-classification", {"num_labels": 1}),
    "zero-shot-classification": ("text-classification", NLI),
    "sentence-similarity": ("feature-extraction", {}),
    "fill-mask": ("fill-mask", {}),
}
TEXTS = [f"{a} , {b}" for a in SENTENCES[:4] for b in SENTENCES]


def _ranking(folder: Path) -> dict[str, Any]:
    rows = [
        {
            "query": text,
            "texts": [TEXTS[(i + k) % 24] for k in range(1, 5)],
            "labels": [int(k == i % 4) for k in range(4)],
        }
        for i, text in enumerate(TEXTS[:8])
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"train": "data.jsonl", "validation": "data.jsonl"}


def _table(columns: dict[str, int], row: Callable[[int, str], str]) -> Callable[[Path], dict[str, Any]]:
    def write(folder: Path) -> dict[str, Any]:
        (folder / "data.tsv").write_text("".join(row(i, text) + "\n" for i, text in enumerate(TEXTS)))
        return {"train": "data.tsv", "validation": "data.tsv", "columns": columns}

    return write


DATA: dict[str, Callable[[Path], dict[str, Any]]] = {
    "text-ranking": _ranking,
    "zero-shot-classification": _table(
        {"text": 0, "label": 1}, lambda i, text: f"{text}\t{('good', 'music', 'cat')[i % 3]}"
    ),
    "sentence-similarity": _table(
        {"text": 0, "text_pair": 1, "label": 2}, lambda i, text: f"{text}\t{SENTENCES[i % 6]}\t{i % 5}"
    ),
    "fill-mask": _table({"text": 0}, lambda i, text: text),
}


def recipe_of(folder: Path, model: Path, task: str, **more: Any) -> Recipe:
    """A recipe of `task`, named like it, over `model`; `more` replaces or extends its keys."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe: dict[str, Any] = {
        "name": task,
        "task": task,
        "model": str(model),
        "data": DATA[task](folder),
        "serve": {"max_length": 32, "examples": 3},
    }
    for key, value in more.items():
        recipe[key] = recipe[key] | value if isinstance(recipe.get(key), dict) else value
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return load_recipe(folder / "recipe.yaml")
