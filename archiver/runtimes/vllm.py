"""vLLM, on a host with a CUDA device: a plain model folder, from whose config.json it makes the layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from archiver.errors import DataError, UnsupportedModelError
from archiver.evaluation.metrics.perplexity import Predictions
from archiver.models.load import skeleton
from archiver.progress import counted
from archiver.runtimes.base import Export
from archiver.tasks.workload import Workload
from handlers.runtimes.vllm import REQUIREMENT

FOLDER = "model"


def export(workload: Workload, folder: Path) -> Export:
    """Write the model folder. UnsupportedModelError where a weight has another shape than config.json says."""
    with torch.device("meta"):
        plain = skeleton(workload.source, workload.task.auto_class)
    expected = {name: tuple(weight.shape) for name, weight in plain.state_dict().items()}
    with workload.weights_in_memory():
        return _export(workload, folder, expected)


def _export(workload: Workload, folder: Path, expected: dict[str, tuple[int, ...]]) -> Export:
    found = {name: tuple(weight.shape) for name, weight in workload.model.state_dict().items()}
    if odd := sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)):
        raise UnsupportedModelError(
            f"runtime vllm: it makes every layer from config.json, and {len(odd)} weights have other shapes "
            f"({', '.join(odd[:3])} …): set serve.runtime to openvino or torch (or rotate to false, if that "
            "is where they come from)"
        )
    workload.model.save_pretrained(folder / FOLDER, safe_serialization=True)  # type: ignore[operator]
    serve = workload.recipe.serve
    session = {"requirement": REQUIREMENT, "int8": False, "model": FOLDER, "max_length": serve.max_length}
    return Export(session | {"max_running": serve.batch_size})


@contextmanager
def score(handler: Any, folder: Path) -> Iterator[Callable[[np.ndarray], Predictions]]:
    """How the engine that serves predicts windows of text: a function of [windows, length] int64.

    It raises DataError when a window does not fit in the engine, or a likelihood is no number.
    """
    yield lambda windows: _predicted(handler.backend, windows)


def _predicted(backend: Any, windows: np.ndarray) -> Predictions:
    nll, best = np.zeros(len(windows)), np.zeros((windows.shape[0], windows.shape[1] - 1), np.int64)
    with counted(len(windows), "windows") as done:
        for row, window in enumerate(windows.tolist()):
            try:
                nll[row] = -sum(backend.log_likelihoods(window)) / best.shape[1]
                best[row] = backend.likeliest(window)
            except ValueError as error:
                raise DataError(
                    f"vLLM cannot measure the validation text: {error}; a window and one more token must fit in the "
                    f"model's positions: lower data.context ({windows.shape[1]})"
                ) from error
            done(row + 1)
    if not np.isfinite(nll).all():
        raise DataError(
            "the model gave likelihoods that are not finite on the validation text: nothing can be measured"
        )
    return Predictions(nll, best)
