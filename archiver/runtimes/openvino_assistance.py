"""Speculative decoding: a draft model, or the prompt itself, guesses tokens that the model then checks all at once.

The text stays the model's own. Whether it is faster hangs on the text, the draft and the number of streams, so it is
measured, and used only while at most as many texts run as it helped.
Source: Leviathan et al. 2023, arXiv:2211.17192; guessing from the prompt: Saxena 2023, prompt lookup decoding.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from archiver.compression.quantize.int8 import weight_only
from archiver.compression.quantize.options import WeightOnly
from archiver.errors import RecipeError
from archiver.evaluation.generation_speed import run_streams
from archiver.models.load import load_model
from archiver.models.source import resolve_model
from archiver.progress import counted
from archiver.state.plan import plan_of
from archiver.tasks.workload import Workload
from handlers.cpu import container_cores
from handlers.runtimes.openvino_paged import OpenVinoBackend

DRAFT = "draft"
STREAMS = (1, 2, 4, 8)
_ROUNDS = 3
_WRITTEN = 48
_FIRST = 4  # tokens of an untimed first turn


def assist(workload: Workload, folder: Path, session: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Add what the recipe asks for, measure it, and leave it out where it is not faster.

    Args:
        session: the plain one, whose files lie in `folder`.
    Returns: (what to add to serving.json's `session`, what was measured).
    """
    if workload.recipe.serve.draft is not None:
        add_draft(workload, folder)
    more, measured = choose_assistance(workload, folder, session)
    if not more and (folder / DRAFT).exists():
        remove_draft(folder)
    return more, measured


def add_draft(workload: Any, folder: Path) -> None:
    """Export the draft model with 8-bit weights into the archive."""
    from archiver.export.openvino_decoder import export_decoder

    draft = workload.recipe.serve.draft
    assert draft is not None
    if workload.tokenizer_json != workload.tokenizer_bytes:
        raise RecipeError(
            "serve.draft: a stage changed the model's tokens, and the draft's are the old ones: remove one"
        )
    model = load_model(resolve_model(draft), workload.task.auto_class)
    options: Any = WeightOnly()
    weight_only(model, options, None)  # type: ignore[arg-type]  # 8 bits are a plan, no example is looked at
    (folder / DRAFT).mkdir()
    export_decoder(model, plan_of(model), folder / DRAFT)


def remove_draft(folder: Path) -> None:
    """Remove the files of a draft model that does not make writing faster."""
    shutil.rmtree(folder / DRAFT)


def choose_assistance(workload: Any, folder: Path, session: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what to add to serving.json's `session`, what was measured): nothing to add where it is not faster.

    session: the plain one, whose files lie in `folder`, the draft's too
    """
    serve = workload.recipe.serve
    extra: dict[str, Any] = {"assistant_tokens": serve.assistant_tokens}
    extra |= {"draft": DRAFT} if serve.draft is not None else {"prompt_lookup": True}
    spec = session | extra | {"assist_up_to": max(STREAMS)}
    ends, threads = workload.end_ids, container_cores()
    pair = OpenVinoBackend(folder, session, threads, ends), OpenVinoBackend(folder, spec, threads, ends)
    length = max(1, min(workload.context, serve.max_length - _WRITTEN) // 2)
    windows = workload.windows(workload.tokenizer_json)[: max(STREAMS), :length]
    written = max(1, min(_WRITTEN, serve.max_length - length))
    ratios: dict[int, float] = {}
    with counted(len(STREAMS), "numbers of streams") as done:
        for count in STREAMS:
            ratios[count] = _ratio(pair, windows[:count], written)
            done(len(ratios))
            if helped_up_to(ratios) < count:
                break  # it is used for fewer at most: what it does for more decides nothing
    up_to = helped_up_to(ratios)
    measured: dict[str, Any] = {
        "kind": "draft" if serve.draft is not None else "prompt lookup",
        "tokens_guessed": serve.assistant_tokens,
        "speedup_by_streams": {str(count): round(ratio, 2) for count, ratio in ratios.items()},
        "used_up_to_streams": up_to,
    }
    return (extra | {"assist_up_to": up_to} if up_to else {}), measured


def helped_up_to(ratios: Mapping[int, float]) -> int:
    """The most streams, counted from one, up to which guessing was faster; 0: not even for one."""
    up_to = 0
    for count, ratio in sorted(ratios.items()):
        if ratio <= 1:
            break
        up_to = count
    return up_to


def _ratio(pair: tuple[OpenVinoBackend, OpenVinoBackend], prompts: Any, written: int) -> float:
    """Tokens per second of the second against the first, in turns."""
    rates: tuple[list[float], list[float]] = ([], [])
    for turn in range(_ROUNDS + 1):
        for side, backend in enumerate(pair):
            started = time.perf_counter()
            tokens = run_streams(backend, prompts, written if turn else _FIRST)
            if turn:
                rates[side].append(tokens / (time.perf_counter() - started))
    return median(rates[1]) / median(rates[0])
