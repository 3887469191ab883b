"""From a recipe to a verified archive of a language model, and what such a recipe may not say."""

from __future__ import annotations

import asyncio
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from built import build, quantize
from safetensors.torch import load_file, save_file
from task_models import load_model
from text_recipes import TASK, recipe_of
from tiny_models import DECODERS, SENTENCES
from tokenizers import Tokenizer
from torchserve_side import ask

from archiver.errors import GateFailed, RecipeError
from archiver.evaluation import generation_speed
from archiver.export.torch_packed import export_packed
from archiver.packaging.entry import handler_of
from archiver.packaging.mar import extracted
from archiver.pipeline.check import check
from archiver.recipe.load import load_recipe
from archiver.recipe.starter import write_recipe
from archiver.report.inspection import inspect_mar
from archiver.report.summary import summarize
from archiver.runtimes import openvino_text
from archiver.tasks.text.generation import workload as workload_module
from handlers.architecture.outputs.decoder import DecoderWithHead, load_decoder
from handlers.examples import check_examples
from handlers.inputs.text import TextInput

TURNED = [
    *quantize("weight-only", bits=8, group_size=16, rotate=True, targets=["@layers"]),
    *quantize("weight-only", bits=8, targets=["@embeddings", "@head"]),
]
BUILDS = [
    ("auto", "llama", {"tie_word_embeddings": True}, quantize("weight-only", bits=8)),
    ("auto", "gpt2", {}, "none"),
    ("torch", "llama", {"tie_word_embeddings": True}, quantize("weight-only", bits=8)),
    ("auto", "llama", {"tie_word_embeddings": True}, TURNED),
    ("torch", "llama", {"tie_word_embeddings": False}, TURNED),
]


@pytest.mark.parametrize(
    ("runtime", "kind", "config", "compress"), BUILDS, ids=["auto", "auto-gpt2", "torch", "auto-turned", "torch-turned"]
)
def test_built_and_verified(tiny_model, tmp_path, runtime, kind, config, compress) -> None:
    model = tiny_model(kind, TASK, **config)
    recipe = recipe_of(tmp_path, model, compress=compress, serve={"runtime": runtime})
    built = build(recipe, tmp_path / "store")  # which verifies
    report = inspect_mar(built.path)
    assert report["runtime"] == ("torch" if runtime == "torch" else "openvino")
    assert report["timings"]["unit"] == "tokens"
    assert report["measured_on"]["context"] == 16
    assert set(report["metrics"]["compressed"]) == {"perplexity", "cross_entropy", "agreement"}
    page = summarize(report, built.path)
    assert "tokens/s" in page and "windows of 16" in page
    original, compressed = report["metrics"]["original"], report["metrics"]["compressed"]
    if compress == "none":
        assert compressed["agreement"] == 1.0
        assert compressed["perplexity"] == pytest.approx(original["perplexity"], rel=1e-3)
    else:  # tied: the table lies there once, one byte a weight
        assert compressed["perplexity"] == pytest.approx(original["perplexity"], rel=0.05)
        if runtime == "torch":
            assert report["size"]["weight_bytes"] < report["size"]["original_bytes"] / 2.5
    with zipfile.ZipFile(built.path) as archive:
        stored = json.loads(archive.read("examples.json"))
        serving = json.loads(archive.read("serving.json"))
    assert serving["session"]["max_running"] == 32 and serving["chat"] is None
    assert (serving["max_queue"], serving["deadline_s"], serving["max_length"]) == (128, 120.0, 48)
    assert len(stored) == 2 and all(example["answer"][0]["generated_text"] is not None for example in stored)
    with extracted(built.path) as (folder, _):
        handler = handler_of(folder)
        handler.open(folder, threads=1)
        stored[0]["answer"][0]["generated_text"] += "x"
        assert check_examples(handler, stored, 0.001) == [
            "example 0 alone differs by inf, allowed 0.001",
            "example 0 in a batch differs by inf, allowed 0.001",
        ]
        handler.engine.close()


def test_a_bf16_model_that_was_pruned_and_taught_stays_bf16(tiny_model, tmp_path) -> None:
    """Its floats are rounded before they are measured, and half the bytes of fp32 lie in the archive."""
    model = tmp_path / "model"
    shutil.copytree(tiny_model("llama", TASK), model)
    halves = {name: value.bfloat16() for name, value in load_file(model / "model.safetensors").items()}
    save_file(halves, model / "model.safetensors", metadata={"format": "pt"})
    stages = [{"prune": {"method": "structured", "neurons": 0.5}}, {"retrain": {"epochs": 1}}]
    for runtime in ("openvino", "torch"):
        built = build(recipe_of(tmp_path, model, compress=stages, serve={"runtime": runtime}), tmp_path / runtime)
        report = inspect_mar(built.path)
        before, after = report["stages"]
        assert not any("bfloat16" in note for note in before["notes"])
        assert "rounded to the checkpoint's own bfloat16" in after["notes"][-1]
        assert after["weight_bytes"] < 2.3 * after["parameters"]
        with zipfile.ZipFile(built.path) as archive:  # two bytes a number; vectors in four, and the codecs' notes
            (weights,) = (info for info in archive.infolist() if info.filename.endswith(".safetensors"))
            assert weights.file_size < 2.5 * after["parameters"]


