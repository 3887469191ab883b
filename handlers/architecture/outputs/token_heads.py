"""Encoders whose head gives numbers for every token, as one torch module."""

from collections.abc import Mapping

import torch

from handlers.architecture.outputs.encoder import EncoderWithHead


class TokenHead(EncoderWithHead):
    """input_ids, attention_mask, token_type_ids [rows, length] int64 → [rows, length, width] float32.

    token-classification: the labels' logits. question-answering: the logits of the first and the last token of an answer
    (width 2). What stands at padding means nothing.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__(model)
        self.settings = {}

    def _logits(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        found = self.model(**inputs)
        if "start_logits" in found:
            return torch.stack([found.start_logits, found.end_logits], dim=-1)
        logits: torch.Tensor = found.logits
        return logits
