"""The sessions of runtimes that answer with one pass, opened in this process by what serving.json says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from handlers.runtimes.base import Session
from handlers.runtimes.onnxruntime import OnnxRuntimeSession
from handlers.runtimes.openvino import OpenVinoSession
from handlers.runtimes.torch_forward import TorchSession

SESSIONS: dict[str, type[Session]] = {
    "onnxruntime": OnnxRuntimeSession,
    "openvino": OpenVinoSession,
    "torch": TorchSession,
}


def open_session(folder: Path, spec: Mapping[str, Any], *, threads: int) -> Session:
    return SESSIONS[spec["runtime"]](folder, spec, threads)
