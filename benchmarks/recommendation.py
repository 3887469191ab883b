"""`make bench-recommendation`: a SASRec trained from interactions, its table compressed; and a table of a million items.

    python -m benchmarks.recommendation DATA [--model DIR] [--store DIR] [--items 1000000]

DATA: a folder with interactions.tsv (user, item, timestamp) and items.tsv (item, title). Without --model a model is trained
from it first, with the seed of the recipe (recommendation.yaml beside this file). Everything is built by the commands a
user would type. Each user's last item is held out, and all items are ranked: nothing is sampled.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
from safetensors import safe_open

from archiver.data.interactions import read_interactions
from archiver.evaluation.metrics.recommendation import (
    markov_scores,
    popularity_scores,
    rank_in,
    ranking_metrics,
    ranks_of,
)
from archiver.packaging.entry import handler_of
from archiver.packaging.mar import extracted
from archiver.tasks.items.new import SasRec, make_sasrec
from archiver.torchserve.client import predict_rest
from archiver.torchserve.server import TorchServe
from benchmarks.table import ROOT
from handlers.cpu import container_cores
from handlers.inputs.items import History
from handlers.tasks.items.recommendation import RecommendationHandler

COLUMNS = {"user": "user", "item": "item", "time": "timestamp"}
AWARE = "aware: {epochs: 4, learning_rate: 1e-3, batch_size: 64, distill: {hidden: 0}}"
WAYS = {
    "fp32": "none",
    "int8": '[{quantize: {method: weight-only, targets: "*"}}]',
    "static int8": "[{quantize: {method: static-int8}}]",
    "rank 16": "[{factorize: {method: svd, rank: 16, targets: model.item_embeddings}}]",
    "32 codes of 6 bits": "[{quantize: {method: product, splits: 32, bits: 6}}]",
    "16 codes of 7 bits": "[{quantize: {method: product, splits: 16, bits: 7}}]",
    "16 codes of 6 bits, trained": f"[{{quantize: {{method: product, splits: 16, bits: 6, {AWARE}}}}}]",
}
REQUESTS = 200


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", type=Path, help="a trained model directory: nothing is trained then")
    parser.add_argument("--store", type=Path, help="keep the archives here")
    parser.add_argument("--items", type=int, default=1_000_000, help="rows of the synthetic table; 0: leave it out")
    parser.add_argument("--ways", nargs="*", default=list(WAYS), help=f"of {', '.join(WAYS)}")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="marpress-bench-") as temporary:
        folder, store = Path(temporary), options.store or Path(temporary) / "store"
        model = options.model or folder / "model"
        if options.model is None:
            seconds = _train(options.data, model, store)
            print(f"trained in {seconds:.0f} s")
        _simple_rankings(options.data)
        print("| table | bytes | × smaller | hit@10 | ndcg@10 | those seen ranked, too | archive, MB | × eager |")
        print("|---|---|---|---|---|---|---|---|")
        for name in options.ways:
            print(_row(name, options.data, model, store), flush=True)
        if options.items:
            _many(options.items, folder, store)
    return 0


def _train(data: Path, model: Path, store: Path) -> float:
    started = time.perf_counter()
    _build(data, store, "trained", [f"model.keep={model}", "compress=none"])
    return time.perf_counter() - started


def _build(data: Path, store: Path, name: str, more: Sequence[str]) -> dict[str, Any]:
    """Build the shipped recipe with these changes; its report."""
    overrides = [
        f"name={name}",
        f"data.train={data / 'interactions.tsv'}",
        f"data.validation={data / 'interactions.tsv'}",
        f"data.items={data / 'items.tsv'}",
        "gate=null",
        *more,
    ]
    recipe = str(Path(__file__).with_name("recommendation.yaml"))
    command = [sys.executable, "-m", "archiver", "build", recipe, "--model-store", str(store), "--json"]
    command += [part for item in overrides for part in ("--set", item)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _simple_rankings(data: Path) -> None:
    """What popularity and a first-order Markov chain reach, with all items ranked and without those that were seen."""
    found = read_interactions(data / "interactions.tsv", COLUMNS)
    rows = {item: row for row, item in enumerate(found.items)}
    histories = [[rows[item] for item in history] for history in found.histories]
    known, targets = [history[:-1] for history in histories], [history[-1] for history in histories]
    popular = popularity_scores(known, len(rows))
    rankings: dict[str, Callable[[], Any]] = {
        "most popular": lambda: (popular for _ in targets),
        "first-order Markov chain": lambda: markov_scores(known, len(rows), [history[-1] for history in known]),
    }
    for name, scores in rankings.items():
        for what, seen in (("without what was seen", known), ("all items", None)):
            print(f"{name}, {what}: {_shown(ranking_metrics(ranks_of(scores(), targets, seen)))}")


def _row(name: str, data: Path, model: Path, store: Path) -> str:
    label = "".join(letter if letter.isalnum() else "-" for letter in name)
    report = _build(data, store, label, [f"model={model}", f"compress={WAYS[name]}"])
    metrics = report["metrics"]["compressed"]
    with extracted(store / f"{label}.mar") as (folder, _):
        size, plain = _table_bytes(folder)
        every = _all_items(folder, data)
    archive = report["size"]["archive_bytes"] / 1e6
    return (
        f"| {name} ({report['runtime']}) | {size} | {plain / size:.1f} | {metrics['hit@10']:.4f} | "
        f"{metrics['ndcg@10']:.4f} | {_shown(every)} | {archive:.2f} | {report['timings']['speedup']:.2f} |"
    )


def _opened(folder: Path) -> RecommendationHandler:
    handler = handler_of(folder)
    assert isinstance(handler, RecommendationHandler)
    handler.open(folder, threads=container_cores())
    return handler


def _all_items(folder: Path, data: Path) -> dict[str, float]:
    """The archive's metrics where items of the history are ranked, too: those of the report leave them out."""
    handler = _opened(folder)
    found = read_interactions(data / "interactions.tsv", COLUMNS)
    values = [History(tuple(history[:-1])) for history in found.histories]
    targets = [handler.catalog.rows(history[-1:], "target")[0] for history in found.histories]
    ran = handler.find(values, {"exclude_seen": False})
    return ranking_metrics([rank_in(one.outputs[0][0], target) for one, target in zip(ran, targets, strict=True)])


