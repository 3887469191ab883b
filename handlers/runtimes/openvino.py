"""OpenVINO."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from handlers.cpu import BF16_ISA, has_int8, host_isa
from handlers.requirements import require
from handlers.storage.compiled import compiled
from handlers.storage.graph_weights import weights_of


class OpenVinoSession:
    """model.xml and model.bin on OpenVINO's CPU plugin. See `handlers.runtimes.base.Session`."""

    name = "openvino"

    def __init__(self, folder: Path, spec: Mapping[str, Any], threads: int, streams: int = 1) -> None:
        ov: Any = require("openvino", spec["requirement"])
        config = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads * streams,
            # A stream for each sub-batch that runs at once. Pinning would put every worker on core 0.
            "NUM_STREAMS": streams,
            "ENABLE_CPU_PINNING": False,
            **spec.get("config", {}),
        }
        if config.get("INFERENCE_PRECISION_HINT") == "bf16" and not BF16_ISA & set(host_isa()):
            config["INFERENCE_PRECISION_HINT"] = "f32"  # this processor would only imitate it, and slowly
        if spec.get("int8") and not has_int8():
            # x86 without VNNI adds pairs of u8 × s8 products in 16 bits, where they overflow without a word. So activations
            # are rounded where the graph says so, and multiplied as those of a weight-only archive are.
            config["LP_TRANSFORMS_MODE"] = "NO"
        core = ov.Core()
        path, weights = folder / spec["model"], weights_of(folder, spec)
        model = core.read_model(path) if weights is None else core.read_model(path.read_bytes(), ov.Tensor(weights))
        with compiled(spec.get("digest"), openvino=ov.__version__, config=config) as kept:
            self._compiled = core.compile_model(model, "CPU", config | ({"CACHE_DIR": str(kept)} if kept else {}))
        self._inputs = {name for port in self._compiled.inputs for name in port.get_names()}
        self._own = threading.local()

    def run(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        request = vars(self._own).get("request")
        if request is None:  # one for each thread that runs
            request = self._own.request = self._compiled.create_infer_request()
        outputs = request.infer({k: v for k, v in arrays.items() if k in self._inputs}, share_inputs=True)
        return np.array(outputs[0])
