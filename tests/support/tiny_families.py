"""Tiny models of many transformers families, with random weights of which none is zero."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers

from handlers.architecture.conv1d import conv1d_to_linear
from handlers.architecture.structure import describe, rebuild

LAYERS, VOCABULARY = 2, 50
SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "head_dim": 8, "n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_inner": 48, "dim": 32,
    "n_layers": LAYERS, "n_heads": 4, "hidden_dim": 48, "embedding_size": 32, "max_position_embeddings": 64,
    "n_positions": 64, "ffn_dim": 48, "word_embed_proj_dim": 32, "num_local_experts": 4, "num_experts": 4,
    "num_experts_per_tok": 2, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 48, "true_hidden_size": 32,
    "intra_bottleneck_size": 32, "global_attn_every_n_layers": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """heads, neurons: how many of each can be cut in one layer, one number a cut; folds: how many a layer has."""

    heads: tuple[int, ...]
    neurons: tuple[int, ...]
    folds: int
    decoder: bool = False
    model_type: str = ""
    fields: dict[str, Any] = field(default_factory=dict)


def _encoder(folds: int, heads: tuple[int, ...] = (4,), neurons: tuple[int, ...] = (48,), **more: Any) -> Family:
    return Family(heads, neurons, folds, **more)


def _decoder(folds: int, heads: tuple[int, ...] = (2,), neurons: tuple[int, ...] = (48,), **more: Any) -> Family:
    return Family(heads, neurons, folds, decoder=True, **more)


_V3 = {
    "relative_attention": True, "share_att_key": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
}  # fmt: skip
_V1 = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}

FAMILIES: dict[str, Family] = {
    # Behind a norm the residual goes on, and GELU lets no scale through: values → output alone.
    **dict.fromkeys(
        (
            "bert",
            "roberta",
            "xlm-roberta",
            "camembert",
            "distilbert",
            "electra",
            "albert",
            "ernie",
            "roformer",
            "data2vec-text",
        ),
        _encoder(1),
    ),
    "mpnet": _encoder(1, heads=()),  # biases of all heads by position come from outside of the layers
    "deberta-v2": _encoder(1, fields=_V3),
    "deberta": _encoder(0, fields=_V1),  # values have a bias of their own behind the projection
    "modernbert": _encoder(4),
    "convbert": _encoder(0, heads=()),  # queries also make the kernels of a convolution
    "megatron-bert": _encoder(3),
    "mobilebert": _encoder(7, neurons=(48, 48, 48, 48)),
    "eurobert": _encoder(4, heads=(2,)),
    "qwen3-classifier": _encoder(4, heads=(2,), model_type="qwen3"),
    "llama-classifier": _encoder(4, heads=(2,), model_type="llama"),
    "gemma3-classifier": _encoder(4, heads=(2,), model_type="gemma3_text"),
    **dict.fromkeys(
        (
            "llama",
            "mistral",
            "qwen2",
            "qwen3",
            "gemma",
            "gemma2",
            "gemma3_text",
            "phi3",
            "smollm3",
            "granite",
            "stablelm",
        ),
        _decoder(4),
    ),
    "gemma-one-key": _decoder(4, heads=(4,), model_type="gemma", fields={"num_key_value_heads": 1}),
    "phi": _decoder(2),
    "gpt2": _decoder(3, heads=(4,)),
    "gpt_neox": _decoder(3, heads=(4,)),
    "opt": _decoder(4, heads=(4,)),
    "bloom": _decoder(3, heads=(), neurons=(128,)),  # biases of all heads by distance come from outside of the layers
    "starcoder2": _decoder(3),
    "olmo2": _decoder(1, heads=()),  # a norm runs over the queries of all heads
    "mixtral": _decoder(2, neurons=()),  # experts
    "qwen2_moe": _decoder(3, neurons=(48,)),  # the expert that takes every token
    "qwen3_moe": _decoder(2, neurons=()),
    "cohere": _decoder(3),
    "cohere-norms": _decoder(3, model_type="cohere", fields={"use_qk_norm": True}),
    "falcon": _decoder(2, heads=(4,), neurons=(128,), fields={"multi_query": True, "new_decoder_architecture": False}),
}


def make(name: str, seed: int = 0, **more: Any) -> torch.nn.Module:
    """A model of the family, for classification or for causal language modelling."""
    family = FAMILIES[name]
    kind = family.model_type or name
    base = transformers.AutoConfig.for_model(kind)
    sizes = {key: value for key, value in SIZES.items() if hasattr(base, key) and (key, kind) != ("head_dim", "falcon")}
    sizes |= {key: SIZES[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    config = transformers.AutoConfig.for_model(kind, **(sizes | {"vocab_size": VOCABULARY} | family.fields | more))
    auto = transformers.AutoModelForCausalLM if family.decoder else transformers.AutoModelForSequenceClassification
    torch.manual_seed(seed)
    model = conv1d_to_linear(auto.from_config(config, attn_implementation="eager")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return model


IDS = torch.randint(3, VOCABULARY, (3, 10), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def answers(model: torch.nn.Module) -> torch.Tensor:
    """[3, …] logits for three rows of ten tokens."""
    return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


def reloaded(model: torch.nn.Module) -> torch.nn.Module:
    """The same by its config, its structure and its tensors alone."""
    structure = json.loads(json.dumps(describe(model)))
    config = type(model.config).from_dict(json.loads(json.dumps(model.config.to_dict())))
    fresh = conv1d_to_linear(type(model)._from_config(config, attn_implementation="eager"))
    rebuild(fresh, structure)
    fresh.load_state_dict(model.state_dict())
    assert describe(fresh) == describe(model)
    return fresh.eval()