def _table_bytes(folder: Path) -> tuple[int, int]:
    """(bytes of the item table as it lies in the archive, bytes of it in fp32)."""
    items, width = len(json.loads((folder / "items.json").read_text())["ids"]), 0
    packed = folder / "weights.safetensors"
    if not packed.is_file():
        return _bytes_in_graph(folder, items)
    with safe_open(packed, framework="numpy") as file:
        described = json.loads(file.metadata()["marpress"])["tensors"]
        stored = {name: file.get_tensor(name).nbytes for name in file.keys()}  # noqa: SIM118 - no mapping
    size = 0
    for name, entry in described.items():
        shape = entry.get("shape", [])
        if items not in shape:
            continue
        width = max(width, int(np.prod(shape)) // items)
        size += sum(n for key, n in stored.items() if key == name or key.startswith(f"{name}::"))
    return size, items * width * 4


def _bytes_in_graph(folder: Path, items: int) -> tuple[int, int]:
    """The same of a graph whose constants are not packed."""
    import openvino as ov

    graph = ov.Core().read_model(
        next(folder / name for name in ("model.xml", "model.onnx") if (folder / name).exists())
    )
    constants = [
        one for one in graph.get_ordered_ops() if one.get_type_name() == "Constant" and items in list(one.shape)
    ]
    values = [int(np.prod(list(one.shape))) for one in constants]
    bits = [one.get_element_type().bitwidth for one in constants]
    return sum(n * b for n, b in zip(values, bits, strict=True)) // 8, max(values) * 4


def _many(items: int, folder: Path, store: Path) -> None:
    """A table of random vectors in int8: how long one client waits for the ten best of all items."""
    model = folder / "many"
    model.mkdir()
    make_sasrec(model, SasRec(), [str(item) for item in range(items)], {})
    draw = np.random.default_rng(0)
    rows = [f"{user}\t{draw.integers(items)}\t{time}\n" for user in range(16) for time in range(8)]
    (folder / "interactions.tsv").write_text("user\titem\ttimestamp\n" + "".join(rows))
    (folder / "items.tsv").write_text("item\ttitle\n0\tNothing\n")
    more = [f"model={model}", f"compress={WAYS['int8']}", "serve={runtime: openvino, workers: 1}", "data.items=null"]
    _build(folder, store, "many", more)
    path = store / "many.mar"
    bodies = [{"history": draw.integers(0, items, int(draw.integers(1, 129))).tolist()} for _ in range(REQUESTS)]
    with extracted(path) as (inside, _):
        handler = _opened(inside)
        _say("in process", [_seconds(handler.respond, [History(tuple(body["history"]))]) for body in bodies])
    with TorchServe([path], config=ROOT / "config.properties") as server:
        server.wait_ready(300)
        url, key = f"{server.inference_url}/predictions/many", server.inference_key
        sent = [json.dumps(body).encode() for body in bodies]
        _say("served, one client", [_seconds(predict_rest, url, body, token=key) for body in sent])


def _seconds(run: Callable[..., Any], *arguments: Any, **more: Any) -> float:
    started = time.perf_counter()
    run(*arguments, **more)
    return time.perf_counter() - started


def _say(where: str, seconds: Sequence[float]) -> None:
    """Without the first tenth, in which the runtime prepares its kernels for each length."""
    rest = [1000 * value for value in seconds[len(seconds) // 10 :]]
    print(f"{where}: median {median(rest):.1f} ms, p90 {quantiles(rest, n=10)[-1]:.1f} ms of {len(rest)} requests")


def _shown(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())


if __name__ == "__main__":
    sys.exit(main())
