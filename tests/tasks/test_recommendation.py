"""recommendation, from interactions to answers: a new model is trained, and compressed in every way."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from once import once
from tiny_items import ITEMS, write_recipe

import archiver
from archiver import DataError, RecipeError, cli
from archiver.packaging.entry import handler_of
from archiver.packaging.mar import extract
from archiver.progress import Progress
from archiver.recipe.load import load_recipe
from archiver.spec import NewModel
from archiver.tasks.items.new import SasRec
from archiver.tasks.items.workload import FULL, IGNORED, _batch, pieces
from handlers.base import Found
from handlers.errors import BadRequest
from handlers.inputs.items import History
from handlers.storage.packed import read_description
from handlers.tasks.items.recommendation import RecommendationHandler


def build(folder: Path, **more: Any) -> tuple[Any, Path]:
    built = archiver.build(load_recipe(write_recipe(folder, **more)), folder / "store", Progress(quiet=True))
    extracted = folder / "extracted"
    extracted.mkdir()
    extract(built.path, extracted)
    return built, extracted


def opened(extracted: Path) -> RecommendationHandler:
    handler = handler_of(extracted)
    assert isinstance(handler, RecommendationHandler)
    handler.open(extracted, threads=1)
    return handler


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model directory, left by `keep`; beside it the archive it came with."""

    def fill(folder: Path) -> None:
        training = {"epochs": 30, "learning_rate": 0.01, "batch_size": 16, "dropout": 0.1}
        sizes = {"new": "sasrec", "layers": 2, "hidden": 16, "feed_forward": 32, "max_length": 12, "train": training}
        built, _ = build(folder, model={**sizes, "keep": "model"})
        assert built.manifest["metrics"]["original"]["hit@10"] > 0.85

    return once(tmp_path_factory, "recommendation", fill) / "model"


def test_a_new_model_learns_what_comes_next_from_the_file_alone(model):
    handler = opened(model.parent / "extracted")
    (answer,) = handler.respond([History(("Film 103",))], {"top_k": 3})
    assert answer[0] == {"item": 124, "name": "Film 124", "score": answer[0]["score"]}  # 7 · 3 + 3
    assert answer[0]["score"] > answer[1]["score"] >= answer[2]["score"]
    assert {path.name for path in model.iterdir()} == {"config.json", "model.safetensors", "items.json"}


