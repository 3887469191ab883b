"""How an exported language model predicts windows of text, on OpenVINO: as evaluation.perplexity, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def likeliest_tokens(xml: Path, windows: np.ndarray, settings: dict[str, Any]) -> np.ndarray:
    """[windows, length − 1] int64: the likeliest token behind each place but the last.

    xml: a stateful decoder (input_ids, attention_mask, position_ids, beam_idx → logits); windows: [windows, length] int64
    """
    import openvino as ov

    request = ov.Core().compile_model(xml, "CPU", settings).create_infer_request()
    names = {name for port in request.model_inputs for name in port.get_names()}
    length = windows.shape[1]
    best = np.zeros((len(windows), length - 1), np.int64)
    for row, window in enumerate(windows):
        arrays = {
            "input_ids": window[None],
            "attention_mask": np.ones((1, length), np.int64),
            "position_ids": np.arange(length, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        request.reset_state()
        found = request.infer({name: value for name, value in arrays.items() if name in names})
        best[row] = found[0][0, :-1].argmax(-1)
    return best
