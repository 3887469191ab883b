"""Tiny models of five families, what they are run on, and a stage's context of it."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from objectives import OBJECTIVES
from stage_context import calibrated_on

from archiver.compression.context import StageContext
from handlers.architecture.conv1d import conv1d_to_linear

ENCODERS = ("bert", "distilbert")
DECODERS = ("llama", "gpt2", "qwen2")
SIZES: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48},
    "distilbert": {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48},
    "llama": {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
              "intermediate_size": 48},
    "qwen2": {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
              "intermediate_size": 48},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_inner": 48},
}  # fmt: skip


def tiny(kind: str, seed: int = 0) -> torch.nn.Module:
    config = transformers.AutoConfig.for_model(
        kind, vocab_size=40, max_position_embeddings=16, bos_token_id=0, eos_token_id=0, pad_token_id=0, **SIZES[kind]
    )
    auto = (
        transformers.AutoModelForSequenceClassification if kind in ENCODERS else transformers.AutoModelForCausalLM
    )  # fmt: skip
    torch.manual_seed(seed)
    model = conv1d_to_linear(auto.from_config(config, attn_implementation="eager")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return model


IDS = torch.randint(1, 40, (3, 10), generator=torch.Generator().manual_seed(1))
BATCHES = [{
    "input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": torch.tensor([0, 1, 0])
}]  # fmt: skip


class Head(torch.nn.Module):
    inputs = ("input_ids", "attention_mask")

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        more = {"use_cache": False} if hasattr(self.model, "generate") else {}
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **more).logits


def run(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return Head(model)(IDS, torch.ones_like(IDS))


def examples(model: torch.nn.Module, kind: str) -> StageContext:
    found = calibrated_on(BATCHES, Head(model))
    if kind in DECODERS:
        found = calibrated_on([{**BATCHES[0], "labels": IDS}], Head(model))
        found.objective = OBJECTIVES["text-generation"]
    return found
