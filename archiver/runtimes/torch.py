"""torch: the transformers module itself, its weights packed. It takes every model, saves bytes and no time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from archiver.architecture import kv_shapes
from archiver.evaluation.metrics.perplexity import Predictions, predict_windows
from archiver.export.torch_packed import export_packed
from archiver.requirements import requirement
from archiver.runtimes.base import Export
from archiver.state.plan import plan_of
from archiver.storage.adapters import write_adapters
from archiver.tasks.forward_workload import ForwardWorkload
from archiver.tasks.workload import Workload
from handlers.architecture.outputs.decoder import DecoderWithHead
from handlers.storage.adapters import ADAPTERS


def export_forward(workload: ForwardWorkload, folder: Path) -> Export:
    """Write model.safetensors, config.json and structure.json into `folder`, for a task of one pass."""
    more = {
        "class": type(workload.model).__name__,
        "module": workload.task.module,
        "settings": workload.module.settings,
    }
    return Export(_export(workload, folder) | more)


def export_generation(workload: Workload, folder: Path) -> Export:
    """The same for a language model.

    Raises: UnsupportedModelError where it keeps something else than keys and values, which the backend pads and joins.
    """
    with workload.weights_in_memory():
        kv_shapes(workload.model)
    session = _export(workload, folder) | {"max_running": workload.recipe.serve.batch_size}
    if workload.adapters:
        write_adapters(folder, workload.adapters, {})
        session["adapters"] = ADAPTERS
    return Export(session)


def _export(workload: Workload, folder: Path) -> dict[str, Any]:
    with workload.weights_in_memory():
        export_packed(workload.model, plan_of(workload.model), folder)
    return {
        "requirement": requirement("transformers"),
        "int8": False,
        "model": "model.safetensors",
        "config": "config.json",
        "auto_class": workload.task.auto_class,
    }


@contextmanager
def score(handler: Any, folder: Path) -> Iterator[Callable[[np.ndarray], Predictions]]:
    """How the module that the handler has loaded predicts windows of text: a function of [windows, length] int64."""
    module = DecoderWithHead(handler.backend.model)
    yield lambda windows: predict_windows(module, windows)
