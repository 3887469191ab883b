"""A tiny T5 from a recipe to an archive on each runtime, retrained on pairs of texts; and recipes that cannot work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_models import SENTENCES
from tiny_seq2seq import build_tiny_seq2seq

from archiver.errors import RecipeError
from archiver.packaging.mar import extracted
from archiver.packaging.verify import verify
from archiver.pipeline.build import build, check_only
from archiver.progress import Progress
from archiver.recipe.load import load_recipe
from archiver.recipe.starter import write_recipe
from archiver.spec import Recipe
from handlers.manifest import read_manifest


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "t5"
    build_tiny_seq2seq(folder, "t5")
    return folder


def recipe_of(folder: Path, model: Path, rows: str | None = None, **more: Any) -> Recipe:
    pairs = "".join(f"{a} , {b}\t{b}\n" for a in SENTENCES[:3] for b in SENTENCES[:3])
    (folder / "pairs.tsv").write_text(rows if rows is not None else pairs)
    recipe: dict[str, Any] = {
        "name": "tiny",
        "task": "text2text-generation",
        "model": str(model),
        "data": {"train": "pairs.tsv", "validation": "pairs.tsv", "columns": {"source": 0, "target": 1}},
        "compress": [{"quantize": {"method": "weight-only", "bits": 8}}],
        "serve": {"max_length": 24, "examples": 2},
    } | more
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return load_recipe(folder / "recipe.yaml")


@pytest.mark.parametrize("runtime", ["openvino", "torch"])
def test_an_archive_stands_on_its_own(runtime, model, tmp_path) -> None:
    serve = {"max_length": 24, "examples": 2, "runtime": runtime}
    stages = [{"retrain": {"epochs": 1, "batch_size": 3}}, {"quantize": {"method": "weight-only", "bits": 8}}]
    built = build(recipe_of(tmp_path, model, serve=serve, compress=stages), tmp_path / "store", Progress(quiet=True))
    assert verify(built.path) == []
    found = built.manifest["metrics"]["compressed"]
    assert set(found) == {"chrf", "rougeL", "exact_match", "agreement"}
    with extracted(built.path) as (folder, _):
        names = {str(path.relative_to(folder)) for path in folder.rglob("*.py")}
        assert read_manifest(folder)["runtime"] == runtime
        assert ("handlers/architecture/outputs/seq2seq.py" in names) == (runtime == "torch")


def test_pairs_without_a_target_teach_nothing(model, tmp_path) -> None:
    recipe = recipe_of(tmp_path, model, "a text\t\n", compress=[{"retrain": {"epochs": 1}}])
    with pytest.raises(RecipeError, match="does not fit its model and data") as caught:
        check_only(recipe, Progress(quiet=True))
    assert "target is empty" in "\n".join(caught.value.problems)


def test_stages_that_do_not_fit_are_refused(model, tmp_path) -> None:
    with pytest.raises(RecipeError, match="has 1 mistake") as caught:
        recipe_of(tmp_path, model, compress=[{"share": {"method": "vocabulary"}}])
    assert "forbids tokens by their ids" in caught.value.problems[0]


def test_init_writes_a_recipe_that_fits(model, tmp_path) -> None:
    text = write_recipe(model)
    assert "task: text2text-generation" in text and "source: 0, target: 1" in text
    (tmp_path / "recipe.yaml").write_text(text)
    assert load_recipe(tmp_path / "recipe.yaml").task == "text2text-generation"
