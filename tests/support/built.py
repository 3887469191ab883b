"""Recipes over tiny models, and archives built from them: what the tests of the build line share."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import yaml
from once import once

from archiver.packaging.mar import extracted
from archiver.pipeline import build as pipeline
from archiver.progress import Progress
from archiver.recipe.load import load_recipe
from archiver.spec import Recipe
from handlers.manifest import read_manifest, read_timings

SENTENCES = (*tiny_models.SENTENCES, "good", "two men and three women in one long short story without sound")


def write_recipe(folder: Path, model: Path, *, kind: str = "label", **more: Any) -> Path:
    """folder/recipe.yaml over `model` with 24 examples beside it.

    kind: what the data holds, `label` (0 or 1), `multi` (pairs, labels joined by |) or `scored` (pairs with a number)
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = [f"{a} , {b}" for a in SENTENCES[:4] for b in SENTENCES[:6]]
    rows = {
        "label": lambda i, text: f"{text}\t{i % 2}",
        "multi": lambda i, text: f"{text}\t{SENTENCES[i % 8]}\t{('funny', 'dull|loud', 'loud', '')[i % 4]}",
        "scored": lambda i, text: f"{text}\t{SENTENCES[i % 8]}\t{i / 5}",
    }
    columns: dict[str, str | int] = {"text": 0, "label": 1}
    if kind != "label":
        columns = {"text": 0, "text_pair": 1, "label": 2}
    (folder / "data.tsv").write_text("".join(rows[kind](i, text) + "\n" for i, text in enumerate(texts)))
    recipe: dict[str, Any] = {
        "name": "tiny",
        "task": "text-classification",
        "model": str(model),
        "data": {"train": "data.tsv", "validation": "data.tsv", "columns": columns},
        "serve": {"max_length": 32, "examples": 3},
    }
    for key, value in more.items():
        recipe[key] = recipe[key] | value if isinstance(recipe.get(key), dict) else value
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def recipe_of(folder: Path, model: Path, **more: Any) -> Recipe:
    return load_recipe(write_recipe(folder, model, **more))


def quantize(method: str, **options: Any) -> list[dict[str, Any]]:
    return [{"quantize": {"method": method, **options}}]


def build(recipe: Recipe, store: Path) -> pipeline.Built:
    return pipeline.build(recipe, store, Progress(quiet=True))


def small_archive(tiny_model: Any, tmp_path_factory: pytest.TempPathFactory) -> pipeline.Built:
    """A dynamic-int8 classifier on ONNX Runtime, built once per test run; copy it before you change it."""

    def fill(folder: Path) -> None:
        recipe = recipe_of(
            folder, tiny_model(num_hidden_layers=1), compress=quantize("dynamic-int8"), serve={"runtime": "onnxruntime"}
        )
        build(recipe, folder / "store")

    path = once(tmp_path_factory, "small", fill) / "store" / "tiny.mar"
    with extracted(path) as (folder, _):
        return pipeline.Built(path, read_manifest(folder), read_timings(folder))


def heed_interrupts() -> None:
    """For a child about to start: a test run in the background ignores SIGINT, and its children would with it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
