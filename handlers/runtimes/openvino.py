"""OpenVINO."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from handlers.requirements import require
from handlers.runtimes.openvino_config import plugin_config
from handlers.storage.compiled import compiled
from handlers.storage.graph_weights import weights_of


class OpenVinoSession:
    """model.xml and model.bin on OpenVINO's CPU plugin. See `handlers.runtimes.base.Session`."""

    name = "openvino"

    def __init__(self, folder: Path, spec: Mapping[str, Any], threads: int, streams: int = 1) -> None:
        ov: Any = require("openvino", spec["requirement"])
        config = plugin_config(spec, threads, streams)
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
