"""Decoders: the facts of a directory, and loading it so that every method meets torch's own linear layers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from task_models import inspect_model, load_model, skeleton
from tiny_models import DECODERS

from archiver.errors import UnsupportedModelError
from archiver.models.facts import UNBOUNDED
from archiver.tasks import default_task
from handlers.architecture.conv1d import conv1d_to_linear

TASK = "text-generation"


def refused(path: Path, task: str | None = TASK) -> str:
    with pytest.raises(UnsupportedModelError, match="cannot be used:") as caught:
        inspect_model(path, task)
    return "\n".join(caught.value.problems)


def changed(path: Path, folder: Path, **config: object) -> Path:
    """A copy of a model directory with other values in config.json; None takes a key away."""
    copy = folder / "copy"
    shutil.copytree(path, copy)
    content = json.loads((copy / "config.json").read_text()) | config
    (copy / "config.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return copy


FAMILIES = (*DECODERS, "qwen3", "gemma3_text", "phi3", "gpt_neox")


@pytest.mark.parametrize("kind", FAMILIES)
def test_facts(tiny_model, kind) -> None:
    facts = inspect_model(tiny_model(kind, TASK), TASK)
    assert facts.causal and default_task(tiny_model(kind, TASK)) == TASK
    assert (facts.num_layers, facts.hidden_size, facts.max_positions, facts.vocab_size) == (2, 32, 64, 400)
    assert (facts.pad_token_id, facts.end_token_ids, facts.id2label) == (1, (2,), {})


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", FAMILIES)
def test_loads_as_transformers_does(tiny_model, kind, tied) -> None:
    path = tiny_model(kind, TASK, tie_word_embeddings=tied)
    model = load_model(path, TASK)
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        path, attn_implementation="eager", dtype=torch.float32
    ).eval()
    ids = torch.arange(5, 25).reshape(2, 10)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, reference(ids).logits, rtol=0, atol=1e-5)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    assert not any(type(module).__name__ == "Conv1D" for module in model.modules())
    with torch.device("meta"):
        bare = skeleton(path, TASK)
    assert {n: t.shape for n, t in bare.state_dict().items()} == {n: t.shape for n, t in model.state_dict().items()}


def test_conv1d_by_hand() -> None:
    layer = transformers.pytorch_utils.Conv1D(3, 2)  # 2 in, 3 out
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
        layer.bias.copy_(torch.tensor([0.5, 0.0, -0.5]))
    holder = conv1d_to_linear(torch.nn.Sequential(layer))
    assert isinstance(holder[0], torch.nn.Linear) and holder[0].weight.is_contiguous()
    assert (holder[0].in_features, holder[0].out_features) == (2, 3)
    assert holder(torch.tensor([[1.0, 10.0]])).tolist() == [[41.5, 52.0, 62.5]]


def test_a_file_with_a_head_of_its_own_keeps_it(tiny_model, tmp_path) -> None:
    path = changed(tiny_model("llama", TASK, tie_word_embeddings=False), tmp_path, tie_word_embeddings=True)
    model = load_model(path, TASK)
    stored = load_file(path / "model.safetensors")
    torch.testing.assert_close(model.lm_head.weight, stored["lm_head.weight"], rtol=0, atol=0)
    assert model.config.tie_word_embeddings is False


def test_what_cannot_be_used(tiny_model, tmp_path) -> None:
    tied = tiny_model("llama", TASK, tie_word_embeddings=True)
    found = refused(changed(tied, tmp_path / "a", tie_word_embeddings=False))
    assert "it has no head for text-generation (lm_head.weight; its architecture is LlamaForCausalLM)" in found
    assert "max_position_embeddings is 1; allowed" in refused(changed(tied, tmp_path / "b", max_position_embeddings=1))
    assert "cross-attention" in refused(changed(tied, tmp_path / "c", add_cross_attention=True))
    assert "it has no head for text-classification (score.weight; its architecture is LlamaForCausalLM)" in refused(
        tied, "text-classification"
    )
    assert "model_type 'bert' is an encoder, whose tokens see those behind them too: text-generation needs" in refused(
        tiny_model("bert")
    )
    assert "transformers has no AutoModelForCausalLM for model_type 'distilbert'" in refused(tiny_model("distilbert"))
    # A classifier on top of a language model predicts no tokens.
    assert "it has no head for text-generation (lm_head.weight" in refused(tiny_model("qwen3", "text-classification"))


def test_positions_that_nothing_bounds(tiny_model, tmp_path) -> None:
    path = tiny_model("bloom", TASK, hidden_size=32, n_layer=2, n_head=4, max_position_embeddings=None)
    assert inspect_model(changed(path, tmp_path), TASK).max_positions == UNBOUNDED


def test_attention_that_is_made_bidirectional_is_no_language_model(tiny_model, tmp_path) -> None:
    path = changed(tiny_model("gemma3_text", TASK), tmp_path, use_bidirectional_attention=True)
    assert "model_type 'gemma3_text' is an encoder" in refused(path)
    facts = inspect_model(path, "feature-extraction")
    assert (facts.causal, facts.pooling.mode) == (False, "mean")


def test_a_surplus_layer_is_refused(tiny_model, tmp_path) -> None:
    path = changed(tiny_model("llama", TASK), tmp_path)
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"] = torch.zeros(64, 32)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedModelError, match="differ") as caught:
        load_model(path, TASK)
    assert caught.value.problems == ["model.layers.2.mlp.up_proj.weight is in the file and has no place by config.json"]
    # What older versions of transformers saved beside the weights is none.
    del tensors["model.layers.2.mlp.up_proj.weight"]
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    assert load_model(path, TASK)


def test_end_tokens_of_generation_config_win(tiny_model, tmp_path) -> None:
    path = changed(tiny_model("qwen2", TASK), tmp_path)
    (path / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    assert inspect_model(path, TASK).end_token_ids == (2, 7)
    (path / "generation_config.json").write_text('{"eos_token_id": ["x"]}')
    assert "eos_token_id is ['x']; allowed: a token's id, or a list of ids" in refused(path)


def test_experts_are_matched_as_transformers_fuses_them(tiny_model, tmp_path) -> None:
    """A file holds each expert's matrices, the model one tensor of all: a missing one is found, a surplus one too."""
    sizes = {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 8}
    path = changed(tiny_model("mixtral", TASK, **sizes), tmp_path)
    tensors = load_file(path / "model.safetensors")
    assert any("experts.1.w1" in name for name in tensors)
    assert inspect_model(path, TASK).num_parameters == sum(tensor.numel() for tensor in tensors.values())
    load_model(path, TASK)
    tensors["model.layers.2.block_sparse_moe.gate.weight"] = torch.zeros(2, 32)
    del tensors["model.layers.0.block_sparse_moe.experts.1.w2.weight"]
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    found = refused(path)
    assert "model.layers.2.mlp.gate.weight is in the file and has no place by config.json" in found
    assert "model.layers.0.mlp.experts.down_proj is [1, 32, 64] in the file, [2, 32, 64] by config.json" in found
