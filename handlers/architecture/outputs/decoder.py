"""A decoder on torch: token ids in, logits out.

The evaluation takes the same module as the fp32 original, so that build and worker mean the same by «the model».
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from handlers.architecture.linear_layers import to_linear_layers
from handlers.architecture.structure import load_weights
from handlers.storage.packed import load_packed


class DecoderWithHead(torch.nn.Module):
    """input_ids, attention_mask (1 = real) [rows, length] int64 → logits [rows, length, vocabulary].

    Each place's logits are about the token behind it. Padding may stand on either side. model: transformers' …ForCausalLM.
    """

    inputs = ("input_ids", "attention_mask")

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        if attention_mask is None:
            logits: torch.Tensor = self.model(input_ids=input_ids, use_cache=False).logits
            return logits
        places = (attention_mask.cumsum(1) - 1).clamp(min=0)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": places}
        logits = self.model(**inputs, use_cache=False).logits
        return logits


def load_decoder(folder: Path, spec: Mapping[str, Any]) -> DecoderWithHead:
    """The module of an archive: config.json and packed weights, no pickle, no remote code."""
    import transformers

    config_dict = json.loads((folder / spec["config"]).read_text())
    config = transformers.CONFIG_MAPPING[config_dict["model_type"]].from_dict(config_dict)
    auto = transformers.AutoModelForCausalLM
    model = to_linear_layers(auto.from_config(config, attn_implementation="eager", dtype=torch.float32))
    weights = {name: torch.as_tensor(value) for name, value in load_packed(folder / spec["model"]).items()}
    return DecoderWithHead(load_weights(model, folder, weights))
