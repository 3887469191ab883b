"""Model directories: what is found in them without loading, what is refused, and what loading checks."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from model_directories import edit, refused
from places import ROOT
from safetensors.numpy import load_file, save_file
from task_models import inspect_model, load_model, skeleton

from archiver.errors import UnsupportedModelError
from archiver.models.facts import inspect_model as inspect_any
from archiver.models.source import resolve_model
from archiver.models.tensors import main_float, read_header
from archiver.tasks import default_task

KINDS = ["bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "albert", "mpnet", "modernbert"]
KINDS += ["deberta-v2", "qwen3", "gemma3_text"]
CAUSAL = ("qwen3", "gemma3_text")
TASKS = ["text-classification", "feature-extraction"]


@pytest.fixture
def copy(tiny_model, tmp_path):
    """Factory: a tiny model's directory that the test may change."""

    def copy(kind: str = "bert", task: str = "text-classification", **config) -> Path:
        return Path(shutil.copytree(tiny_model(kind, task, **config), tmp_path / "model"))

    return copy


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
    assert (facts.weight_bytes, facts.dtype) == (4 * facts.num_parameters, "float32")
    assert default_task(path) == task
    assert facts.id2label == ({0: "LABEL_0", 1: "LABEL_1"} if task == "text-classification" else {})
    assert facts.max_positions == 64
    assert facts.pad_token_id == (1 if kind in ("roberta", "xlm-roberta", "camembert") else 0)
    assert facts.causal == (kind in CAUSAL)
    with torch.device("meta"):
        bare = skeleton(path, task)
    assert {n: t.shape for n, t in bare.state_dict().items()} == {n: t.shape for n, t in model.state_dict().items()}
    if task == "text-classification":
        assert facts.num_parameters == sum(parameter.numel() for parameter in model.parameters())
        # The longest input that the facts allow runs; one more does not, where positions lie in a table.
        ids = torch.full((1, facts.max_positions), 5)
        assert model(input_ids=ids).logits.shape == (1, 2)
        if kind not in (*CAUSAL, "modernbert", "deberta-v2"):
            with pytest.raises(
                (IndexError, RuntimeError), match="out of range|out of bounds|must match|size of (the )?tensor"
            ):
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
    assert inspect_model(path).id2label == {}
    edit(path / "config.json", id2label=None, label2id=None, num_labels=3)
    assert inspect_model(path, TASKS[0]).id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    edit(path / "config.json", num_labels=None)
    assert "classifier.weight is [3, 32] in the file, [2, 32] by config.json" in refused(path, TASKS[0])
    edit(path / "config.json", id2label={"0": "a", "2": "b", "3": "c"})
    assert "id2label has the ids [0, 2, 3]; allowed: 0, 1, … without a gap" in refused(path, TASKS[0])
    edit(path / "config.json", id2label={"0": "a", "1": "b", "2": "a"})
    assert "id2label gives one name to several ids" in refused(path, TASKS[0])
    edit(path / "config.json", id2label=["a"])
    assert "id2label must map ids" in refused(path, TASKS[0])


def test_a_single_output_and_regression(tiny_model) -> None:
    assert inspect_model(tiny_model("bert", num_labels=1), "text-classification").num_labels == 1
    several = tiny_model("bert", num_labels=3, problem_type="regression")
    assert "regression with 3 outputs" in refused(several, "text-classification")


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
    assert "convert it with: python -c" in found and "import BertForSequenceClassification as M" in found


CONFIGS = [
    ({"model_type": "t5"}, "model_type 't5' has an encoder and a decoder (is_encoder_decoder)"),
    ({"model_type": "timesfm"}, "transformers has no AutoModelForSequenceClassification for model_type 'timesfm'"),
    ({"model_type": "unheard-of"}, "model_type is 'unheard-of', which this version of transformers does not know"),
    ({"model_type": None}, "model_type is None, which this version"),
    ({"model_type": ["bert"]}, "model_type is ['bert'], which this version"),
    ({"auto_map": {"AutoModel": "evil.Model"}}, "config.json names remote code (auto_map), which is never run"),
    ({"quantization_config": {"bits": 4}}, "it is quantized already"),
    ({"is_decoder": True}, "config.json makes an encoder a decoder (is_decoder)"),
    ({"add_cross_attention": True}, "config.json gives it cross-attention (add_cross_attention)"),
    (
        {"type_vocab_size": "2"},
        "config.json cannot be read by transformers: Validation error for field 'type_vocab_size'",
    ),
    (
        {"problem_type": "ranking"},
        "config.json cannot be read by transformers: Validation error for field 'problem_type'",
    ),
    ({"max_position_embeddings": 1}, "max_position_embeddings is 1; allowed: a whole number from 2"),
    ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key' is not supported"),
]


