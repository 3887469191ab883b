"""From a recipe to a verified archive of a language model, and what such a recipe may not say."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from built import build, quantize
from tiny_models import DECODERS, SENTENCES

from archiver.errors import GateFailed, RecipeError
from archiver.export.torch_packed import export_packed
from archiver.init import write_recipe
from archiver.models import load_model
from archiver.packaging.mar import extracted
from archiver.preparation import check
from archiver.recipe import Recipe, load_recipe
from archiver.report.inspection import inspect_mar
from archiver.report.summary import summarize
from handlers.examples import check_examples
from handlers.text_generation import TextGenerationHandler
from handlers.torch_decoder import DecoderWithHead, load_decoder

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


@pytest.mark.parametrize(("kind", "config"), [("llama", {"tie_word_embeddings": True}), ("gpt2", {})])
def test_built_and_verified(tiny_model, tmp_path, kind, config) -> None:
    model = tiny_model(kind, TASK, **config)
    compress = quantize("weight-only", bits=8) if kind == "llama" else "none"
    built = build(recipe_of(tmp_path, model, compress=compress), tmp_path / "store")  # which verifies
    report = inspect_mar(built.path)
    assert report["runtime"] == "torch" and report["timings"]["unit"] == "tokens"
    assert report["measured_on"]["context"] == 16
    assert set(report["metrics"]["compressed"]) == {"perplexity", "cross_entropy", "agreement"}
    page = summarize(report, built.path)
    assert "tokens/s" in page and "windows of 16" in page
    if compress == "none":
        assert report["metrics"]["original"] == report["metrics"]["compressed"]
    else:  # tied: the table lies there once, one byte a weight
        assert report["size"]["weight_bytes"] < report["size"]["original_bytes"] / 2.5
    with zipfile.ZipFile(built.path) as archive:
        stored = json.loads(archive.read("examples.json"))
    assert len(stored) == 2 and all(example["answer"][0]["generated_text"] is not None for example in stored)
    with extracted(built.path) as (folder, _):
        handler = TextGenerationHandler()
        handler.open(folder, threads=1)
        stored[0]["answer"][0]["generated_text"] += "x"
        assert check_examples(handler, stored, 0.001) == [
            "example 0 alone differs by inf, allowed 0.001",
            "example 0 in a batch differs by inf, allowed 0.001",
        ]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", DECODERS)
def test_an_exported_model_comes_back_bit_for_bit(tiny_model, tmp_path, kind, tied) -> None:
    model = load_model(tiny_model(kind, TASK, tie_word_embeddings=tied), TASK)
    export_packed(model, None, tmp_path)
    loaded = load_decoder(tmp_path, {"config": "config.json", "model": "model.safetensors"})
    assert (loaded.model.lm_head.weight is loaded.model.get_input_embeddings().weight) == tied
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.model.state_dict()[name]), name
    ids = torch.arange(5, 25).reshape(2, 10)
    with torch.no_grad():
        assert torch.equal(DecoderWithHead(model)(ids), loaded(ids))


def test_retraining_and_the_gate(tiny_model, tmp_path) -> None:
    model = tiny_model("llama", TASK)
    retrain = [{"retrain": {"epochs": 1, "learning_rate": 0.01, "teacher": "none"}}]
    built = build(recipe_of(tmp_path, model, compress=retrain), tmp_path / "store")
    report = inspect_mar(built.path)
    stage = report["stages"][0]["metrics"]
    assert stage["after"]["perplexity"] < stage["before"]["perplexity"]
    assert report["metrics"]["compressed"]["perplexity"] == pytest.approx(stage["after"]["perplexity"], rel=1e-4)
    gate = {"max_increase": {"perplexity": 0.0}, "min": {"agreement": 1.0}}
    with pytest.raises(GateFailed) as failed:
        build(recipe_of(tmp_path, model, compress=retrain, gate=gate), tmp_path / "other")
    assert any("min.agreement" in problem for problem in failed.value.problems)
    assert not list((tmp_path / "other").glob("*.mar"))


MISTAKES = [
    ({"data": {"context": 1}}, "data.context must be an integer from 2 to 100000"),
    ({"serve": {"runtime": "openvino"}}, "serves text-generation with torch, not openvino"),
    ({"serve": {"runtime": "onnxruntime"}}, "serves text-generation with torch, not onnxruntime"),
    ({"compress": quantize("static-int8")}, "quantize/static-int8 computes in int8 on onnxruntime or openvino"),
    ({"data": {"columns": {"text": 0, "label": 1}}}, "data.columns.label says nothing to a language model"),
    ({"gate": {"max_drop": {"perplexity": 0.1}}}, "perplexity is better when lower: bound it with max_increase"),
    ({"gate": {"max_drop": {"accuracy": 0.1}}}, "unknown metric 'accuracy' for this task"),
    ({"data": {"validation": "data.tsv"}}, "data.tsv is a table; a language model's data is plain text"),
]


@pytest.mark.parametrize(("more", "message"), MISTAKES, ids=[message[:40] for _, message in MISTAKES])
def test_mistakes_are_found_when_the_recipe_is_read(tiny_model, tmp_path, more, message) -> None:
    (tmp_path / "data.tsv").write_text("good\t1\n")
    with pytest.raises(RecipeError) as refused:
        recipe_of(tmp_path, tiny_model("llama", TASK), **more)
    assert any(message in problem for problem in refused.value.problems), refused.value.problems


def test_mistakes_that_the_model_and_the_text_show(tiny_model, tmp_path) -> None:
    model = tiny_model("llama", TASK)
    recipe = recipe_of(tmp_path, model, data={"context": 65}, serve={"max_length": 65})
    with pytest.raises(RecipeError) as refused:
        check(recipe)
    problems = "\n".join(refused.value.problems)
    assert "data.context is 65" in problems and "has positions for 64 tokens: set data.context to at most" in problems
    assert "serve.max_length is 65" in problems
    (tmp_path / "short.txt").write_text("a film")
    with pytest.raises(RecipeError, match="does not fit") as refused:
        check(recipe_of(tmp_path, model, data={"validation": "short.txt"}))
    assert "data.validation: the text is shorter than one window" in "\n".join(refused.value.problems)


def test_context_is_for_language_models(tiny_model, tmp_path) -> None:
    with pytest.raises(RecipeError) as refused:
        recipe_of(tmp_path, tiny_model(), task="text-classification")
    assert any("data.context is for text-generation" in problem for problem in refused.value.problems)


def test_init_writes_a_recipe_that_checks(tiny_model, tmp_path) -> None:
    text = write_recipe(tiny_model("gpt2", TASK))
    (tmp_path / "recipe.yaml").write_text(text)
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert (recipe.task, recipe.serve.runtime, recipe.serve.max_length) == (TASK, "torch", 64)
    (tmp_path / "train.txt").write_text("x")
    (tmp_path / "validation.txt").write_text("x")
    blocks, uncomment = [], False
    for line in text.splitlines():
        uncomment = line.startswith(("# data:", "# gate:")) or (uncomment and line.startswith("#  "))
        blocks.append(line.removeprefix("# ") if uncomment else line)
    (tmp_path / "recipe.yaml").write_text("\n".join(blocks))
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert recipe.data.context == 64 and recipe.gate.max_increase == {"perplexity": 0.02}
