"""An encoder with its head as one torch module: token ids in, one row of numbers per input out.

The exporters trace this module, the torch runtime serves it and the evaluation takes it as the fp32 original, so all
of them mean the same by «the model's answer».
"""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from handlers.architecture.structure import load_weights
from handlers.storage.packed import load_packed

POOLING = ("mean", "cls", "max")


class EncoderWithHead(torch.nn.Module):
    """input_ids, attention_mask, token_type_ids [rows, length] int64 → [rows, width] float32.

    text-classification: the logits. feature-extraction: the token vectors pooled by `pooling` (mean over the real
    tokens, the first token, or the maximum over the real tokens), not normalised: a request may choose that.
    """

    def __init__(self, model: torch.nn.Module, pooling: str | None = None) -> None:
        super().__init__()
        if pooling is not None and pooling not in POOLING:
            raise ValueError(f"pooling is {pooling!r}; allowed: {', '.join(POOLING)}")
        self.model = model
        self.pooling = pooling
        self.takes_type_ids = "token_type_ids" in inspect.signature(model.forward).parameters

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        more = {"token_type_ids": token_type_ids} if self.takes_type_ids else {}
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, **more)
        if self.pooling is None:
            return output.logits
        hidden = output.last_hidden_state
        if self.pooling == "cls":
            return hidden[:, 0]
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        if self.pooling == "max":
            return (hidden + (mask - 1) * 1e9).amax(dim=1)
        return (hidden * mask).sum(dim=1) / mask.sum(dim=1)


def load_encoder(folder: Path, spec: Mapping[str, Any]) -> EncoderWithHead:
    """The module of an archive whose runtime is torch: config.json and packed weights, no pickle, no remote code."""
    import transformers

    config_dict = json.loads((folder / spec["config"]).read_text())
    config = transformers.CONFIG_MAPPING[config_dict["model_type"]].from_dict(config_dict)
    model = getattr(transformers, spec["auto_class"]).from_config(config, attn_implementation="eager")
    if spec["pooling"] is not None and getattr(model, "pooler", None) is not None:
        model.pooler = None  # as in the build: the token vectors are pooled by `pooling`, and its weights do not travel
    weights = load_packed(folder / spec["model"])
    tensors = {name: torch.as_tensor(value) for name, value in weights.items()}
    model = load_weights(model, folder, tensors)
    return EncoderWithHead(model, spec["pooling"])
