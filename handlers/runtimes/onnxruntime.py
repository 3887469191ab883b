"""ONNX Runtime."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from handlers.errors import UnsoundArchive
from handlers.requirements import require
from handlers.storage.graph_weights import GRAPH_WEIGHTS, weights_of


class OnnxRuntimeSession:
    """model.onnx on ONNX Runtime's CPU or CUDA provider. See `handlers.runtimes.base.Session`."""

    name = "onnxruntime"

    def __init__(self, folder: Path, spec: Mapping[str, Any], threads: int, streams: int = 1) -> None:
        ort: Any = require("onnxruntime", spec["requirement"])
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # A worker that spins while it waits takes the core its neighbour computes on.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0" if threads == 1 else "1")
        # x86 without VNNI adds pairs of u8 × s8 products in 16 bits, where they overflow without a word: there the weights
        # become unsigned, which is slower and exact. Hosts with VNNI ignore this.
        options.add_session_config_entry("session.x64quantprecision", "1")
        provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[spec.get("device", "cpu")]
        if provider not in ort.get_available_providers():
            raise UnsoundArchive(
                f"this archive needs ONNX Runtime's {provider}, this host has {ort.get_available_providers()}: "
                "run `pip install onnxruntime-gpu` in place of onnxruntime, or rebuild with `device: cpu`"
            )
        weights = weights_of(folder, spec)
        if weights is not None:
            options.add_external_initializers_from_files_in_memory([GRAPH_WEIGHTS], [weights], [weights.size])
        self._session = ort.InferenceSession(str(folder / spec["model"]), options, providers=[provider])
        self._inputs = {item.name for item in self._session.get_inputs()}

    def run(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        found: np.ndarray = self._session.run(None, {k: v for k, v in arrays.items() if k in self._inputs})[0]
        return found
