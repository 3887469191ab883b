"""How an exported language model predicts windows of text, on OpenVINO: as evaluation.perplexity, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


class LikeliestTokens:
    """A stateful decoder (input_ids, attention_mask, position_ids, beam_idx → logits), asked for its likeliest tokens."""

    def __init__(self, xml: Path, weights: np.ndarray | None, settings: dict[str, Any]) -> None:
        """weights: the bytes of the graph's constants, None where they lie in the file beside it."""
        import openvino as ov

        core = ov.Core()
        model = core.read_model(xml) if weights is None else core.read_model(xml.read_bytes(), ov.Tensor(weights))
        self._request = core.compile_model(model, "CPU", settings).create_infer_request()
        self._names = {name for port in self._request.model_inputs for name in port.get_names()}

    def of(self, window: np.ndarray) -> np.ndarray:
        """The likeliest token behind each place but the last.

        Args:
            window: [length] int64.
        Returns: [length − 1] int64.
        """
        length = len(window)
        arrays = {
            "input_ids": window[None],
            "attention_mask": np.ones((1, length), np.int64),
            "position_ids": np.arange(length, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        self._request.reset_state()
        found = self._request.infer({name: value for name, value in arrays.items() if name in self._names})
        best: np.ndarray = found[0][0, :-1].argmax(-1)
        return best
