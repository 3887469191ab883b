"""GGUF files of tiny Llamas, and wheels that carry them: what packages on PyPI look like, without a network."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

CHATML = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
# As llama.cpp names a Llama's tensors.
_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_gguf(
    model: Path,
    path: Path,
    *,
    pre: str = "gpt-2",
    architecture: str = "llama",
    leave_out: str = "",
    more: Mapping[str, np.ndarray] | None = None,
    texts: Mapping[str, str] | None = None,
) -> Path:
    """A Llama's directory as a GGUF file in float32.

    Args:
        model: config.json, model.safetensors, tokenizer.json with a byte-level BPE tokenizer.
        pre: the name of its pre-tokenizer. leave_out: a tensor. more: tensors beside the model's. texts: fields.
    """
    from gguf import GGUFWriter
    from safetensors.numpy import load_file

    config = json.loads((model / "config.json").read_text())
    writer = GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_vocab_size(config["vocab_size"])
    _add_tokenizer(writer, json.loads((model / "tokenizer.json").read_text()), pre)
    for key, text in (texts or {}).items():
        writer.add_string(key, text)
    tensors = load_file(model / "model.safetensors")
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for name, values in tensors.items():
        if name != leave_out:
            writer.add_tensor(*_as_llama_cpp_has_it(name, values.astype(np.float32), heads))
    for name, values in (more or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_wheel(
    folder: Path, files: Mapping[str, bytes | Path], package: str = "tiny_chat", version: str = "1.0"
) -> str:
    """A wheel with these files by their names in it. Returns: its sha256."""
    info = f"{package}-{version}.dist-info"
    path = folder / f"{package}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in files.items():
            if isinstance(content, Path):
                wheel.write(content, name)
            else:
                wheel.writestr(name, content)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _add_tokenizer(writer: Any, tokenizer: dict[str, Any], pre: str) -> None:
    ids = tokenizer["model"]["vocab"]
    special = {token["content"] for token in tokenizer["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(list(ids))
    writer.add_token_types([3 if token in special else 1 for token in ids])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(ids["<s>"])
    writer.add_eos_token_id(ids["</s>"])
    writer.add_pad_token_id(ids["<pad>"])
    writer.add_unk_token_id(ids["<unk>"])
    writer.add_add_bos_token(True)
    writer.add_chat_template(CHATML)


def _as_llama_cpp_has_it(name: str, values: np.ndarray, heads: Mapping[str, int]) -> tuple[str, np.ndarray]:
    """llama.cpp rotates neighbouring rows of a head, transformers rows half a head apart."""
    module = name.removesuffix(".weight")
    if module in _OUTER:
        return f"{_OUTER[module]}.weight", values
    _, _, layer, inner = module.split(".", 3)
    found = _NAMES[inner]
    if found in heads:
        halves = values.reshape(heads[found], 2, -1, values.shape[1])
        values = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))
    return f"blk.{layer}.{found}.weight", values
