"""`init` knows what a model was made for: a masked language model, a cross-encoder, a model of language inference."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from task_recipes import MODELS, NLI

from archiver.errors import RecipeError
from archiver.recipe.load import load_recipe
from archiver.recipe.starter import write_recipe
from archiver.tasks import default_task

CLASSIFY = "text-classification"


def test_tasks_by_config_and_model_card(tiny_model: Any, tmp_path: Path) -> None:
    one = tiny_model("bert", CLASSIFY, num_labels=1)
    assert default_task(tiny_model("bert", "fill-mask")) == "fill-mask"
    assert default_task(tiny_model("bert", CLASSIFY, **NLI)) == "zero-shot-classification"
    assert default_task(tiny_model("bert", CLASSIFY)) == CLASSIFY
    assert default_task(one) == CLASSIFY  # a number may be a rating
    shutil.copytree(one, tmp_path / "card")
    (tmp_path / "card" / "README.md").write_text(
        "---\nlibrary_name: sentence-transformers\ntags: [cross-encoder]\n---\n"
    )
    assert default_task(tmp_path / "card") == "text-ranking"
    shutil.copytree(one, tmp_path / "marked")
    config = json.loads((one / "config.json").read_text()) | {"sentence_transformers": {"version": "5.1.0"}}
    (tmp_path / "marked" / "config.json").write_text(json.dumps(config))
    assert default_task(tmp_path / "marked") == "text-ranking"


@pytest.mark.parametrize("task", MODELS)
def test_starter_recipes_load_as_they_stand_and_uncommented(tiny_model: Any, tmp_path: Path, task: str) -> None:
    kind, config = MODELS[task]
    text = write_recipe(tiny_model("bert", kind, **config), task)
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / name).write_text("a good film\tgood\t1\n")
    (tmp_path / "recipe.yaml").write_text(text)
    assert load_recipe(tmp_path / "recipe.yaml").task == task
    lines, uncomment = [], False
    for line in text.splitlines():
        uncomment = line.startswith(("# data:", "# gate:")) or (uncomment and line.startswith("#  "))
        lines.append(line.removeprefix("# ") if uncomment else line)
    (tmp_path / "recipe.yaml").write_text("\n".join(lines))
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert recipe.gate is not None and recipe.data.validation is not None


@pytest.mark.parametrize(
    ("task", "columns", "said"),
    [
        ("text-ranking", "{text: 0, label: 1}", "data.columns lacks the"),
        ("fill-mask", "{text: 0, label: 1}", "data.columns.label says nothing to fill-mask; allowed: text"),
    ],
)
def test_columns_of_another_task(tiny_model: Any, tmp_path: Path, task: str, columns: str, said: str) -> None:
    (tmp_path / "a.tsv").write_text("a\t1\n")
    kind, config = MODELS[task]
    (tmp_path / "recipe.yaml").write_text(
        f"name: a\ntask: {task}\nmodel: {tiny_model('bert', kind, **config)}\n"
        f"data: {{validation: a.tsv, columns: {columns}}}\n"
    )
    with pytest.raises(RecipeError, match=said):
        load_recipe(tmp_path / "recipe.yaml")