def test_a_large_original_is_timed_while_nothing_else_is_in_memory(tiny_model, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(workload_module, "LARGE", 0.0)
    monkeypatch.setattr(openvino_text, "_LARGE", 0.0)
    seen: list[bool] = []
    handlers: list[Any] = []
    rate, speed = generation_speed.original_rate, workload_module.GenerationWorkload.speed

    def original_rate(*arguments: Any) -> float:
        seen.append(hasattr(handlers[0], "backend") or hasattr(handlers[0], "engine"))
        return rate(*arguments)

    def timed(self: Any, handler: Any) -> Any:
        handlers.append(handler)
        return speed(self, handler)

    monkeypatch.setattr(generation_speed, "original_rate", original_rate)
    monkeypatch.setattr(workload_module.GenerationWorkload, "speed", timed)
    recipe = recipe_of(
        tmp_path, tiny_model("llama", TASK), compress=quantize("weight-only"), serve={"runtime": "openvino"}
    )
    built = build(recipe, tmp_path / "store")
    assert seen == [False] and hasattr(handlers[0], "backend")
    assert built.timings["original_per_s"] > 0 and built.timings["compressed_per_s"] > 0


def test_a_chat_template_and_the_serve_keys_go_into_the_archive(tiny_model, tmp_path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model("llama", TASK), model)
    (model / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}")
    serve = {
        "runtime": "openvino",
        "kv_cache": "f32",
        "batch_size": 3,
        "max_queue": 5,
        "deadline_s": 7.5,
        "cache_mb": 1,
    }
    built = build(recipe_of(tmp_path, model, serve=serve), tmp_path / "store")
    with extracted(built.path) as (folder, _):
        serving = json.loads((folder / "serving.json").read_text())
        assert serving["chat"]["template"] == "{{ bos_token }}{{ messages[0].content }}"
        assert serving["chat"]["tokens"]["bos_token"] == "<s>"
        assert (serving["max_queue"], serving["deadline_s"]) == (5, 7.5)
        assert (serving["session"]["kv_cache"], serving["session"]["max_running"]) == ("f32", 3)
        requirements = (folder / "requirements.txt").read_text()
        assert "jinja2" in requirements and "llguidance>=" in requirements
        config = yaml.safe_load((folder / "model-config.yaml").read_text())
        assert config["batchSize"] == 1 and config["asyncCommunication"] is True
        handler = handler_of(folder)
        handler.open(folder, threads=1)
        body = {"messages": [{"role": "user", "content": "this film"}], "max_tokens": 3, "temperature": 0}
        chat = asyncio.run(ask(handler, {"body": body})).json
        (plain,) = handler.respond([TextInput("this film")], {"max_new_tokens": 3, "return_full_text": False})
        assert chat["choices"][0]["message"]["content"] == plain[0]["generated_text"]
        handler.engine.close()


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
    retrain = [{"retrain": {"epochs": 1, "learning_rate": 0.01, "teacher": "none", "measure": True}}]
    built = build(recipe_of(tmp_path, model, compress=retrain), tmp_path / "store")
    report = inspect_mar(built.path)
    stage = report["stages"][0]["metrics"]
    assert stage["after"]["perplexity"] < stage["before"]["perplexity"]
    # The runtime keeps keys and values in 8 bits.
    assert report["metrics"]["compressed"]["perplexity"] == pytest.approx(stage["after"]["perplexity"], rel=1e-2)
    gate = {"max_increase": {"perplexity": 0.0}, "min": {"agreement": 1.0}}
    with pytest.raises(GateFailed, match="gate") as failed:
        build(recipe_of(tmp_path, model, compress=retrain, gate=gate), tmp_path / "other")
    assert any("min.agreement" in problem for problem in failed.value.problems)
    assert not list((tmp_path / "other").glob("*.mar"))


def fitted(source: Path, folder: Path) -> Path:
    """A model that knows the sentences: what is done to it shows in its perplexity."""
    shutil.copytree(source, folder)
    tokenizer, model = Tokenizer.from_file(str(source / "tokenizer.json")), load_model(source, TASK)
    ids = torch.tensor([tokenizer.encode(" , ".join(SENTENCES * 4)).ids[:120]]).reshape(6, 20)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)  # type: ignore[operator]
    return folder


def test_a_gate_on_perplexity(tiny_model, tmp_path) -> None:
    model = fitted(tiny_model("llama", TASK), tmp_path / "fitted")
    coarse, gate = quantize("weight-only", bits=2, group_size=32), {"max_increase": {"perplexity": 0.02}}
    with pytest.raises(GateFailed, match="gate") as failed:
        build(recipe_of(tmp_path, model, compress=coarse, gate=gate), tmp_path / "store")
    for runtime, problem in zip(("openvino", "torch"), failed.value.problems, strict=True):  # auto tried both
        assert problem.startswith(f"{runtime}: max_increase.perplexity: ") and "0.02 allowed" in problem
    assert not list((tmp_path / "store").glob("*.mar"))
    build(recipe_of(tmp_path, model, compress=quantize("weight-only", bits=8), gate=gate), tmp_path / "store")
    assert list((tmp_path / "store").glob("*.mar"))


