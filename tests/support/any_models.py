"""Tiny random models of any transformers family, from a config and a seed: no files, no tokenizer."""

from __future__ import annotations

from typing import Any

import torch

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "embedding_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "head_dim": 8,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "ffn_dim": 48,
    "word_embed_proj_dim": 32,
    "n_positions": 64,
    "max_position_embeddings": 64,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "global_attn_every_n_layers": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "vocab_size": 120,
}


def tiny(family: str, auto: str, **changes: Any) -> torch.nn.Module:
    """A model of the auto class `auto` with random weights, in eval mode, eager attention. changes: of its config."""
    import transformers

    from handlers.architecture.linear_layers import to_linear_layers

    base = transformers.AutoConfig.for_model(family)
    chosen = {name: value for name, value in SIZES.items() if hasattr(base, name)} | changes
    config = transformers.AutoConfig.for_model(family, **chosen)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, auto).from_config(config, attn_implementation="eager", dtype=torch.float32)
        enlarge(model, mirrored="CausalLM" in auto)
    return to_linear_layers(model.eval())


@torch.no_grad()
def enlarge(model: torch.nn.Module, *, mirrored: bool) -> None:
    """transformers initialises near zero, where all texts get the same answer: here weights are random.

    mirrored: the last norm changes some signs, since a tied head would repeat its input. Not for static int8: OpenVINO
    2026.4 computes wrongly where a norm of negative factors and no bias is followed by a quantized linear layer.
    """
    last = None
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            parameter.copy_(torch.randn(parameter.shape) / parameter.shape[-1] ** 0.5)
        elif name.endswith("weight"):
            last = parameter
    if last is not None:
        last.copy_(2 * torch.randn(last.shape) if mirrored else 1 + torch.rand(last.shape))
