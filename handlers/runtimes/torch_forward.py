"""torch, for models that answer with one pass: needs no exported graph."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from handlers.requirements import require


class TorchSession:
    """The transformers module itself, its weights from packed safetensors. See `handlers.runtimes.base.Session`.

    It computes in fp32 on weights that are stored small, so it saves bytes and no time.
    """

    name = "torch"

    def __init__(self, folder: Path, spec: Mapping[str, Any], threads: int, streams: int = 1) -> None:
        torch: Any = require("torch", "torch>=2.0")
        require("transformers", spec["requirement"])
        from handlers.architecture.loading import load_module
        from handlers.runtimes.torch_device import placed

        torch.set_num_threads(threads)
        self._torch = torch
        self._module: Any = placed(load_module(folder, spec), spec)
        self._device = spec.get("device", "cpu")

    def run(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        with self._torch.inference_mode():
            given = [name for name in self._module.inputs if name in arrays]
            tensors = {name: self._torch.from_numpy(arrays[name]).to(self._device) for name in given}
            found: np.ndarray = self._module(**tensors).float().cpu().numpy()
            return found
