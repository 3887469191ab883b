"""A decoder's files for each runtime that can serve it, and how much memory its KV cache may take."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch

from archiver.errors import UnsupportedModelError
from archiver.export.decoder_configs import kv_shapes
from archiver.export.graph_weights import pack_openvino
from archiver.export.torch_packed import export_packed
from archiver.models.load import skeleton
from archiver.packaging.layout import requirement
from archiver.state.plan import plan_of
from archiver.storage.layouts import by_content
from archiver.tasks.text.generation_workload import DecoderSubject
from handlers.runtimes.vllm import REQUIREMENT
from handlers.storage.graph_weights import PACKED

_CACHE_MB = 1024  # most that `cache_mb: auto` takes
_SPARE_BLOCKS = 8
_VLLM_FOLDER = "model"


def export_runtime(subject: DecoderSubject, runtime: str, folder: Path) -> dict[str, Any]:
    """Write the runtime's model files and return serving.json's `session`.

    UnsupportedModelError where the runtime cannot take the model, or is not here.
    """
    serve = subject.recipe.serve
    common = {"runtime": runtime, "device": serve.device, "max_running": serve.batch_size, "int8": False}
    export = {"openvino": _openvino, "torch": _torch, "vllm": _vllm}[runtime]
    return common | export(subject, folder)


def _openvino(subject: DecoderSubject, folder: Path) -> dict[str, Any]:
    from archiver.export.openvino_decoder import export_decoder

    plan, hints = plan_of(subject.model), by_content(subject.model)
    export_decoder(subject.model, plan, folder)
    packed = pack_openvino(folder / "openvino_model.xml", hints)
    session = {
        "requirement": requirement("openvino-genai"),
        "openvino": requirement("openvino"),
        # bf16 would make the answers depend on whether the host has it, and is no faster with integer weights.
        "precision": "f32",
        "kv_cache": subject.recipe.serve.kv_cache,
        "cache_blocks": cache_blocks(subject),
        # With integer weights the CPU quantizes activations too, in small groups.
        "int8": plan is not None or any(hint.grouping is not None for hint in hints.values()),
    }
    return session | ({"weights": PACKED} if packed else {})


def _torch(subject: DecoderSubject, folder: Path) -> dict[str, Any]:
    kv_shapes(subject.model)  # the torch runtime pads and joins keys and values: it refuses what keeps something else
    export_packed(subject.model, plan_of(subject.model), folder)
    return {
        "requirement": requirement("transformers"),
        "model": "model.safetensors",
        "config": "config.json",
        "task": subject.recipe.task,
    }


def _vllm(subject: DecoderSubject, folder: Path) -> dict[str, Any]:
    """A plain model folder: vLLM makes the layers from config.json, so all shapes must be those it says."""
    if importlib.util.find_spec("vllm") is None:
        raise UnsupportedModelError(
            f"runtime vllm: this host has no vLLM to build and check the archive with; run `pip install '{REQUIREMENT}'` "
            "on a host with a CUDA device, or set serve.runtime to auto"
        )
    with torch.device("meta"):
        expected = {
            name: tuple(w.shape) for name, w in skeleton(subject.source, subject.recipe.task).state_dict().items()
        }
    found = {name: tuple(weight.shape) for name, weight in subject.model.state_dict().items()}
    if odd := sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)):
        raise UnsupportedModelError(
            f"runtime vllm: it makes every layer from config.json, and {len(odd)} weights have other shapes "
            f"({', '.join(odd[:3])} …): set serve.runtime to openvino or torch"
        )
    subject.model.save_pretrained(folder / _VLLM_FOLDER, safe_serialization=True)  # type: ignore[operator]
    return {"requirement": REQUIREMENT, "model": _VLLM_FOLDER, "max_length": subject.recipe.serve.max_length}


def cache_blocks(subject: DecoderSubject) -> int:
    """Blocks of OpenVINO's KV cache: room for batch_size texts of max_length tokens, within serve.cache_mb.

    At the least one text of full length fits. What does not fit waits, or is computed anew: nothing is refused for it.
    """
    serve = subject.recipe.serve
    tokens = 32 if serve.kv_cache == "u8" else 16  # of one block on a CPU
    least = -(-serve.max_length // tokens) + _SPARE_BLOCKS
    wanted = serve.batch_size * -(-serve.max_length // tokens) + _SPARE_BLOCKS
    width = {"u8": 1.2, "bf16": 2, "f16": 2, "f32": 4}[serve.kv_cache]  # bytes a number, with u8's scales
    most = (_CACHE_MB if serve.cache_mb == "auto" else int(serve.cache_mb)) * 1e6
    return max(least, min(wanted, int(most / (tokens * subject.key_value_width * width))))