MISTAKES = [
    ({"data": {"context": 1}}, "data.context must be an integer from 2 to 100000"),
    ({"serve": {"runtime": "onnxruntime"}}, "text-generation is not served with onnxruntime: use auto, openvino, torc"),
    ({"serve": {"runtime": "openvino", "device": "cuda"}}, "serve.device cuda cannot be run by openvino"),
    ({"serve": {"draft": "nowhere"}}, "serve.draft is 'nowhere': a folder with a smaller model of the same tokens is"),
    ({"serve": {"draft": 5}}, "serve.draft is 5: a folder with a smaller model"),
    ({"serve": {"deadline_s": 0}}, "serve.deadline_s must be a number above 0 and at most 86400; found 0"),
    ({"serve": {"kv_cache": "x"}}, "serve.kv_cache must be one of u8, bf16, f16, f32; found 'x'"),
    ({"serve": {"max_queue": -1}}, "serve.max_queue must be an integer from 0 to 100000; found -1"),
    ({"serve": {"cache_mb": 0}}, "serve.cache_mb must be an integer from 1 to 900000, or auto; found 0"),
    ({"serve": {"prompt_lookup": "often"}}, "serve.prompt_lookup must be "),
    ({"serve": {"assistant_tokens": 65}}, "serve.assistant_tokens must be an integer from 1 to 64; found 65"),
    ({"compress": quantize("static-int8")}, "quantize/static-int8 is for encoders; the runtimes of text-generation qu"),
    ({"data": {"columns": {"text": 0, "label": 1}}}, "data.columns.label says nothing to a language model"),
    ({"gate": {"max_drop": {"perplexity": 0.1}}}, "perplexity is better when lower: bound it with max_increase"),
    ({"gate": {"max_drop": {"accuracy": 0.1}}}, "unknown metric 'accuracy' for this task"),
    ({"data": {"validation": "data.tsv"}}, "data.tsv is a table; a language model's data is plain text"),
]


@pytest.mark.parametrize(("more", "message"), MISTAKES, ids=[message[:40] for _, message in MISTAKES])
def test_mistakes_are_found_when_the_recipe_is_read(tiny_model, tmp_path, more, message) -> None:
    (tmp_path / "data.tsv").write_text("good\t1\n")
    with pytest.raises(RecipeError, match="has 1 mistake:") as refused:
        recipe_of(tmp_path, tiny_model("llama", TASK), **more)
    assert any(message in problem for problem in refused.value.problems), refused.value.problems


def test_all_mistakes_of_serve_are_listed(tiny_model, tmp_path) -> None:
    serve = {"draft": "nowhere", "deadline_s": 0, "kv_cache": "x"}
    with pytest.raises(RecipeError, match="has 3 mistakes:") as refused:
        recipe_of(tmp_path, tiny_model("llama", TASK), serve=serve)
    assert [any(f"serve.{key}" in problem for problem in refused.value.problems) for key in serve] == [True] * 3


def test_mistakes_that_the_model_and_the_text_show(tiny_model, tmp_path) -> None:
    model = tiny_model("llama", TASK)
    recipe = recipe_of(tmp_path, model, data={"context": 65}, serve={"max_length": 65})
    with pytest.raises(RecipeError, match="does not fit") as refused:
        check(recipe)
    problems = "\n".join(refused.value.problems)
    assert "data.context is 65" in problems and "has positions for 64 tokens: set data.context to at most" in problems
    assert "serve.max_length is 65" in problems
    (tmp_path / "short.txt").write_text("a film")
    with pytest.raises(RecipeError, match="does not fit") as refused:
        check(recipe_of(tmp_path, model, data={"validation": "short.txt"}))
    assert "data.validation: the text is shorter than one window" in "\n".join(refused.value.problems)


def test_context_is_for_language_models(tiny_model, tmp_path) -> None:
    with pytest.raises(RecipeError, match="mistake") as refused:
        recipe_of(tmp_path, tiny_model(), task="text-classification")
    assert any("data.context is for text-generation" in problem for problem in refused.value.problems)


def test_init_writes_a_recipe_that_checks(tiny_model, tmp_path) -> None:
    text = write_recipe(tiny_model("gpt2", TASK))
    (tmp_path / "recipe.yaml").write_text(text)
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert (recipe.task, recipe.serve.runtime, recipe.serve.max_length) == (TASK, "auto", 64)
    (tmp_path / "train.txt").write_text("x")
    (tmp_path / "validation.txt").write_text("x")
    blocks, uncomment = [], False
    for line in text.splitlines():
        uncomment = line.startswith(("# data:", "# gate:")) or (uncomment and line.startswith("#  "))
        blocks.append(line.removeprefix("# ") if uncomment else line)
    (tmp_path / "recipe.yaml").write_text("\n".join(blocks))
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert recipe.data.context == 64 and recipe.gate.max_increase == {"perplexity": 0.02}
