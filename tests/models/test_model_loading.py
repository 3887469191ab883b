"""Loading a model: what of the weight files and config.json must agree, and in which float type it comes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from model_directories import edit, refused, rewrite
from safetensors.numpy import load_file
from task_models import inspect_model, load_model, skeleton

from archiver.errors import UnsupportedModelError
from archiver.models.facts import UNBOUNDED

TASKS = ["text-classification", "feature-extraction"]


@pytest.fixture
def copy(tiny_model, tmp_path):
    """Factory: a tiny model's directory that the test may change."""

    def copy(kind: str = "bert", task: str = "text-classification", **config) -> Path:
        return Path(shutil.copytree(tiny_model(kind, task, **config), tmp_path / "model"))

    return copy


def test_loading_refuses_missing_surplus_and_misshapen_weights(copy) -> None:
    path = copy()
    dense = "bert.encoder.layer.1.output.dense"

    def damage(tensors) -> None:
        tensors["bert.encoder.layer.2.output.dense.weight"] = tensors.pop(f"{dense}.weight")
        tensors[f"{dense}.bias"] = np.zeros(31, np.float32)

    rewrite(path, damage)
    with pytest.raises(UnsupportedModelError, match="its weights and config.json differ:") as caught:
        load_model(path, "text-classification")
    assert caught.value.problems == [
        f"{dense}.weight is missing and would be random",
        f"{dense}.bias is [31] in the file, [32] by config.json",
        "bert.encoder.layer.2.output.dense.weight is in the file and has no place by config.json",
    ]
    # The same before anything is loaded.
    assert refused(path, "text-classification").splitlines() == caught.value.problems


def test_a_config_with_fewer_layers_than_weights_is_refused(copy) -> None:
    path = copy("distilbert", "feature-extraction")
    edit(path / "config.json", n_layers=1)
    with pytest.raises(UnsupportedModelError, match=r"transformer.layer.1.* has no place by config.json"):
        load_model(path, "feature-extraction")


def test_a_missing_pooler_matters_to_classification_alone(copy) -> None:
    path = copy()
    rewrite(path, lambda tensors: [tensors.pop(name) for name in list(tensors) if "pooler" in name])
    load_model(path, "feature-extraction")
    with pytest.raises(UnsupportedModelError, match=r"bert.pooler.dense.bias is missing and would be random"):
        load_model(path, "text-classification")


@pytest.mark.parametrize("kind", ["bert", "qwen3"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_loaded_as_fp32(copy, kind, dtype) -> None:
    import torch
    from safetensors import torch as files

    path = copy(kind)
    half = {name: t.to(getattr(torch, dtype)) for name, t in files.load_file(path / "model.safetensors").items()}
    files.save_file(half, path / "model.safetensors", metadata={"format": "pt"})
    edit(path / "config.json", dtype=dtype)
    facts = inspect_model(path)
    assert (facts.weight_bytes, facts.dtype) == (2 * facts.num_parameters, dtype)
    model = load_model(path, TASKS[0])
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config.dtype == torch.float32
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), half[name].float(), rtol=0, atol=0)
    assert {parameter.dtype for parameter in skeleton(path, TASKS[0]).parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", ["bert", "qwen3"])
def test_weights_count_not_the_type_in_config_json(copy, kind) -> None:
    path = copy(kind)
    edit(path / "config.json", dtype="bfloat16")
    assert inspect_model(path).dtype == "float32"
    stored = load_file(path / "model.safetensors")
    for name, parameter in load_model(path, TASKS[0]).named_parameters():
        np.testing.assert_array_equal(parameter.detach().numpy(), stored[name])


def test_conv1d_of_a_classifier_becomes_linear(copy) -> None:
    import torch
    import transformers

    path = copy("gpt2", "text-classification", num_labels=2)
    model = load_model(path, TASKS[0])
    assert {type(module).__name__ for module in model.modules()} & {"Linear", "Conv1D"} == {"Linear"}
    reference = transformers.AutoModelForSequenceClassification.from_pretrained(path).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    torch.testing.assert_close(model(input_ids=ids).logits, reference(input_ids=ids).logits, rtol=0, atol=1e-5)


def test_tensors_of_no_use_are_passed_over(copy) -> None:
    path = copy("bert", "feature-extraction")
    more = {
        "embeddings.position_ids": np.zeros((1, 64), np.int64),
        "cls.predictions.bias": np.zeros(109, np.float32),
        "qa_outputs.weight": np.zeros((2, 32), np.float32),
    }
    rewrite(path, lambda tensors: tensors.update(more))
    inspect_model(path, "feature-extraction")
    load_model(path, "feature-extraction")
    rewrite(path, lambda tensors: tensors.update({"encoder.layer.0.gate.weight": np.zeros((2, 2), np.float32)}))
    assert "encoder.layer.0.gate.weight is in the file and has no place" in refused(path, "feature-extraction")


def test_integer_weights_are_refused(copy) -> None:
    path = copy()
    rewrite(path, lambda tensors: tensors.update({"bert.extra": np.zeros((2, 2), np.int8)}))
    assert "its weights hold I8 tensors; allowed: F64, F32, F16, BF16" in refused(path)


def test_a_family_that_bounds_no_length(tmp_path, tiny_model) -> None:
    import transformers

    config = transformers.XLNetConfig(vocab_size=124, d_model=32, n_layer=1, n_head=2, d_inner=32)
    transformers.XLNetForSequenceClassification(config).save_pretrained(tmp_path)
    shutil.copy(tiny_model() / "tokenizer.json", tmp_path)
    facts = inspect_model(tmp_path, TASKS[0])
    assert (facts.max_positions, facts.num_layers, facts.vocab_size) == (UNBOUNDED, 1, 124)
    assert facts.pad_token_id == config.pad_token_id
