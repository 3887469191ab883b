"""Before a build starts: about how long it will take here, and how much memory and disk it needs.

Rough: products of the model's size, the texts' tokens and what a small product of matrices reaches on this host. The
factors are those of builds of 6 M to 360 M parameters on two cores; what is not a text has no forecast of its time.
"""

from __future__ import annotations

import errno
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from archiver.compression.retrain.training import computes_in_bf16
from archiver.evaluation.speed import MAX_ITEMS
from archiver.pipeline.check import Checked
from archiver.progress import duration
from archiver.runtimes import serving_runtimes
from archiver.spec import Recipe, Stage
from archiver.tasks.base import FORWARD, GENERATE

LOAD = "load the model, answer the validation texts"
VERIFY = "verify: load it alone, answer its examples"
PACK = "pack"
_BASE = 600e6  # bytes of the process without a model
_COPIES = 3.0  # of the fp32 weights at the same time, with what the runtimes make of them
_WRITERS = 1.1  # the same of models that write: theirs lie in files while they are not needed
_LOGITS = 600e6  # bytes of these models' logits, and of what is made of them
_OPENED = 2.5  # bytes in memory for each byte of the archive's weights, mapped ones included
_EAGER = 1.5  # a pass through a model, against its products alone at the rate of a large one
_EAGER_SHORT = 2.2  # the same in bf16: products are quicker, the rest is not
_READ, _WRITE, _STREAM = 400e6, 20e6, 10e9  # bytes a second: of weights loaded, of an archive packed, of memory
_LEARNT = 2048  # tokens of one step of a layer that learns by itself
_SERVED = 10.0  # seconds that runtimes' workers take to start and to be timed side by side
_TRAINING = 4  # passes that a step of training is worth: forward, backward, the original's


@dataclass(frozen=True)
class Forecast:
    """What a build will need.

    Args:
        seconds: by step; None where nobody can tell.
        memory: bytes resident at once. store, temporary: bytes on the model store's disk and on that of temporary files.
    """

    seconds: Mapping[str, float] | None
    memory: float
    store: float
    temporary: float

    def sentence(self) -> str:
        """ "about 3 minutes, 2.1 GB of memory and 0.4 GB of disk"."""
        took = f"{duration(sum(self.seconds.values()))}, " if self.seconds is not None else ""
        return f"about {took}{_gb(self.memory)} of memory and {_gb(self.store + self.temporary)} of disk"


