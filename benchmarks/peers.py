"""`make bench-peers`: one classifier served by marpress, LitServe, BentoML and TorchServe's plain handler, in turns.

    python -m benchmarks.peers [--rounds N] [--seconds S] [--only NAME …]

MiniLM fine-tuned on SST-2 (environment variable MARPRESS_SHARED, or ../shared beside the repository), static int8. LitServe
and BentoML serve the archive's own OpenVINO graph with two workers, batches of 32 and 2 ms of waiting for company, as a
careful user writes it; the plain handler computes in fp32. The peers come from PyPI into environments of their own
(.bench-peers, in the current directory). Each is started afresh every round, warmed up, and loaded by 1, 16 and 64 REST
clients that send a sentence each; nothing else runs meanwhile.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from archiver.bench.load import Load, LoadResult, generate
from archiver.bench.stock import build_stock
from archiver.packaging.mar import extract
from archiver.pipeline.build import build
from archiver.recipe.load import load_recipe
from archiver.torchserve.server import TorchServe
from archiver.torchserve.settings import addresses
from benchmarks.table import RECIPES, ROOT, SHARED
from handlers.cpu import container_cores, host_isa

PLACE = Path(".bench-peers")
NAME = "sst2"
CLIENTS = (1, 16, 64)
READY_SECONDS = 180.0
# What both scripts share: the archive's graph and tokenizer, one thread a worker, as the archive's own handler has them.
COMMON = """
import json, sys
from pathlib import Path
import numpy as np
folder, port, workers = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
serving = json.loads((folder / "serving.json").read_text())

class Classifier:
    def __init__(self):
        sys.modules["openvino_telemetry"] = None
        import openvino as ov
        from tokenizers import Tokenizer
        core = ov.Core()
        config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
        config |= serving["session"].get("config", {})
        self.request = core.compile_model(core.read_model(folder / "model.xml"), "CPU", config).create_infer_request()
        self.names = {name for port in self.request.model_inputs for name in port.get_names()}
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(serving["max_length"])
        self.tokenizer.enable_padding(pad_id=serving["pad_id"])
        self.labels = serving["labels"]

    def __call__(self, texts):
        found = self.tokenizer.encode_batch(texts)
        arrays = {"input_ids": [f.ids for f in found], "attention_mask": [f.attention_mask for f in found],
                  "token_type_ids": [f.type_ids for f in found]}
        arrays = {name: np.array(value, np.int64) for name, value in arrays.items() if name in self.names}
        logits = self.request.infer(arrays)[0]
        scores = np.exp(logits - logits.max(1, keepdims=True))
        scores /= scores.sum(1, keepdims=True)
        order = np.argsort(-scores, 1)
        return [[{"label": self.labels[i], "score": float(s[i])} for i in o] for s, o in zip(scores, order)]
"""
LITSERVE = """
import litserve as ls

class Api(ls.LitAPI):
    def setup(self, device):
        self.run = Classifier()
    def decode_request(self, request):
        return request["inputs"]
    def batch(self, inputs):
        return inputs
    def predict(self, texts):
        return self.run(texts)
    def unbatch(self, output):
        return output
    def encode_response(self, output):
        return output

if __name__ == "__main__":
    api = Api(max_batch_size=32, batch_timeout=0.002, api_path="/predictions/sst2")
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=workers)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="error", access_log=False)
"""
BENTOML = """
import bentoml

@bentoml.service(workers=WORKERS)
class Sst2:
    def __init__(self):
        self.run = Classifier()
    @bentoml.api(batchable=True, max_batch_size=32, max_latency_ms=1000, route="/predictions/sst2")
    def classify(self, inputs: list[str]) -> list[list[dict]]:
        return self.run(inputs)
