"""A Llama out of a GGUF file: the same logits, the same tokens, and refusals of what would be read wrongly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_files import CHATML, write_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer

from archiver.errors import UnsupportedModelError
from archiver.models.facts import inspect_model
from archiver.models.gguf import convert
from archiver.models.inputs.chat_template import read_chat_template

TEXTS = ("this film is very good", "größe 🎬\n\n  two  spaces", "in 2024, 12345 times<s> and </s>", "")


def converted(folder: Path, gguf: Path) -> Path:
    (folder / "model").mkdir()
    convert(gguf, folder / "model", "tiny")
    return folder / "model"


@pytest.mark.parametrize("tied", [True, False])
def test_the_same_model_comes_out(tiny_model: Callable[..., Path], tmp_path: Path, tied: bool) -> None:
    model = tiny_model("llama", "text-generation", tie_word_embeddings=tied, torch_dtype="float32")
    made = converted(tmp_path, write_gguf(model, tmp_path / "model.gguf"))
    facts = inspect_model(made, "AutoModelForCausalLM", task="text-generation")
    assert (facts.architecture, facts.dtype, facts.num_layers) == ("LlamaForCausalLM", "float16", 2)
    assert facts.num_parameters == inspect_model(model, "AutoModelForCausalLM").num_parameters
    before, after = (AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (model, made))
    ids = torch.tensor([[0, 50, 300, 12, 77, 200, 8, 9]])
    with torch.no_grad():
        right, found = before(ids).logits, after(ids).logits
    # Weights of up to some 0.5 in float16: half a thousandth of each, through two layers.
    assert (right - found).abs().max() < 0.01 * right.abs().max()
    assert after.generation_config.eos_token_id == before.config.eos_token_id == 2


def test_the_same_tokens_come_out(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    model = tiny_model("llama", "text-generation")
    made = converted(tmp_path, write_gguf(model, tmp_path / "model.gguf"))
    before, after = AutoTokenizer.from_pretrained(model), AutoTokenizer.from_pretrained(made)
    for text in TEXTS:
        assert after(text).input_ids == before(text).input_ids
        assert after.decode(after(text, add_special_tokens=False).input_ids) == text
    assert [after.bos_token, after.eos_token, after.pad_token, after.unk_token] == ["<s>", "</s>", "<pad>", "<unk>"]
    assert read_chat_template(made) == {
        "template": CHATML,
        "tokens": {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"},
    }


def test_smollm_s_digits_are_tokens_of_their_own(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    """Its pre-tokenizer cuts between any two digits, whatever the merges say: a merge of 2 and 0 is not used."""
    model = tiny_model("llama", "text-generation")
    content = json.loads((model / "tokenizer.json").read_text())
    vocabulary, merges = content["model"]["vocab"], content["model"]["merges"]
    last = max(vocabulary, key=vocabulary.__getitem__)
    (tmp_path / "merging").mkdir()
    for file in model.iterdir():
        (tmp_path / "merging" / file.name).write_bytes(file.read_bytes())
    merges[:] = [merge for merge in merges if "".join(merge) != last] + [["2", "0"]]
    vocabulary["20"] = vocabulary.pop(last)
    (tmp_path / "merging" / "tokenizer.json").write_text(json.dumps(content))
    tokens = {}
    for pre in ("gpt-2", "smollm"):
        (tmp_path / pre).mkdir()
        made = converted(tmp_path / pre, write_gguf(tmp_path / "merging", tmp_path / pre / "model.gguf", pre=pre))
        tokens[pre] = AutoTokenizer.from_pretrained(made).tokenize("a 2020")
    assert tokens == {"gpt-2": ["a", "Ġ", "20", "20"], "smollm": ["a", "Ġ", "2", "0", "2", "0"]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "qwen2"}, r"is of the architecture 'qwen2'; llama is taken"),
        ({"pre": "llama-bpe"}, "has the tokenizer 'gpt2' with 'llama-bpe'; 'gpt2' is taken, with 'smollm' or 'gpt-2'"),
        ({"texts": {"llama.rope.scaling.type": "yarn"}}, r"scales its rotary embedding \('yarn'\), which is not read"),
        (
            {"leave_out": "model.layers.1.mlp.up_proj.weight"},
            r"lacks weights .*: model\.layers\.1\.mlp\.up_proj\.weight",
        ),
        (
            {"more": {"rope_freqs.weight": np.ones(4, np.float32)}},
            r"holds 22 tensors, of which the architecture has 21",
        ),
    ],
)
def test_what_would_be_read_wrongly_is_refused(
    tiny_model: Callable[..., Path], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    model = tiny_model("llama", "text-generation", tie_word_embeddings=False)
    file = write_gguf(model, tmp_path / "model.gguf", **changes)
    with pytest.raises(UnsupportedModelError, match=rf"^model tiny: its GGUF file {message}"):
        converted(tmp_path, file)


def test_a_weight_that_float16_cannot_hold(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = tmp_path / "large"
    model.mkdir()
    for file in tiny_model("llama", "text-generation").iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"][3] = 70_000.0
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedModelError, match="weights that are no numbers, or too large for float16"):
        converted(tmp_path, write_gguf(model, tmp_path / "model.gguf"))


@pytest.mark.parametrize("kept", [0, 3, 20, 500, 5000, -10])
def test_a_damaged_file_is_one_sentence(tiny_model: Callable[..., Path], tmp_path: Path, kept: int) -> None:
    file = write_gguf(tiny_model("llama", "text-generation"), tmp_path / "model.gguf")
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(UnsupportedModelError, match=r"^model tiny: its GGUF file cannot be read: [^\n]+$"):
        converted(tmp_path, file)
