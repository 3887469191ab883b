"""An adapter's folder: what is read of it, and everything that is refused before any work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from built import quantize
from lora import write_lora
from safetensors.torch import load_file, save_file
from task_models import load_model, skeleton
from text_recipes import TASK, recipe_of

from archiver.errors import RecipeError, UnsupportedModelError
from archiver.models.adapters import adapter_problems, linear_layers, misfits, read_lora
from archiver.pipeline.check import check
from handlers.storage.adapters import side_by_side


@pytest.fixture(scope="module")
def model(tiny_model) -> torch.nn.Module:
    path = tiny_model("llama", TASK)
    with torch.device("meta"):
        return skeleton(path, TASK)


def test_two_adapters_on_one_layer_by_hand() -> None:
    # W·x aside: x = (1, 2); a: A = (1, 0), B = (3; 0), alone 1·3 = 3 on the first output; b: rank 2.
    one = {"l": (np.array([[1.0, 0.0]], np.float32), np.array([[3.0], [0.0]], np.float32))}
    two = {"l": (np.eye(2, dtype=np.float32), np.array([[0.0, 1.0], [10.0, 0.0]], np.float32))}
    layer = side_by_side({"a": one, "b": two})["l"]
    assert layer.owners.tolist() == [1, 2, 2]
    assert layer.masks(2).tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 1]]
    x = np.array([1.0, 2.0], np.float32)
    found = [(layer.b @ (mask * (layer.a @ x))).tolist() for mask in layer.masks(2)]
    assert found == [[0, 0], [3, 0], [2, 10]]


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 2.0),
        ({"use_rslora": True}, 4.0),
        ({"alpha_pattern": {"q_proj": 2}}, 0.5),
        ({"alpha_pattern": {"roj": 2}}, 2.0),  # no whole part of the name
        ({"alpha_pattern": {r"layers\.\d.self_attn.q_proj": 1}}, 0.25),
    ],
)
def test_the_scale(tmp_path, model, config, scale) -> None:
    folder = write_lora(tmp_path / "x", model, seed=0, rank=4, alpha=8, targets=["q_proj"], **config)
    files, problems = read_lora(folder)
    assert problems == [] and files is not None and files.rank == 4
    stored = load_file(folder / "adapter_model.safetensors")
    for layer, (a, b) in files.load().items():
        assert np.array_equal(a, stored[f"base_model.model.{layer}.lora_A.weight"].numpy())
        assert np.array_equal(b, stored[f"base_model.model.{layer}.lora_B.weight"].numpy() * np.float32(scale))


def without_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def renamed(old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        save_file({name.replace(old, new): tensor for name, tensor in load_file(path).items()}, path)

    return change


def broken(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(b"[")


REFUSED: list[tuple[dict[str, Any], Callable[[Path], Any] | None, str]] = [
    ({"peft_type": "LOHA"}, None, "peft_type is 'LOHA'; allowed: LORA"),
    ({"use_dora": True}, None, "it uses DoRA, which is not supported"),
    ({"modules_to_save": ["lm_head"]}, None, "it uses whole modules of its own (modules_to_save)"),
    ({"trainable_token_indices": [1]}, None, "it uses embeddings of its own (trainable_token_indices)"),
    ({"bias": "all"}, None, "bias is 'all'; allowed: none"),
    ({"task_type": "SEQ_CLS"}, None, "task_type is 'SEQ_CLS'; allowed: CAUSAL_LM"),
    ({"init_lora_weights": "pissa"}, None, "init_lora_weights is 'pissa', which changes the model's own weights"),
    ({"use_wonder": True}, None, "adapter_config.json has use_wonder, which is not known here"),
    ({"lora_alpha": "much"}, None, "lora_alpha of model.layers.0.self_attn.q_proj is 'much'; a number is expected"),
    ({"r": 5}, None, "has rank 4 in adapter_model.safetensors and 5 by adapter_config.json"),
    ({"rank_pattern": {"(": 3}}, None, "rank_pattern or alpha_pattern has an expression that is none"),
    ({}, without_weights, "adapter_model.bin is a pickle, which is not opened"),
    ({}, renamed("lora_A.weight", "lora_embedding_A"), "lora_embedding_A is for embeddings"),
    ({}, renamed("lora_A.weight", "lora_magnitude_vector"), "is no lora_A or lora_B of a layer"),
    ({}, broken("adapter_config.json"), "adapter_config.json or adapter_model.safetensors cannot be read"),
    ({}, broken("adapter_model.safetensors"), "adapter_config.json or adapter_model.safetensors cannot be read"),
]


@pytest.mark.parametrize(("config", "change", "message"), REFUSED, ids=[message[:40] for *_, message in REFUSED])
def test_what_is_refused(tmp_path, model, config, change, message) -> None:
    folder = write_lora(tmp_path / "x", model, seed=0, targets=["q_proj"], **config)
    if change is not None:
        change(folder)
    files, problems = read_lora(folder)
    assert files is None and any(message in problem for problem in problems), problems


def test_ranks_are_bounded(tmp_path, model) -> None:
    files, problems = read_lora(write_lora(tmp_path / "x", model, seed=0, rank=257, targets=["q_proj"]))
    assert files is None and "has rank 257; at most 256 is allowed" in problems[0]
    many = {str(n): write_lora(tmp_path / str(n), model, seed=n, rank=256, targets=["q_proj"]) for n in range(5)}
    (problem,) = adapter_problems(many, model, linear_layers(model))
    assert "have ranks of 1280 together; at most 1024 are allowed" in problem


def test_what_does_not_fit_the_model(tmp_path, model, tiny_model) -> None:
    wider = load_model(tiny_model("llama", TASK, intermediate_size=96), TASK)
    files, _ = read_lora(write_lora(tmp_path / "a", wider, seed=0, targets=["up_proj"]))
    assert files is not None
    assert (
        misfits(files, model)[0] == "model.layers.0.mlp.up_proj is [64, 32] in the model, the adapter is for [96, 32]"
    )
    files, _ = read_lora(write_lora(tmp_path / "b", model, seed=0, targets=["lm_head"]))
    assert files is not None
    assert misfits(files, model) == [
        "lm_head is the model's table of tokens or its head, which cannot have an adapter here"
    ]
    deeper = load_model(tiny_model("llama", TASK, num_hidden_layers=3), TASK)
    files, _ = read_lora(write_lora(tmp_path / "c", deeper, seed=0, targets=["q_proj"]))
    assert files is not None
    assert misfits(files, model) == ["the model has no layer model.layers.2.self_attn.q_proj"]


def test_numbers_that_are_none(tmp_path, model) -> None:
    folder = write_lora(tmp_path / "x", model, seed=0, size=float("inf"), targets=["q_proj"])
    files, _ = read_lora(folder)
    assert files is not None
    with pytest.raises(UnsupportedModelError, match="has values that are not finite"):
        files.load()


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"adapters": []}, "serve.adapters must be a mapping {name: folder} of 1 to 64 LoRA adapters"),
    ({"adapters": {"a": "nowhere"}}, "serve.adapters.a is 'nowhere': a folder with a LoRA adapter is expected"),
    ({"adapters": {"a/b": "lora"}}, "serve.adapters: the name 'a/b' is not allowed"),
    ({"adapters": {"writer": "lora"}}, "serve.adapters: writer is the name of the model itself: choose another"),
    (
        {"adapters": {"a": "lora"}, "runtime": "vllm", "device": "cuda"},
        "serve.adapters: vllm serves no adapters: use openvino or torch, or remove them",
    ),
]


@pytest.mark.parametrize(("serve", "message"), MISTAKES, ids=[message[:40] for _, message in MISTAKES])
def test_mistakes_of_the_recipe(tmp_path, model, tiny_model, serve, message) -> None:
    write_lora(tmp_path / "lora", model, seed=0, targets=["q_proj"])
    with pytest.raises(RecipeError, match="mistake") as refused:
        recipe_of(tmp_path, tiny_model("llama", TASK), serve=serve)
    assert any(message in problem for problem in refused.value.problems), refused.value.problems


def test_no_adapters_on_turned_hidden_states(tmp_path, model, tiny_model) -> None:
    write_lora(tmp_path / "lora", model, seed=0, targets=["q_proj"])
    compress = quantize("weight-only", bits=4, group_size=16, rotate=True)
    with pytest.raises(RecipeError, match="mistake") as refused:
        recipe_of(tmp_path, tiny_model("llama", TASK), serve={"adapters": {"a": "lora"}}, compress=compress)
    assert "turns hidden states, and adapters were trained on those of the original" in "".join(refused.value.problems)


def test_check_looks_at_the_model_as_the_stages_leave_it(tmp_path, model, tiny_model) -> None:
    write_lora(tmp_path / "lora", model, seed=0, targets=["q_proj"])
    source, serve = tiny_model("llama", TASK), {"adapters": {"a": "lora"}}
    check(recipe_of(tmp_path, source, serve=serve, compress=quantize("weight-only")))
    cut = [{"prune": {"method": "structured", "layers": [0]}}]
    with pytest.raises(RecipeError, match="does not fit") as refused:
        check(recipe_of(tmp_path, source, serve=serve, compress=cut))
    problems = "\n".join(refused.value.problems)
    assert "serve.adapters.a: the model has no layer model.layers.1.self_attn.q_proj" in problems
    assert "compress takes away or renames linear layers" in problems
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(RecipeError, match="does not fit") as refused:
        check(recipe_of(tmp_path, source, serve=serve))
    assert any("serve.adapters.a: it uses DoRA" in problem for problem in refused.value.problems)
