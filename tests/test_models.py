"""Model directories: what is found in them without loading, what is refused, and what loading checks."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from archiver.errors import RecipeError, UnsupportedModelError
from archiver.models.load import (
    check_max_length,
    default_task,
    inspect_model,
    load_model,
    resolve_model,
    tokenizer_files,
)
from archiver.models.safetensors_header import read_header

KINDS = ["bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra"]
TASKS = ["text-classification", "feature-extraction"]


@pytest.fixture
def copy(tiny_model, tmp_path):
    """Factory: a tiny model's directory that the test may change."""

    def copy(kind: str = "bert", task: str = "text-classification", **config) -> Path:
        return Path(shutil.copytree(tiny_model(kind, task, **config), tmp_path / "model"))

    return copy


def edit(path: Path, **changes) -> None:
    """Change keys of a JSON file; None removes one."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def refused(path: Path, task: str | None = None) -> str:
    with pytest.raises(UnsupportedModelError, match="cannot be used:") as caught:
        inspect_model(path, task)
    assert caught.value.exit_code == 2
    return "\n".join(caught.value.problems)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", TASKS)
def test_facts_agree_with_the_loaded_model(tiny_model, kind, task) -> None:
    import torch

    path = tiny_model(kind, task)
    facts = inspect_model(path, task)
    model = load_model(resolve_model(path), task)
    assert not model.training and {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config._attn_implementation == "eager"
    assert (facts.model_type, facts.num_layers) == (kind, 2)
    assert facts.weight_bytes == 4 * facts.num_parameters
    assert default_task(facts) == task
    assert facts.id2label == ({0: "LABEL_0", 1: "LABEL_1"} if task == "text-classification" else {})
    assert facts.max_positions == 64
    assert facts.pad_token_id == (1 if "bert" in kind and kind not in ("bert", "distilbert") else 0)
    assert facts.has_token_type_ids == (kind in ("bert", "electra"))
    if task == "text-classification":
        assert facts.num_parameters == sum(parameter.numel() for parameter in model.parameters())
        # The longest input that the facts allow runs, one more does not.
        ids = torch.full((1, facts.max_positions), 5)
        assert model(input_ids=ids).logits.shape == (1, 2)
        # An embedding has no such row, or what is added to it is shorter.
        with pytest.raises((IndexError, RuntimeError), match="out of bounds|must match"):
            model(input_ids=torch.full((1, facts.max_positions + 1), 5))
    else:
        assert not any("pooler" in name for name, _ in model.named_parameters())
        assert model(input_ids=torch.tensor([[5, 6]])).last_hidden_state.shape == (1, 2, facts.hidden_size)


def test_the_same_arguments_give_the_same_model(tiny_model, tmp_path) -> None:
    from tiny_models import build_tiny_model

    build_tiny_model(tmp_path, "bert", "text-classification")
    assert resolve_model(tmp_path).sha256 == resolve_model(tiny_model()).sha256


def test_a_classifier_serves_as_an_encoder_too(tiny_model) -> None:
    assert type(load_model(tiny_model("electra"), "feature-extraction")).__name__ == "ElectraModel"


def test_labels(copy) -> None:
    path = copy("bert", id2label={0: "no", 1: "yes", 2: "so"}, problem_type="multi_label_classification")
    facts = inspect_model(path, "text-classification")
    assert (facts.id2label, facts.num_labels, facts.multi_label) == ({0: "no", 1: "yes", 2: "so"}, 3, True)
    edit(path / "config.json", id2label=None, label2id=None)
    assert inspect_model(path).id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    edit(path / "config.json", id2label={"0": "a", "2": "b", "3": "c"})
    assert "id2label has the ids [0, 2, 3], the classifier 3 outputs" in refused(path)
    edit(path / "config.json", id2label={"0": "a", "1": "b", "2": "a"})
    assert "id2label gives one name to several ids" in refused(path)
    edit(path / "config.json", id2label=["a"])
    assert "id2label must map ids" in refused(path)


def test_a_single_output_and_regression(tiny_model) -> None:
    assert inspect_model(tiny_model("bert", num_labels=1), "text-classification").num_labels == 1
    several = tiny_model("bert", num_labels=3, problem_type="regression")
    assert "regression with 3 outputs" in refused(several, "text-classification")


def test_max_length_is_checked_against_positions(tiny_model) -> None:
    facts = inspect_model(tiny_model("roberta"))
    check_max_length(facts, 64)
    with pytest.raises(RecipeError, match=r"serve.max_length is 65, the model has 64 positions: set .* 64 or less"):
        check_max_length(facts, 65)


def test_everything_missing_is_listed(tmp_path) -> None:
    found = refused(tmp_path)
    for problem in (
        "it has no config.json",
        "it has no weights: model.safetensors",
        "it has no tokenizer.json; make one",
    ):
        assert problem in found
    with pytest.raises(UnsupportedModelError, match="model gone is no directory"):
        inspect_model(tmp_path / "gone")
    with pytest.raises(UnsupportedModelError, match="it has no config.json"):
        resolve_model(tmp_path)


def test_pickled_weights_only(copy) -> None:
    path = copy()
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    found = refused(path)
    assert "its weights are pytorch_model.bin only: a pickle can run code" in found
    assert "convert it with: python -c" in found


CONFIGS = [
    ({"model_type": "t5"}, "model_type 't5' is not supported; allowed: bert, distilbert, electra, roberta"),
    ({"model_type": None}, "model_type None is not supported"),
    ({"model_type": ["bert"]}, "model_type ['bert'] is not supported"),
    ({"auto_map": {"AutoModel": "evil.Model"}}, "config.json names remote code (auto_map), which is never run"),
    ({"quantization_config": {"bits": 4}}, "it is quantized already"),
    ({"is_decoder": True}, "config.json makes it a decoder"),
    ({"type_vocab_size": "2"}, "config.json: type_vocab_size '2' must be an integer from 0"),
    ({"pad_token_id": -1}, "config.json: pad_token_id -1 must be an integer from 0"),
    ({"problem_type": "ranking"}, "problem_type 'ranking' is not supported; allowed: None, single_label"),
    ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key' is not supported"),
]


@pytest.mark.parametrize(("changes", "expected"), CONFIGS)
def test_configs_that_are_refused(copy, changes, expected) -> None:
    path = copy()
    edit(path / "config.json", **changes)
    assert expected in refused(path)


@pytest.mark.parametrize("content", ["", "{", "[]", "\xff", "[" * 100_000])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_json_that_is_none(copy, name, content) -> None:
    path = copy()
    (path / name).write_bytes(content.encode("latin-1"))
    assert name in refused(path)


def test_tokenizer_of_another_model(copy) -> None:
    path = copy()
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": 999, "content": "[NEW]"})
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "tokenizer.json has the id 999 ('[NEW]'), the model " in refused(path)
    edit(path / "tokenizer.json", model={"type": "BPE", "vocab": {}}, added_tokens=[])
    assert "tokenizer.json has no vocabulary" in refused(path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda raw: raw[:-1], "truncated or corrupt"),
        (lambda raw: raw + b"x", "truncated or corrupt"),
        (lambda raw: raw[:100], "truncated or not safetensors"),
        (lambda raw: raw[:5], "truncated or not safetensors"),
        (lambda raw: b"", "truncated or not safetensors"),
        (lambda raw: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS pointer"),
        (lambda raw: raw[:8] + b"[" + raw[9:], "its header is corrupt"),
        (lambda raw: raw.replace(b'"F32"', b'"F16"', 1), "its header is corrupt: tensor "),
        (lambda raw: struct.pack("<Q", 2) + b"[]", "its header is corrupt"),
        (lambda raw: struct.pack("<Q", 8) + b'{"a": 1}', "its header is corrupt"),
    ],
)
def test_corrupt_weights(copy, change, expected) -> None:
    path = copy()
    file = path / "model.safetensors"
    file.write_bytes(change(file.read_bytes()))
    found = refused(path)
    assert "model.safetensors cannot be read: " in found and expected in found


def test_a_header_by_hand(tmp_path) -> None:
    save_file({"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.int64)}, tmp_path / "x.safetensors")
    header = read_header(tmp_path / "x.safetensors")
    assert [(name, header[name].dtype, header[name].shape, header[name].size) for name in sorted(header)] == [
        ("a", "F32", (2, 3), 24),
        ("b", "I64", (4,), 32),
    ]


def test_shards(copy) -> None:
    path = copy()
    whole = inspect_model(path)
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    names, shards = sorted(tensors), {}
    for index, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{index}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, path / file, metadata={"format": "pt"})
        shards.update(dict.fromkeys(part, file))
    index_file = path / "model.safetensors.index.json"
    index_file.write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    assert inspect_model(path) == whole
    files = sorted(set(shards.values()))
    lines = "".join(f"{hashlib.sha256((path / file).read_bytes()).hexdigest()}  {file}\n" for file in files)
    assert resolve_model(path).sha256 == hashlib.sha256(lines.encode()).hexdigest()
    load_model(path, "text-classification")
    (path / files[0]).unlink()
    assert f"names {files[0]}, which is missing: copy all shards" in refused(path)
    index_file.write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))
    assert "must map tensors to files beside it" in refused(path)


def test_a_model_without_head_is_no_classifier(tiny_model) -> None:
    found = refused(tiny_model("bert", "feature-extraction"), "text-classification")
    assert "it has no head for text-classification (classifier.weight; its architecture is BertModel)" in found
    assert "task 'generate' is not supported" in refused(tiny_model(), "generate")


def rewrite(path: Path, change) -> None:
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


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


def test_half_precision_is_loaded_as_fp32(copy) -> None:
    import torch

    path = copy()
    rewrite(path, lambda tensors: tensors.update({name: t.astype(np.float16) for name, t in tensors.items()}))
    facts = inspect_model(path)
    assert facts.weight_bytes == 2 * facts.num_parameters
    assert {parameter.dtype for parameter in load_model(path, TASKS[0]).parameters()} == {torch.float32}


def test_integer_weights_are_refused(copy) -> None:
    path = copy()
    rewrite(path, lambda tensors: tensors.update({"bert.extra": np.zeros((2, 2), np.int8)}))
    assert "its weights hold I8 tensors; allowed: F64, F32, F16, BF16" in refused(path)


def test_tokenizer_files(copy) -> None:
    path = copy()
    (path / "vocab.txt").write_text("x")
    assert [file.name for file in tokenizer_files(path)][:2] == ["tokenizer.json", "tokenizer_config.json"]
    assert path / "vocab.txt" not in tokenizer_files(path)


def test_a_real_model(shared) -> None:
    facts = inspect_model(shared / "models" / "minilm-sst2", "text-classification")
    assert facts.id2label == {0: "NEGATIVE", 1: "POSITIVE"}
    assert (facts.num_parameters, facts.weight_bytes, facts.max_positions) == (22_713_986, 90_855_944, 512)
    assert "is a decoder, the task is 'feature-extraction'" in refused(
        shared / "models" / "docs-lm", "feature-extraction"
    )


def test_inspecting_imports_no_torch(tiny_model) -> None:
    code = "import sys, archiver.models.load as m; m.resolve_model(sys.argv[1]); print('torch' in sys.modules)"
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-c", code, str(tiny_model())]
    done = subprocess.run(command, env={"PYTHONPATH": str(root)}, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False\n", "")
