"""onnx-reference: the ONNX project's own evaluator, in numpy. It defines what a graph means, and is slow."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from handlers.requirements import require


class OnnxReferenceSession:
    """model.onnx on onnx.reference. See `handlers.runtimes.base.Session`."""

    name = "onnx-reference"

    def __init__(self, folder: Path, spec: Mapping[str, Any], threads: int, streams: int = 1) -> None:
        require("onnx", spec["requirement"])
        from onnx.reference import ReferenceEvaluator

        self._evaluator: Any = ReferenceEvaluator(str(folder / spec["model"]))

    def run(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        taken = {name: arrays[name] for name in self._evaluator.input_names}
        found: np.ndarray = self._evaluator.run(None, taken)[0]
        return found
