"""How near an archive comes to what this host can do: products a second while a batch runs, bytes a second while one text
is written.

Source of the figure: Williams et al. 2009, «Roofline», Communications of the ACM 52 (4). What the host can do is measured
here, too, with PyTorch's products of large matrices and a copy of memory.
"""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from archiver.bench.work import Uncounted, Work, read_graph, work_of
from archiver.packaging.entry import handler_of
from archiver.packaging.mar import extracted
from handlers.base import BatchHandler
from handlers.cpu import container_cores, host_isa
from handlers.manifest import EXAMPLES
from handlers.protocols.continuation import Sampling

BATCH = 64
_SIDE = 2048  # of the matrices
_COPIED = 1 << 29  # bytes: more than a cache holds
_TOKENS = 128  # written
_ROUNDS = 7


def roofline(mar: Path, values: Sequence[Any] | None, progress: Callable[[str], None]) -> dict[str, Any]:
    """Run an archive in process, on all cores.

    Args:
        values: inputs; None: the archive's stored examples.
    Returns: JSON-able: host, peaks, and what was reached; see `format_roofline`.
    Raises: Uncounted for an archive whose graph cannot be counted.
    """
    threads = container_cores()
    with extracted(mar) as (folder, _):
        handler: Any = handler_of(folder)
        handler.open(folder, threads=threads)
        stored = json.loads((folder / EXAMPLES).read_bytes())
        inputs = values or [handler.input.from_stored(example["input"]) for example in stored]
        graph = read_graph(folder, handler.serving["session"])
        progress("measuring what the host can do")
        peaks = _peaks(threads)
        progress(f"running {mar.name}")
        if isinstance(handler, BatchHandler):
            reached = _batches(handler, graph, inputs, peaks)
        elif hasattr(getattr(handler, "backend", None), "add"):
            reached = _text(handler, work_of(graph).weight_bytes, inputs, peaks)
            handler.engine.close()
        else:
            raise Uncounted(f"{mar.name} is neither of one pass nor a language model: its work is not counted")
    return {"archive": mar.name, "threads": threads, "isa": host_isa(), "peaks": peaks, **reached}


def format_roofline(found: dict[str, Any]) -> str:
    """In words and numbers."""
    peaks = found["peaks"]
    lines = [
        f"{found['archive']} in process, {found['threads']} threads ({', '.join(found['isa']) or 'unknown ISA'})",
        f"this host: int8 {peaks['int8_gops']:.0f} GOP/s, float32 {peaks['float32_gops']:.0f} GOP/s "
        f"(products of {_SIDE}³), copies {peaks['copy_gbs']:.1f} GB/s (half of that read, half written), "
        f"reads {peaks['read_gbs']:.1f} GB/s",
    ]
    if "rows" in found:
        lines += [
            f"batches of {found['rows']}, like lengths together: {found['items_per_s']:.1f} inputs/s, "
            f"{found['integer_gops'] + found['floating_gops']:.0f} GOP/s "
            f"(int8 {found['integer_gops']:.0f}, floating {found['floating_gops']:.0f})",
            f"share of what the host could do: {found['share']:.2f}",
        ]
    else:
        lines += [
            f"one text: {found['tokens_per_s']:.1f} tokens/s in {found['passes_per_s']:.1f} passes/s, each over "
            f"{found['weight_bytes'] / 1e6:.1f} MB of weights: {found['gbs']:.2f} GB/s",
            f"beside the bytes that a copy reads a second: {found['gbs'] / peaks['copy_gbs'] * 2:.2f}; beside what is "
            f"read where nothing is written: {found['share']:.2f}",
        ]
    return "\n".join(lines) + "\n"


def _batches(handler: Any, graph: Any, inputs: Sequence[Any], peaks: dict[str, float]) -> dict[str, Any]:
    kind = handler.input
    items = kind.encode(inputs, {})
    items = sorted((items * -(-BATCH // len(items)))[: max(BATCH, len(items) // BATCH * BATCH)], key=kind.size)
    groups = [items[start : start + BATCH] for start in range(0, len(items), BATCH)]
    batches = [kind.collate(group, kind.size(group[-1]), len(group)) for group in groups]
    spec = handler.serving["session"]
    dynamic = bool(int(spec.get("config", {}).get("DYNAMIC_QUANTIZATION_GROUP_SIZE", 0)))
    works: list[Work] = []
    for batch in batches:
        shapes = {name: array.shape for name, array in batch.items()}
        works.append(work_of(graph, shapes, rounds_itself=dynamic))
    seconds = []
    for turn in range(_ROUNDS + 1):
        started = time.perf_counter()
        for batch in batches:
            handler.session.run(batch)
        seconds += [time.perf_counter() - started] if turn else []  # the first one makes shapes and caches
    took, integer = median(seconds), sum(work.integer for work in works) / 1e9
    floating = sum(work.floating for work in works) / 1e9
    return {
        "rows": BATCH,
        "items_per_s": len(items) / took,
        "integer_gops": integer / took,
        "floating_gops": floating / took,
        "share": (integer / peaks["int8_gops"] + floating / peaks["float32_gops"]) / took,
    }


def _text(handler: Any, weight_bytes: int, inputs: Sequence[Any], peaks: dict[str, float]) -> dict[str, Any]:
    """Passes count, and not tokens: one that tries guesses reads the weights once for several."""
    backend, ids = handler.backend, handler.input.encoder.encode(list(inputs[:1]))[0].ids
    rates = []
    for turn in range(_ROUNDS):
        backend.add(turn, ids, Sampling(_TOKENS, bias=tuple((end, -100.0) for end in handler.serving["end_ids"])))
        while not (steps := backend.step()):  # the prompt
            pass
        started, passes, tokens = time.perf_counter(), 0, 0
        while steps[0].finish is None:
            steps = backend.step()
            passes, tokens = passes + 1, tokens + len(steps[0].ids)
        took = time.perf_counter() - started
        rates.append((passes / took, tokens / took))
    passes_per_s, tokens_per_s = (median(rate) for rate in zip(*rates, strict=True))
    gbs = passes_per_s * weight_bytes / 1e9
    return {
        "weight_bytes": weight_bytes,
        "passes_per_s": passes_per_s,
        "tokens_per_s": tokens_per_s,
        "gbs": gbs,
        "share": gbs / peaks["read_gbs"],
    }


def _peaks(threads: int) -> dict[str, float]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        whole = torch.randint(-127, 128, (_SIDE, _SIDE), dtype=torch.int8)
        real = torch.randn(_SIDE, _SIDE)
        there = torch.ones(_COPIED // 4)
        back = torch.empty_like(there)
        products = 2 * _SIDE**3 / 1e9
        return {
            "int8_gops": products / _least(lambda: torch._int_mm(whole, whole)),
            "float32_gops": products / _least(lambda: torch.mm(real, real)),
            "copy_gbs": 2 * _COPIED / 1e9 / _least(lambda: back.copy_(there)),
            "read_gbs": _COPIED / 1e9 / _least(there.sum),
        }
    finally:
        torch.set_num_threads(before)


def _least(run: Callable[[], object]) -> float:
    seconds = []
    for _ in range(_ROUNDS + 1):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])
