"""Where in a recording somebody speaks: silero-vad's network, on the runtime that the archive has."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from handlers.requirements import require

FILE = "silero_vad_16k_sequence.onnx"
RATE = 16_000
_FRAME, _CONTEXT = 512, 64  # samples of a decision, and of what was before it
_BLOCK = 512  # decisions at a time
# Speech begins above the first probability and ends below the second.
_BEGINS, _ENDS = 0.5, 0.35
_SHORTEST, _GAP, _AROUND = 0.25, 0.5, 0.2  # seconds: of speech, of a silence that is skipped, kept at each side

Run = Callable[[Mapping[str, np.ndarray]], tuple[np.ndarray, np.ndarray, np.ndarray]]


class VoiceDetector:
    """Finds speech in samples at 16 kHz.

    Args:
        path: FILE. runtime: "openvino" or "onnxruntime". requirement: what is needed of it, as in requirements.txt.
    Source: silero-vad 6.2, its network for whole recordings (MIT licence).
    """

    def __init__(self, path: Path, runtime: str, requirement: str) -> None:
        self._run = (_on_openvino if runtime == "openvino" else _on_onnxruntime)(path, requirement)

    def spans(self, samples: np.ndarray) -> list[tuple[int, int]]:
        """The parts of a recording in which somebody speaks.

        Args:
            samples: [samples] float32.
        Returns: (start, end) of each, rising, a little of what is around it included; [] where nobody speaks.
        """
        return spans_of(self.probabilities(samples), len(samples))

    def probabilities(self, samples: np.ndarray) -> np.ndarray:
        """[decisions] float32: how likely somebody speaks, for every 32 ms."""
        count = -(-len(samples) // _FRAME)
        padded = np.zeros(_CONTEXT + count * _FRAME, np.float32)
        padded[_CONTEXT : _CONTEXT + len(samples)] = samples
        windows = np.lib.stride_tricks.sliding_window_view(padded, _CONTEXT + _FRAME)[::_FRAME]
        hidden = cell = np.zeros((1, 1, 128), np.float32)
        found = []
        for start in range(0, count, _BLOCK):
            part = np.ascontiguousarray(windows[start : start + _BLOCK])
            values, hidden, cell = self._run({"input": part, "h": hidden, "c": cell})
            found.append(values)
        return np.concatenate(found).reshape(-1)


def spans_of(probabilities: np.ndarray, samples: int) -> list[tuple[int, int]]:
    """(start, end) in samples of the parts that are speech, by the probability of each 32 ms."""
    found: list[list[int]] = []
    speaks = False
    for place, value in enumerate(probabilities):
        if not speaks and value >= _BEGINS:
            speaks = True
            if found and place * _FRAME - found[-1][1] < _GAP * RATE:
                continue
            found.append([place * _FRAME, 0])
        elif speaks and value < _ENDS:
            speaks = False
            found[-1][1] = place * _FRAME
    if speaks:
        found[-1][1] = samples
    around = round(_AROUND * RATE)
    return [
        (max(0, start - around), min(samples, end + around))
        for start, end in found
        if end - start >= _SHORTEST * RATE
    ]  # fmt: skip


def _on_onnxruntime(path: Path, requirement: str) -> Run:
    ort: Any = require("onnxruntime", requirement)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda arrays: tuple(session.run(["speech_probs", "hn", "cn"], dict(arrays)))


def _on_openvino(path: Path, requirement: str) -> Run:
    ov: Any = require("openvino", requirement)
    core = ov.Core()
    config = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": False}
    compiled = core.compile_model(core.read_model(path), "CPU", config)

    own = threading.local()  # a request for each thread: several read recordings at once

    def run(arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if "request" not in vars(own):
            own.request = compiled.create_infer_request()
        found = own.request.infer(dict(arrays))
        return found["speech_probs"], found["hn"], found["cn"]

    return run