def forecast(checked: Checked, flops: float | None = None) -> Forecast:
    """What the build of a checked recipe will need.

    Args:
        flops: operations a second that the host reaches; None: they are measured.
    """
    recipe, facts, task = checked.recipe, checked.facts, checked.task
    weights = 4.0 * facts.num_parameters
    stored = weights * min((_bits(stage) for stage in recipe.compress if stage.verb == "quantize"), default=32) / 32
    runtimes = _runtimes(recipe, task.execution)
    trains = [stage for stage in recipe.compress if _epochs(stage)]
    parked = weights if task.execution == GENERATE else 0.0
    store = stored * (len(runtimes) + 1) + 3 * weights * bool(trains) + parked
    memory = _BASE + 3 * bool(trains) * weights
    memory += _WRITERS * weights + _OPENED * stored + _LOGITS if task.execution == GENERATE else _COPIES * weights
    read, learnt = (task.tokens(part, recipe, facts, checked.source) for part in (checked.validation, checked.train))
    if read is None or learnt is None:
        return Forecast(None, memory, store, stored)
    rate = (product_rate() if flops is None else flops) / _EAGER

    # A table that is only looked up in takes no products (a factorized one is smaller than this); a model that writes has
    # its head in it.
    looked_up = facts.vocab_size * facts.hidden_size if task.execution == FORWARD else 0
    multiplied = max(facts.num_parameters - looked_up, facts.num_parameters // 2)

    def passes(tokens: float, at: float = rate) -> float:
        return 2 * multiplied * tokens / at

    validation = task.measured_tokens(read, recipe, facts)
    steps = {LOAD: 2 + weights / _READ + (0 if task.execution == GENERATE else passes(validation))}
    for stage in recipe.compress:
        samples = float(getattr(stage.options, "samples", 0) or 0) if stage.needs_data else 0.0
        seen = samples * min(task.tokens_of_one(recipe, facts), learnt)
        # Stages that learn layer by layer take so many batches in each: together as many through the whole model.
        fitted = min(_LEARNT, learnt) * getattr(stage.options, "learning_steps", 0)
        trained = _epochs(stage) * learnt + fitted
        # Several stages of one kind bear one label.
        label = f"compress: {stage.label}"
        at = _training_rate(stage) if flops is None else rate
        steps[label] = steps.get(label, 0.0) + 1 + 2 * passes(seen) + _TRAINING * passes(trained, at)
        if stage.bounds is not None or stage.measure:
            label = f"measure: after {stage.label}"
            steps[label] = steps.get(label, 0.0) + passes(2 * validation)
    for name in runtimes:
        writing = 5 + weights / 130e6 + passes(2 * validation)
        guessing = 1500 * facts.num_parameters / _STREAM if recipe.serve.prompt_lookup or recipe.serve.draft else 0
        steps[f"{name}: write, load, measure"] = writing + guessing
        some = min(1.0, MAX_ITEMS / len(checked.validation))
        timed = 200 * weights / _STREAM if task.execution == GENERATE else passes(6 * some * validation)
        steps[f"{name}: time against PyTorch eager fp32"] = 2 + timed
    if len(runtimes) > 1 and task.execution == FORWARD:
        steps[served_step(runtimes)] = _SERVED
    return Forecast(steps | {VERIFY: 5 + stored / _READ, PACK: 1 + stored / _WRITE}, memory, store, stored)


def served_step(names: Iterable[str]) -> str:
    """The step in which several runtimes are compared as they are served."""
    return f"{', '.join(names)}: time as they are served"


def require_room(needed: Forecast, model_store: Path) -> None:
    """Refuse a build for which a disk has too little room.

    Raises: OSError (ENOSPC) that says how much is needed, how much is free, and where.
    """
    places = {_existing(model_store): needed.store}
    temporary = _existing(Path(tempfile.gettempdir()))
    beside = next((place for place in places if place.stat().st_dev == temporary.stat().st_dev), temporary)
    places[beside] = places.get(beside, 0.0) + needed.temporary
    for place, wanted in places.items():
        free = shutil.disk_usage(place).free
        if free < wanted:
            what = (
                "the disk of temporary files (TMPDIR)" if place == temporary != _existing(model_store) else "its disk"
            )
            raise OSError(errno.ENOSPC, f"the build needs about {_gb(wanted)} and {what} has {_gb(free)} left")


@cache
def product_rate(dtype: torch.dtype = torch.float32) -> float:
    """Floating point operations a second of a product of matrices here, on all cores; measured once in a process."""
    left, right = torch.ones(512, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
    best, ended = float("inf"), time.perf_counter() + 0.3
    while (started := time.perf_counter()) < ended:
        left @ right
        best = min(best, time.perf_counter() - started)
    return 2 * 512 * 1024 * 1024 / best


def _runtimes(recipe: Recipe, execution: str) -> list[str]:
    """Names of the runtimes that will be staged: with `auto` those that do not compute in fp32."""
    if recipe.serve.runtimes:
        return list(recipe.serve.runtimes)
    if recipe.serve.runtime != "auto":
        return [recipe.serve.runtime]
    able = [one for one in serving_runtimes(execution, recipe.serve.device) if one.automatic]
    return [one.name for one in able if not one.fallback] or [one.name for one in able]


def _bits(stage: Stage) -> float:
    return float(getattr(stage.options, "bits", 8) or 8)


def _epochs(stage: Stage) -> float:
    """Passes over the training data that a stage makes, its own or those of its `aware`."""
    options: Any = stage.options
    epochs = getattr(options, "epochs", None) or getattr(getattr(options, "aware", None), "epochs", 0)
    return float(epochs or 0)


def _training_rate(stage: Stage) -> float:
    """Operations a second of passes in the precision that a stage trains in."""
    options = getattr(stage.options, "aware", None) or stage.options
    short = computes_in_bf16(getattr(options, "precision", "fp32"), torch.device("cpu"))
    return product_rate(torch.bfloat16) / _EAGER_SHORT if short else product_rate() / _EAGER


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.is_dir())


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 95e6 else f"{count / 1e6:.0f} MB"
