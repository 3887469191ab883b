"""A model whose weights stay in its files: the same answers, and no weight in memory but the one that is used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from archiver.export.graph.integer_constants import planned_modules, with_int8_rows
from archiver.host import drop_mapped
from archiver.models.load import load_model
from archiver.models.stored import stored_tensors, weights_of
from archiver.models.streamed import parked, streamed_copy
from archiver.state.plan import QuantizationPlan

TASK = "AutoModelForCausalLM"
IDS = torch.arange(4, 20).reshape(2, 8)


def logits(model) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=IDS, use_cache=False).logits


def held(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_answers_and_nothing_held(tiny_model, tmp_path, tied, dtype) -> None:
    path = tiny_model("llama", "text-generation", tie_word_embeddings=tied)
    folder = tmp_path / "model"
    folder.mkdir()
    for file in path.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = load_file(path / "model.safetensors")
    save_file(
        {name: w.to(getattr(torch, dtype)) for name, w in weights.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    model = load_model(folder, TASK)
    streamed = streamed_copy(model, folder)
    assert held(streamed.model) == 0
    assert torch.equal(logits(streamed.model), logits(model))
    assert held(streamed.model) == 0
    with streamed.resident() as whole:
        assert held(whole) == held(model)
        assert torch.equal(logits(whole), logits(model))
    assert held(streamed.model) == 0
    assert streamed.same(model)
    with torch.no_grad():
        model.lm_head.weight[3, 3] += 1
    before = logits(streamed.model)
    assert not streamed.same(model) and not torch.equal(before, logits(model))


def test_a_weight_that_the_files_have_not_stays_in_memory(tiny_model) -> None:
    path = tiny_model("llama", "text-generation", tie_word_embeddings=False)
    model = load_model(path, TASK)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    streamed = streamed_copy(model, path)
    assert held(streamed.model) == model.lm_head.weight.numel()
    assert torch.equal(logits(streamed.model), logits(model)) and streamed.same(model)


def test_stored_tensors_by_hand(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({}))
    table = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.bfloat16)
    save_file({"a": table, "ids": torch.tensor([1, 2]), "b": torch.tensor([7.0])}, tmp_path / "model.safetensors")
    found = stored_tensors(tmp_path)
    assert found.keys() == {"a", "b"}
    assert found["a"].read().tolist() == [[1.0, -2.0], [0.5, 3.0]] and found["a"].read().dtype == torch.float32
    assert found["b"].read().tolist() == [7.0]
    assert found["a"][...].dtype == torch.bfloat16 and found["a"][...].tolist() == [[1.0, -2.0], [0.5, 3.0]]
    assert (found["a"].get_dtype(), found["a"].get_shape()) == ("BF16", [2, 2])
    assert {name: tensor[...].tolist() for name, tensor in weights_of(tmp_path).items()} == {
        "a": [[1.0, -2.0], [0.5, 3.0]], "ids": [1, 2], "b": [7.0]
    }  # fmt: skip
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(OSError, match="model.safetensors ends within a tensor"):
        [tensor.read() for tensor in found.values()]


@pytest.mark.parametrize("tied", [True, False])
def test_a_parked_model_is_out_of_memory_and_answers_as_before(tiny_model, tmp_path, tied) -> None:
    """What a stage has changed lies in a file of its own, all else in the model's."""
    path = tiny_model("llama", "text-generation", tie_word_embeddings=tied)
    model = load_model(path, TASK)
    changed = model.model.layers[0].mlp.down_proj.weight
    with torch.no_grad():
        changed.mul_(2)
    expected, weights = logits(model), {name: w.clone() for name, w in model.state_dict().items()}
    streamed = parked(model, path, tmp_path / "weights")
    assert streamed.model is model and held(model) == 0
    assert (tmp_path / "weights").stat().st_size == changed.nbytes
    assert torch.equal(logits(model), expected) and held(model) == 0
    for inside in (streamed.resident, streamed.mapped):
        with inside():
            assert all(torch.equal(w, weights[name]) for name, w in model.state_dict().items())
            assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
            assert torch.equal(logits(model), expected)
            drop_mapped()
            assert all(torch.equal(w, weights[name]) for name, w in model.state_dict().items())
        assert held(model) == 0


def test_int8_rows_of_a_parked_model_are_rounded_where_they_are_used(tiny_model, tmp_path) -> None:
    """The parked model has its empty weights back afterwards, and computes as before."""
    path = tiny_model("llama", "text-generation", tie_word_embeddings=False)
    model = load_model(path, TASK)
    plan = QuantizationPlan("weight-only", ("model.layers.0.mlp.up_proj", "lm_head"), ())
    with with_int8_rows(planned_modules(model, plan)):
        expected = logits(model)
    plain = logits(model)
    assert not torch.equal(plain, expected)
    streamed = parked(model, path, tmp_path / "weights")
    with streamed.mapped():
        modules = planned_modules(model, plan)
    with with_int8_rows(modules):
        assert torch.equal(logits(model), expected) and held(model) == 0
    assert torch.equal(logits(model), plain) and held(model) == 0
