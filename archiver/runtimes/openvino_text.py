"""OpenVINO for text generation: IR with keys and values as state, served with continuous batching over pages."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from archiver.architecture import kv_shapes
from archiver.errors import DataError
from archiver.evaluation.metrics.perplexity import Predictions
from archiver.evaluation.openvino_windows import LikeliestTokens
from archiver.export.decoder_check import IR
from archiver.export.graph.weights import pack_openvino
from archiver.export.openvino_decoder import export_decoder
from archiver.host import give_back_memory
from archiver.progress import counted
from archiver.requirements import requirement
from archiver.runtimes.base import Export
from archiver.runtimes.openvino_assistance import assist
from archiver.spec import ServeSpec
from archiver.state.plan import plan_of
from archiver.storage.layouts import layouts_by_content
from archiver.tasks.workload import Workload
from handlers.cpu import container_cores
from handlers.runtimes.openvino_paged import BLOCK, OpenVinoBackend
from handlers.storage.adapters import ADAPTERS
from handlers.storage.graph_weights import PACKED, weights_of

_CACHE_MB = 1024  # most that `cache_mb: auto` takes
_LARGE = 3e8  # bytes of an archive's weights from which on what serves is not in memory while it is measured
_SPARE_BLOCKS = 8
_NOT_SCORED = ("draft", "prompt_lookup", "adapters")


def export(workload: Workload, folder: Path) -> Export:
    """Write the IR (and a draft model's, where it makes writing faster) into `folder`."""
    serve, plan = workload.recipe.serve, plan_of(workload.model)
    with workload.weights_in_memory():
        layouts, width = layouts_by_content(workload.model), key_value_width(workload.model)
    export_decoder(workload.model, plan, folder, workload.weights_in_memory, workload.adapters)
    packed = pack_openvino(folder / IR, layouts)
    session = {
        "openvino": requirement("openvino"),
        # bf16 would make the answers depend on whether the host has it, and is no faster with integer weights.
        "precision": "f32",
        "kv_cache": serve.kv_cache,
        "cache_blocks": cache_blocks(serve, width),
        "max_running": serve.batch_size,
        # With integer weights the CPU quantizes activations too, in small groups.
        "int8": plan is not None or any(layout.grouping is not None for layout in layouts.values()),
    }
    session |= {"weights": PACKED} if packed else {}
    named = {"adapters": ADAPTERS} if workload.adapters else {}
    if serve.draft is None and not serve.prompt_lookup:
        return Export(session | named)
    more, measured = assist(workload, folder, session)
    give_back_memory()
    return Export(session | named | more, measured={"assistance": measured})


def key_value_width(model: Any) -> int:
    """Numbers that the KV cache keeps for one token, over all layers as they are now."""
    return sum(heads * (key + value) for heads, key, value in kv_shapes(model))


def cache_blocks(serve: ServeSpec, width: int) -> int:
    """Blocks of OpenVINO's KV cache: room for batch_size texts of max_length tokens, within serve.cache_mb.

    Args:
        width: numbers that the cache keeps for one token.
    Returns: at the least what one text of full length takes. What does not fit waits, or is computed anew: nothing is
        refused for it.
    """
    least = -(-serve.max_length // BLOCK) + _SPARE_BLOCKS
    wanted = serve.batch_size * -(-serve.max_length // BLOCK) + _SPARE_BLOCKS
    size = {"u8": 1.2, "bf16": 2, "f16": 2, "f32": 4}[serve.kv_cache]  # bytes a number, with u8's scales
    most = (_CACHE_MB if serve.cache_mb == "auto" else int(serve.cache_mb)) * 1e6
    return max(least, min(wanted, int(most / (BLOCK * width * size))))


@contextmanager
def score(handler: Any, folder: Path) -> Iterator[Callable[[np.ndarray], Predictions]]:
    """How the pipeline that serves predicts windows of text, with its own KV cache: a function of [windows, length] int64.

    It raises DataError when a likelihood is no number.

    Args:
        handler: opened on `folder`.
    """
    session = {key: value for key, value in handler.serving["session"].items() if key not in _NOT_SCORED}
    large = sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".bin", ".safetensors")) > _LARGE
    with handler.unloaded() if large else nullcontext():
        backend = OpenVinoBackend(folder, session, container_cores(), ())
        graph = LikeliestTokens(folder / IR, weights_of(folder, session), {"INFERENCE_PRECISION_HINT": "f32"})
        held: list[Any] = [backend, graph]  # the caller may hold the function for longer than this lasts
        del backend, graph
        try:
            yield lambda windows: _predicted(held[0], held[1], windows)
        finally:
            held.clear()
            give_back_memory()


def _predicted(backend: OpenVinoBackend, graph: LikeliestTokens, windows: np.ndarray) -> Predictions:
    nll, best = np.zeros(len(windows)), np.zeros((windows.shape[0], windows.shape[1] - 1), np.int64)
    with counted(len(windows), "windows") as done:
        for row, window in enumerate(windows):
            found = backend.log_likelihoods(window.tolist())
            nll[row] = -sum(found) / best.shape[1]
            if len(found) != best.shape[1] or not math.isfinite(nll[row]):
                raise DataError(
                    "the model gave likelihoods that are not finite on the validation text: nothing can be measured"
                )
            best[row] = graph.of(window)
            done(row + 1)
    return Predictions(nll, best)