"""
PACKAGES: Mapping[str, Sequence[str]] = {
    "litserve": ("litserve==0.2.19",),
    "bentoml": ("bentoml==1.4.40",),
}


@dataclass
class Row:
    """What one side's rounds measured."""

    results: dict[int, list[LoadResult]] = field(default_factory=lambda: {count: [] for count in CLIENTS})
    memory: list[float] = field(default_factory=list)
    start: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Running:
    """A server that answers. pids: its processes. lists: whether a request has a list of one sentence, not a bare one."""

    host: str
    port: int
    token: str | None
    pids: Callable[[], Sequence[int]]
    lists: bool = False

    def bodies(self, texts: Sequence[str]) -> list[bytes]:
        return [json.dumps({"inputs": [text] if self.lists else text}).encode() for text in texts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--only", nargs="*", help="of: marpress litserve bentoml stock")
    options = parser.parse_args()
    if not SHARED.is_dir():
        sys.exit(f"no real data at {SHARED}: set MARPRESS_SHARED")
    lines = (SHARED / "data/sst2/dev.tsv").read_text(encoding="utf-8").splitlines()
    texts = [line.rsplit("\t", 1)[0] for line in lines]
    with tempfile.TemporaryDirectory(prefix="marpress-bench-") as name:
        sides = _sides(Path(name))
        chosen = [side for side in sides if not options.only or side in options.only]
        rows = {side: Row() for side in chosen}
        for turn in range(options.rounds):
            for side in chosen if turn % 2 == 0 else chosen[::-1]:
                print(f"round {turn + 1}: {side}", file=sys.stderr, flush=True)
                _measure(sides[side], rows[side], texts, options.seconds)
    print(f"{container_cores()} cores, {', '.join(host_isa())}; {options.rounds} rounds, median; ratios to marpress")
    print("| | 1 client: req/s, p50 ms | 16 clients | 64 clients: req/s | p50, p99 ms | PSS, MB | start, s |")
    print("|---|---|---|---|---|---|---|")
    for side, row in rows.items():
        print(_shown(side, row, rows.get("marpress")))


def _sides(folder: Path) -> dict[str, Callable[[], Any]]:
    """Name → what starts the server."""
    overrides = [
        f"model={SHARED / 'models/minilm-sst2'}", f"data.train={SHARED / 'data/sst2/train.tsv'}",
        f"data.validation={SHARED / 'data/sst2/dev.tsv'}", "data.columns={text: 0, label: 1}",
    ]  # fmt: skip
    recipe = load_recipe(RECIPES / "sst2.yaml", overrides)
    ours = build(recipe, folder / "auto").path
    graph = build(load_recipe(RECIPES / "sst2.yaml", [*overrides, "serve.runtime=openvino"]), folder / "openvino").path
    extract(graph, folder / "graph")
    stock = build_stock(
        SHARED / "models/minilm-sst2",
        recipe.task,
        "AutoModelForSequenceClassification",
        folder,
        name=NAME,
        max_length=128,
    )
    return {
        "marpress": lambda: _torchserve(ours),
        "litserve": lambda: _script("litserve", COMMON + LITSERVE, folder, ()),
        "bentoml": lambda: _bentoml(folder),
        "stock": lambda: _torchserve(stock),
    }


@contextmanager
def _torchserve(archive: Path) -> Iterator[Running]:
    with TorchServe([archive], config=ROOT / "config.properties") as server:
        server.wait_ready(READY_SECONDS)
        host, port = addresses(server.properties)["inference_address"]
        yield Running(host, port, server.inference_key, lambda: _below(server))


def _below(server: TorchServe) -> list[int]:
    return [pid for worker in server.workers(server.models[0]) for pid in _tree(worker.pid)]


@contextmanager
def _script(package: str, code: str, folder: Path, command: Sequence[str]) -> Iterator[Running]:
    """A peer's server in a process group of its own. command: what runs the script, by default Python itself."""
    place = folder / package
    place.mkdir(exist_ok=True)
    (place / "service.py").write_text(code, encoding="utf-8")
    port = _free_port()
    python = _environment(package)
    words = [str(folder / "graph"), str(port), str(container_cores())]
    run = [part.format(port=port) for part in command] or [str(python), "service.py", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PEER": json.dumps(words)}
    with (place / "log").open("w") as log:
        process = subprocess.Popen(run, cwd=place, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            yield Running("127.0.0.1", port, None, lambda: _tree(process.pid), lists=package == "bentoml")
        finally:
            for pid in _tree(process.pid)[::-1]:  # some start sessions of their own
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()


def _bentoml(folder: Path) -> Any:
    code = COMMON.replace("int(sys.argv[2]), int(sys.argv[3])", "0, 0").replace(
        "sys.argv[1]", f"{str(folder / 'graph')!r}"
    )
    python = _environment("bentoml")
    command = [str(python.with_name("bentoml")), "serve", "service:Sst2", "--port", "{port}", "--host", "127.0.0.1"]
    return _script("bentoml", code + BENTOML.replace("WORKERS", str(container_cores())), folder, command)


def _environment(package: str) -> Path:
    """The Python of a peer's own environment, made when it is not there."""
    python = (PLACE / package / "bin" / "python").absolute()
    if not python.exists():
        venv.create(PLACE / package, with_pip=True)
        import openvino
        import tokenizers

        shared = [f"openvino=={openvino.__version__.split('-')[0]}", f"tokenizers=={tokenizers.__version__}", "numpy"]
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES[package], *shared], check=True)
    return python


def _measure(start: Callable[[], Any], row: Row, texts: Sequence[str], seconds: float) -> None:
    began = time.perf_counter()
    with start() as server:
        bodies = server.bodies(texts)
        _first_answer(server, bodies[0])
        row.start.append(time.perf_counter() - began)

        def load(clients: int, how_long: float) -> LoadResult:
            return generate(
                Load(
                    "rest",
                    server.host,
                    server.port,
                    NAME,
                    bodies,
                    token=server.token,
                    clients=clients,
                    seconds=how_long,
                )
            )

        load(max(CLIENTS), 3.0)
        for clients in CLIENTS:
            found = load(clients, seconds)
            if found.errors:
                sys.exit(f"{server}: {found.errors}")
            row.results[clients].append(found)
        row.memory.append(sum(psutil.Process(pid).memory_full_info().pss for pid in server.pids()) / 1e6)


def _first_answer(server: Running, body: bytes) -> None:
    until = time.monotonic() + READY_SECONDS
    while time.monotonic() < until:
        try:
            found = generate(
                Load("rest", server.host, server.port, NAME, [body], token=server.token, seconds=0.1, warmup=0.0)
            )
        except Exception:  # it does not listen yet
            found = None
        if found is not None and found.count and not found.errors:
            return
        time.sleep(0.1)
    sys.exit(f"{server} did not answer within {READY_SECONDS:.0f} s")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _tree(pid: int) -> list[int]:
    parent = psutil.Process(pid)
    return [pid, *(child.pid for child in parent.children(recursive=True))]


def _shown(side: str, row: Row, ours: Row | None) -> str:
    def rate(clients: int, of: Row = row) -> float:
        return median(found.throughput for found in of.results[clients])

    def latency(clients: int, name: str, of: Row = row) -> float:
        return median(getattr(found, name) or float("nan") for found in of.results[clients])

    def against(clients: int) -> str:
        return "" if ours is None or side == "marpress" else f" ({rate(clients, ours) / rate(clients):.2f} ×)"

    cells = [
        side,
        f"{rate(1):.0f}, {latency(1, 'p50_ms'):.2f}",
        f"{rate(16):.0f}{against(16)}",
        f"{rate(64):.0f}{against(64)}",
        f"{latency(64, 'p50_ms'):.1f}, {latency(64, 'p99_ms'):.1f}",
        f"{median(row.memory):.0f}",
        f"{median(row.start):.1f}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