def test_init_writes_a_recipe_for_such_a_folder(model, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    assert cli.main(["init", str(model), "--output", str(recipe)]) == 0
    text = recipe.read_text()
    assert "\ntask: recommendation\n" in text and "# 30 items, each a vector of 16 numbers" in text
    assert "max_length: 12" in text and "items; of a longer history the last" in text
    write_recipe(tmp_path / "data")
    filled = text.replace("\n# ", "\n").replace("timestamp}", "time}").replace("# data:", "data:")
    assert "\ndata:\n" in filled
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    data = f"data: {{validation: {tmp_path}/data/seen.tsv, columns: {{user: who, item: what, time: when}}}}"
    recipe.write_text("\n".join([*lines, data, ""]))
    assert cli.main(["build", str(recipe), "--check"]) == 0, capsys.readouterr().err


WAYS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "int8": ([{"quantize": {"method": "weight-only", "targets": "*"}}], "openvino"),
    "static int8": ([{"quantize": {"method": "static-int8"}}], "onnxruntime"),
    "codes": ([{"quantize": {"method": "product", "splits": 8, "bits": 4}}], "openvino"),
    "low rank": ([{"factorize": {"method": "svd", "rank": 10, "targets": "model.item_embeddings"}}], "onnxruntime"),
    "cut and taught again": (
        [
            {"prune": {"method": "structured", "heads": 0.5, "neurons": 0.5}},
            {"retrain": {"epochs": 8, "learning_rate": 0.005, "batch_size": 16}},
        ],
        "torch",
    ),
    "codes, trained": (
        [{"quantize": {"method": "product", "splits": 4, "bits": 3, "aware": {"epochs": 4, "learning_rate": 0.005}}}],
        "onnxruntime",
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_it_is_compressed(model, tmp_path, way):
    stages, runtime = WAYS[way]
    built, extracted = build(
        tmp_path,
        model=str(model),
        compress=stages,
        gate={"max_drop": {"hit@10": 0.1, "ndcg@10": 0.15}},
        serve={"runtime": runtime},
    )
    assert built.manifest["metrics"]["compressed"]["hit@10"] > 0.8
    assert archiver.verify(built.path) == []
    (answer,) = opened(extracted).respond([History((103,))], {"top_k": 3})
    assert 124 in [item["item"] for item in answer]
    packed = extracted / "weights.safetensors"
    if "codes" in way and packed.is_file():
        codecs = {item["codec"] for item in read_description(packed)["tensors"].values()}
        assert "product" in codecs


def test_of_all_scores_only_the_best_are_held(model):
    handler = opened(model.parent / "extracted")
    for found in handler.find([History((100 + item,)) for item in range(8)], {"top_k": 3}):
        assert [output.shape for output in found.outputs] == [(2, 3)]
        assert list(found.outputs[0][1]) == sorted(found.outputs[0][1], reverse=True)
    broken = handler.keep(handler.prepare([History((100,))], {})[0][0], np.full(ITEMS, np.nan, np.float32))
    with pytest.raises(ArithmeticError, match="not finite"):
        handler.answers([Found(History((100,)), (), (broken,))], {})


def test_requests_choose_among_items(model):
    handler = opened(model.parent / "extracted")
    history = [History((103, 124))]

    def ids(**parameters: Any) -> list[int]:
        return [item["item"] for item in handler.respond(history, parameters)[0]]

    every = ids(top_k=ITEMS)
    assert len(every) == ITEMS and ids() == every[:10]
    assert ids(top_k=ITEMS, exclude_seen=True) == [item for item in every if item not in (103, 124)]
    assert ids(candidates=[105, "Film 101", 105, 124]) == [item for item in every if item in (105, 101, 124)]
    assert ids(candidates=[124, 101], exclude_seen=True) == [101]
    assert ids(candidates=[124], exclude_seen=True) == []
    scores = {item["item"]: item["score"] for item in handler.respond(history, {"top_k": ITEMS})[0]}
    (chosen,) = handler.respond(history, {"candidates": [101]})
    assert chosen[0]["score"] == pytest.approx(scores[101], abs=1e-5)


REFUSED = {
    "top_k": ({"top_k": 31}, "parameter 'top_k' is 31; there are 30 items, at most 30 are answered"),
    "no candidates": ({"candidates": []}, "parameters.candidates is empty"),
    "unknown candidate": (
        {"candidates": [101, "Film 7"]},
        r'parameters.candidates\[1\] is "Film 7", which is an id or a',
    ),
    "no list of items": ({"candidates": [None]}, r"parameters.candidates\[0\] is null"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_parameters_that_do_not_fit_the_items(model, case):
    parameters, said = REFUSED[case]
    with pytest.raises(BadRequest, match=said):
        opened(model.parent / "extracted").respond([History((103,))], parameters)


def test_answers_are_compared_by_item(model):
    handler = opened(model.parent / "extracted")
    stored = [{"item": 1, "score": 4.0}, {"item": 2, "score": 3.0}]
    swapped = [{"item": 2, "score": 4.0}, {"item": 1, "score": 4.0}]
    assert handler.compare(stored, stored) == 0
    assert handler.compare(stored, swapped) == 0.25
    assert handler.compare(stored, [{"item": 1, "score": 4.0}, {"item": 3, "score": 2.9}]) == pytest.approx(0.025)
    assert handler.compare(stored, stored[:1]) == handler.compare(stored, [{"label": 1}] * 2) == float("inf")


def test_pieces_teach_every_item_once():
    assert pieces([[1], [1, 2], list(range(8))], 3) == [[1, 2], [4, 5, 6, 7], [1, 2, 3, 4], [0, 1]]


def test_a_batch_of_many_items_scores_its_targets_and_some_others():
    import torch

    batch = _batch([[5, 9, 5], [9, FULL + 6]], FULL + 7, torch.Generator().manual_seed(0))
    candidates, labels = batch["candidates"], batch["labels"]
    assert len(candidates) < FULL and (np.diff(candidates) > 0).all()
    assert candidates[labels[0]].tolist() == [9, 5] and candidates[labels[1, 0]] == FULL + 6
    assert labels[1, 1] == IGNORED
    assert len(_batch([[5, 9]], 12, torch.Generator())["candidates"]) == 12


def test_the_checkpoint_of_another_recipe_stays(tmp_path):
    folder = tmp_path / "store" / ".checkpoints"
    folder.mkdir(parents=True)
    (folder / "new-0123.safetensors").write_bytes(b"an interrupted training of another recipe")
    training = {"epochs": 1, "batch_size": 32}
    build(tmp_path, model={"new": "sasrec", "layers": 1, "hidden": 8, "heads": 1, "feed_forward": 8, "train": training})
    assert [file.name for file in folder.iterdir()] == ["new-0123.safetensors"]


def test_the_same_seed_gives_the_same_archive_and_no_checkpoint_stays(tmp_path):
    training_options = {"epochs": 3, "learning_rate": 0.01, "batch_size": 16, "dropout": 0.2, "patience": 2}
    sizes = {"new": "sasrec", "layers": 1, "hidden": 8, "heads": 1, "feed_forward": 8, "max_length": 12}
    recipe = load_recipe(write_recipe(tmp_path, model={**sizes, "train": training_options}))
    first = archiver.build(recipe, tmp_path / "one", Progress(quiet=True)).manifest
    second = archiver.build(recipe, tmp_path / "two", Progress(quiet=True)).manifest
    assert first["model"] == second["model"] and first["files"] == second["files"]
    assert not (tmp_path / "two" / ".checkpoints").exists()


MISTAKES = {
    "model: new:sasrek": "unknown family of model, new: 'sasrek'; did you mean 'sasrec'",
    "model: {new: sasrec, hidden: 10, heads: 4}": r"model: heads \(4\) must divide hidden \(10\)",
    "model: {new: sasrec, width: 3}": "unknown key 'width' in model",
    "model: {layers: 2}": "model is a mapping without the key 'new'",
    "model: {new: sasrec, keep: 3}": "model.keep must be a folder's path",
    "model: {new: sasrec, train: {epochs: 0}}": "model.train.epochs must be an integer from 1",
    "model: new:sasrec\ndata: {validation: seen.tsv}": "a new sasrec learns from data.train, which is missing",
    "model: new:sasrec\ndata: {train: seen.tsv, items: films.tsv}": "data.items: films.tsv does not exist",
    "model: new:sasrec\ndata: {train: names.txt}": "names.txt does not exist|has the suffix '.txt'",
    "model: new:sasrec\ntask: text-classification": "text-classification makes no new models, recommendation does",
    "model: new:sasrec\ndata: {train: seen.tsv, columns: {text: a}}": "data.columns",
    "model: new:sasrec\ngate: {max_drop: {accuracy: 0.1}}": "unknown metric 'accuracy' for this task; allowed: hit@10",
}


@pytest.mark.parametrize("lines", MISTAKES)
def test_mistakes_of_a_recipe(tmp_path, lines):
    write_recipe(tmp_path)
    task = "" if "task:" in lines else "task: recommendation\n"
    (tmp_path / "wrong.yaml").write_text(f"name: films\n{task}{lines}\n")
    with pytest.raises(RecipeError) as error:
        archiver.load_recipe(tmp_path / "wrong.yaml")
    assert any(re.search(MISTAKES[lines], line) for line in error.value.problems), error.value.problems


def test_the_short_form_has_the_default_sizes(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path, model="new:sasrec"))
    assert recipe.model == NewModel("sasrec", SasRec())


def test_data_that_does_not_fit_is_said_before_any_work(model, tmp_path):
    recipe = write_recipe(tmp_path, model=str(model), serve={"max_length": 13})
    with (tmp_path / "seen.tsv").open("a") as file:
        file.write("u1\t999\t5\n")
    with pytest.raises(RecipeError) as error:
        archiver.check(load_recipe(recipe))
    said = "\n".join(error.value.problems)
    assert "item '999' is none of the 30 that the model knows" in said
    assert "positions for 12" in said
    (tmp_path / "seen.tsv").write_text("who\twhat\twhen\nu1\t1\tnever\n")
    with pytest.raises((RecipeError, DataError), match="does not fit|mistake") as error:
        archiver.check(
            load_recipe(
                write_recipe(tmp_path / "other", model="new:sasrec", data={"train": str(tmp_path / "seen.tsv")})
            )
        )


def test_a_tokens_method_is_refused(model, tmp_path):
    recipe = load_recipe(write_recipe(tmp_path, model=str(model), compress=[{"share": {"method": "vocabulary"}}]))
    with pytest.raises(RecipeError) as error:
        archiver.check(recipe)
    assert "share/vocabulary changes the tokenizer, and recommendation has none" in error.value.problems[0]
