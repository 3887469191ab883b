"""The sessions that run an archive's graph: ONNX Runtime, OpenVINO, torch. Each has a `name` and `run`.

All take arrays [rows, length] int64 and give one float32 array [rows, width]. Which files and settings they use stands
in the archive's serving.json under `session`.
"""

import importlib
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from handlers.cpu import host_isa
from handlers.errors import UnsoundArchive
from handlers.storage.graph_weights import IMAGE, read_image

# One of these makes int8 products faster than fp32 ones.
INT8_ISA = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}


class Session(Protocol):
    """A loaded graph."""

    name: str

    def run(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """[rows, length] int64 arrays by input name → [rows, width] float32."""
        ...


def open_session(folder: Path, spec: Mapping[str, Any], *, threads: int) -> Session:
    """The session that serving.json's `session` names, with `threads` threads for one run.

    UnsoundArchive says which package is missing or unfit.
    """
    kinds: dict[str, Callable[[Path, Mapping[str, Any], int], Session]] = {
        "onnxruntime": OnnxRuntimeSession,
        "openvino": OpenVinoSession,
        "torch": TorchSession,
    }
    kind = kinds.get(spec["runtime"])
    if kind is None:
        raise UnsoundArchive(f"this archive needs the runtime {spec['runtime']!r}; known: {', '.join(kinds)}")
    return kind(folder, spec, threads)


def require(package: str, requirement: str) -> ModuleType:
    """Import `package`, or raise with the requirement to install.

    Never an ImportError: that one sends TorchServe looking for a built-in handler and hides the cause.
    """
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise UnsoundArchive(
            f"this archive needs {requirement}, which this host's Python cannot import ({error}): "
            f'run `pip install "{requirement}"` for the Python that runs TorchServe'
        ) from error
    wanted = requirement.partition(">=")[2].split(",")[0]
    found = str(getattr(module, "__version__", "0"))
    if wanted and _version(found) < _version(wanted):
        raise UnsoundArchive(
            f"this archive needs {requirement}, this host has {found}: "
            f'run `pip install "{requirement}"` for the Python that runs TorchServe'
        )
    return module


def required(folder: Path, package: str) -> str:
    """The line of the archive's requirements.txt for `package`; its bare name where there is none."""
    lines = (folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return next((line for line in lines if line.partition(">=")[0] == package), package)


def _version(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: `2026.4.1-21905-…` → (2026, 4, 1)."""
    numbers = []
    for part in text.replace("-", ".").replace("+", ".").split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def host_warnings(spec: Mapping[str, Any], build_isa: Collection[str]) -> list[str]:
    """A sentence when the archive's runtime was chosen where int8 products are fast, and here they are not."""
    here = set(host_isa())
    relied_on = INT8_ISA & set(build_isa)
    if spec.get("int8") and relied_on and here and not INT8_ISA & here:
        return [
            f"this archive's runtime was chosen on a host with int8 dot products ({', '.join(sorted(relied_on))}); "
            "this host has none of them: it is slower than the archive's report says. Its answers are checked against the "
            "stored ones before it serves"
        ]
    return []


def unpacked(folder: Path, spec: Mapping[str, Any]) -> np.ndarray | None:
    """The image of the graph's weights where they lie packed beside it, None where they lie as they are."""
    if "weights" not in spec:
        return None
    require("safetensors", required(folder, "safetensors"))
    return read_image(folder / spec["weights"])


class OnnxRuntimeSession:
    """model.onnx on ONNX Runtime's CPU or CUDA provider."""

    name = "onnxruntime"

    def __init__(self, folder: Path, spec: Mapping[str, Any], threads: int) -> None:
        ort = require("onnxruntime", spec["requirement"])
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
        image = unpacked(folder, spec)
        if image is not None:
            options.add_external_initializers_from_files_in_memory([IMAGE], [image], [image.size])
        self._session = ort.InferenceSession(str(folder / spec["model"]), options, providers=[provider])
        self._inputs = {item.name for item in self._session.get_inputs()}

    def run(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        return self._session.run(None, {k: v for k, v in arrays.items() if k in self._inputs})[0]


class OpenVinoSession:
    """model.xml and model.bin on OpenVINO's CPU plugin."""

    name = "openvino"

    def __init__(self, folder: Path, spec: Mapping[str, Any], threads: int) -> None:
        os.environ.setdefault("OPENVINO_TELEMETRY_DISABLE", "1")
        ov = require("openvino", spec["requirement"])
        config = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            # One stream: the worker runs one sub-batch at a time. Pinning would put every worker on core 0.
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
            **spec.get("config", {}),
        }
        core = ov.Core()
        path, image = folder / spec["model"], unpacked(folder, spec)
        model = core.read_model(path) if image is None else core.read_model(path.read_bytes(), ov.Tensor(image))
        self._request = core.compile_model(model, "CPU", config).create_infer_request()
        self._inputs = {name for port in self._request.model_inputs for name in port.get_names()}

    def run(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        outputs = self._request.infer({k: v for k, v in arrays.items() if k in self._inputs}, share_inputs=True)
        return np.array(outputs[0])


class TorchSession:
    """The transformers module itself, its weights from packed safetensors: works wherever the worker works.

    It computes in fp32 on weights that are stored small, so it saves bytes and no time. The only session that imports
    transformers.
    """

    name = "torch"

    def __init__(self, folder: Path, spec: Mapping[str, Any], threads: int) -> None:
        torch = require("torch", "torch>=2.0")
        require("transformers", spec["requirement"])
        from handlers.architecture.encoder import load_encoder

        torch.set_num_threads(threads)
        self._torch = torch
        self._module = load_encoder(folder, spec).to(spec.get("device", "cpu"))
        self._device = spec.get("device", "cpu")

    def run(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        with self._torch.inference_mode():
            tensors = {k: self._torch.from_numpy(v).to(self._device) for k, v in arrays.items()}
            return self._module(**tensors).float().cpu().numpy()