@pytest.mark.parametrize(("changes", "expected"), CONFIGS)
def test_configs_that_are_refused(copy, changes, expected) -> None:
    path = copy()
    edit(path / "config.json", **changes)
    assert expected in refused(path, TASKS[0])


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
        (lambda raw: raw.replace(b'"F32"', b'"F16"', 1), "its header is corrupt"),
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
    assert main_float(header) == "float32"
    half = {"a": header["a"], "c": replace(header["a"], dtype="BF16", shape=(7, 2)), "b": header["b"]}
    assert main_float(half) == "bfloat16"  # 28 bytes of it, 24 of float32


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


def test_a_model_without_head_is_no_classifier(tiny_model, tmp_path) -> None:
    found = refused(tiny_model("bert", "feature-extraction"), "text-classification")
    expected = "(classifier.bias, classifier.weight; its architecture is BertModel): give a model fine-tuned"
    assert f"it has no head for text-classification {expected}" in found
    # The heads of two tasks may have the same names and shapes: config.json says which it is.
    path = Path(shutil.copytree(tiny_model("qwen3"), tmp_path / "model"))
    edit(path / "config.json", architectures=["Qwen3ForTokenClassification"])
    assert "(Qwen3ForSequenceClassification; its architecture is Qwen3ForTokenClassification)" in refused(
        path, TASKS[0]
    )
    assert inspect_model(path, TASKS[1]).vocab_size == 124


def test_a_model_of_other_inputs_is_none_of_text(tiny_model, tmp_path) -> None:
    import transformers

    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32
    )
    transformers.ViTModel(config).save_pretrained(tmp_path)
    shutil.copy(tiny_model() / "tokenizer.json", tmp_path)
    assert "ViTModel takes pixel_values; feature-extraction needs a model that takes input_ids" in refused(
        tmp_path, "feature-extraction"
    )
    (tmp_path / "tokenizer.json").unlink()
    facts = inspect_any(tmp_path, input_name="pixel_values")
    assert (facts.vocab_size, facts.num_layers, facts.hidden_size) == (0, 1, 32)


def test_padding_tokens(copy) -> None:
    path = copy()
    for changes, expected in (({"pad_token_id": 7}, 7), ({"pad_token_id": -1}, 0)):
        edit(path / "config.json", **changes)
        assert inspect_model(path).pad_token_id == expected
    edit(path / "tokenizer_config.json", pad_token={"content": "[MASK]"})
    assert inspect_model(path).pad_token_id == 4


def test_a_real_model(shared) -> None:
    facts = inspect_model(shared / "models" / "minilm-sst2", "text-classification")
    assert facts.id2label == {0: "NEGATIVE", 1: "POSITIVE"}
    assert (facts.num_parameters, facts.weight_bytes, facts.max_positions) == (22_713_986, 90_855_944, 512)
    found = refused(shared / "models" / "docs-lm", "text-classification")
    assert "it has no head for text-classification (score.weight; its architecture is " in found


@pytest.mark.parametrize(
    ("name", "task"), [("minilm-ner", "token-classification"), ("minilm-qa", "question-answering")]
)
def test_real_fp16_checkpoints_of_other_tasks_load_as_encoders(shared, name, task) -> None:
    path = shared / "models" / name
    facts = inspect_model(path, "feature-extraction")
    assert (facts.dtype, facts.weight_bytes, facts.pooling.mode) == ("float16", 2 * facts.num_parameters, "mean")
    model = load_model(path, "feature-extraction")
    assert type(model).__name__ == "BertModel" and default_task(path) == task


def test_finding_a_model_imports_no_torch(tiny_model) -> None:
    code = "import sys, archiver.models.source as m; m.resolve_model(sys.argv[1]); print('torch' in sys.modules)"
    command = [sys.executable, "-c", code, str(tiny_model())]
    done = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False\n", "")
