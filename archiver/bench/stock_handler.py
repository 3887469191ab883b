"""The plain handler that `bench --against stock` compares with: what TorchServe's Hugging Face example does.

transformers' tokenizer and model, fp32, one forward pass over TorchServe's batch padded to its longest text. It travels
alone in its archive, so it imports nothing of this project.
"""

from __future__ import annotations

import json
from typing import Any

import torch
import transformers


class StockHandler:
    """The best label of a model with a classifier's head, the pooled vector of one without.

    auto_class (in model-config.yaml, `handler: {auto_class, max_length}`): the transformers class that loads the model.
    """

    def initialize(self, context: Any) -> None:
        folder = context.system_properties["model_dir"]
        options = context.model_yaml_config["handler"]
        self.max_length: int = options["max_length"]
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        kind: Any = getattr(transformers, options["auto_class"])
        self.model = kind.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[str]:
        texts, pairs = zip(*(_read(item.get("data") or item.get("body")) for item in data), strict=True)
        encoded = self.tokenizer(
            list(texts),
            [pair or "" for pair in pairs] if any(pairs) else None,
            padding=True,
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        )
        with torch.no_grad():
            output = self.model(**encoded)
        if "logits" in output:
            return [json.dumps([answer]) for answer in self._label(output.logits)]
        return [json.dumps(vector) for vector in _pool(output.last_hidden_state, encoded["attention_mask"]).tolist()]

    def _label(self, logits: torch.Tensor) -> list[dict[str, Any]]:
        """logits [batch, labels] → the best label of each row, with its probability."""
        several = self.model.config.problem_type == "multi_label_classification" or logits.shape[1] == 1
        scores = logits.sigmoid() if several else logits.softmax(dim=-1)
        best = scores.max(dim=-1)
        names = self.model.config.id2label
        return [
            {"label": names[index], "score": score}
            for index, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


def _read(body: Any) -> tuple[str, str | None]:
    """The text and the text_pair of one request: JSON {"inputs": …} or plain text."""
    if isinstance(body, (bytes, bytearray)):
        body = body.decode("utf-8")
    if isinstance(body, str) and body.startswith("{"):
        body = json.loads(body)
    if isinstance(body, dict):
        body = body["inputs"]
    if isinstance(body, dict):
        return body["text"], body.get("text_pair")
    return body, None


def _pool(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """hidden [batch, tokens, width], mask [batch, tokens] → mean over the real tokens, length 1: [batch, width]."""
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    mean = (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)
    return torch.nn.functional.normalize(mean, p=2, dim=1)
