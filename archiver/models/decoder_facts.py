"""What the directory of a decoder (a language model) holds, found without loading it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archiver.models.files import read_json
from archiver.models.safetensors_header import TensorInfo

HEAD = "lm_head.weight"


@dataclass(frozen=True)
class DecoderFamily:
    """What decoders of one model_type have in common.

    words: the token embeddings' tensor, with the prefix that a bare base model saves without
    places: the position embeddings' tensor; None where positions are rotations, and config.json alone bounds them
    tied: what `tie_word_embeddings` is where config.json does not say: the head is the embedding table
    """

    prefix: str
    words: str
    places: str | None = None
    tied: bool = False


_ROTARY = DecoderFamily("model.", "embed_tokens.weight")
DECODERS: dict[str, DecoderFamily] = {
    "llama": _ROTARY,
    "mistral": _ROTARY,
    "qwen2": _ROTARY,
    "gpt2": DecoderFamily("transformer.", "wte.weight", "wpe.weight", tied=True),
}


def read_decoder(
    path: Path, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], problems: list[str]
) -> dict[str, Any] | None:
    """The sizes and special tokens as fields of ModelFacts; None, and a problem, where the weights are no decoder's."""
    family = DECODERS[config["model_type"]]
    words = _shape(tensors, family, family.words)
    if words is None:
        problems.append(
            f"its weights have no token embeddings ({family.prefix}{family.words}): "
            "they are not those of this model_type"
        )
        return None
    if HEAD not in tensors and not config.get("tie_word_embeddings", family.tied):
        problems.append(f"its weights have no {HEAD}, and its config.json ties it to no embeddings: nothing predicts")
    places = _shape(tensors, family, family.places) if family.places else None
    positions = places[0] if places else _first(config, "max_position_embeddings", "n_positions")
    if positions is None or positions < 2:
        problems.append(f"config.json: max_position_embeddings is {positions!r}; allowed: a whole number from 2")
    layers = _first(config, "num_hidden_layers", "n_layer")
    if layers is None:
        problems.append("config.json has no num_hidden_layers")
    ends = end_tokens(path, config, problems)
    pad = config.get("pad_token_id")
    return {
        "num_layers": layers or 0,
        "hidden_size": _first(config, "hidden_size", "n_embd") or words[1],
        "vocab_size": words[0],
        "max_positions": positions or 0,
        # Padding is masked, so that any id will do where the model has no token for it.
        "pad_token_id": pad if type(pad) is int and 0 <= pad < words[0] else ends[0] if ends else 0,
        "end_token_ids": ends,
    }


def end_tokens(path: Path, config: Mapping[str, Any], problems: list[str]) -> tuple[int, ...]:
    """The ids that end a text: generation_config.json's where it names some (chat models end turns), else config's."""
    found = config.get("eos_token_id")
    file = path / "generation_config.json"
    if file.is_file():
        found = read_json(file, problems).get("eos_token_id", found)
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(token) is int and token >= 0 for token in ids):
        problems.append(f"eos_token_id is {found!r}; allowed: a token's id, or a list of ids")
        return ()
    return tuple(ids)


def _shape(tensors: Mapping[str, TensorInfo], family: DecoderFamily, name: str) -> tuple[int, ...] | None:
    info = tensors.get(family.prefix + name) or tensors.get(name)
    return info.shape if info is not None and len(info.shape) == 2 else None


def _first(config: Mapping[str, Any], *keys: str) -> int | None:
    """The first of the keys (families spell them differently) that config.json sets to a whole number."""
    return next((config[key] for key in keys if type(config.get(key)) is int), None)
