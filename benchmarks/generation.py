"""`make bench-generation`: a language model served, against the same pipeline in process and transformers' generate.

    python -m benchmarks.generation [--rounds 5] [--store DIR] [speed] [latency] [quality]

speed, latency: a Qwen2 of 24 layers × 896 with random weights (362 M parameters; its vocabulary is that of docs-lm), 8-bit
weights. quality: docs-lm with 8 bits, and with 4 bits in groups of 64. Needs the real models and data (environment variable
MARPRESS_SHARED, or ../shared beside the repository), 6 GB of memory and some 15 minutes on two quiet cores.
All speeds are taken in turns in one run: the server idles while the process beside it computes, and the other way round.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import yaml

from archiver.evaluation.generation_speed import run_streams
from archiver.packaging.entry import handler_of
from archiver.packaging.mar import extracted
from archiver.torchserve.server import TorchServe
from benchmarks.streams import Reading, read_streams
from benchmarks.table import ROOT, SHARED
from handlers.cpu import container_cores
from handlers.inputs.text import TextInput
from handlers.tasks.text.generation import TextGenerationHandler

READ, WRITTEN = 32, 64
NAME = "bench-generation"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=["speed", "latency", "quality", []], metavar="PART")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--store", type=Path, help="keep the archives here")
    options = parser.parse_args()
    if not SHARED.is_dir():
        sys.exit(f"no real data at {SHARED}: set MARPRESS_SHARED")
    parts = options.parts or ["speed", "latency", "quality"]
    with tempfile.TemporaryDirectory(prefix="marpress-bench-") as temporary:
        store = options.store or Path(temporary)
        if {"speed", "latency"} & set(parts):
            measure_server(build_speed_model(Path(temporary), store), Path(temporary), parts, options.rounds)
        if "quality" in parts:
            measure_quality(Path(temporary), store)
    return 0


# ---- the served model ------------------------------------------------------------------------------------------------


def build_speed_model(folder: Path, store: Path) -> Path:
    """The archive of a random Qwen2, built by the command a user would type."""
    import torch
    import transformers

    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(
        vocab_size=4096,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        eos_token_id=None,
        bos_token_id=None,
    )
    config = transformers.Qwen2Config(**sizes)
    model = folder / "model"
    transformers.Qwen2ForCausalLM(config).save_pretrained(model)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).write_bytes((SHARED / "models/docs-lm" / name).read_bytes())
    # A few windows are enough to measure on: the weights are random.
    (folder / "text.txt").write_text((SHARED / "data/docs/validation.txt").read_text(encoding="utf-8")[:12_000])
    recipe = {
        "name": NAME,
        "task": "text-generation",
        "model": str(model),
        "data": {"validation": str(folder / "text.txt"), "context": 256},
        "compress": [{"quantize": {"method": "weight-only", "bits": 8}}],
        "serve": {"runtime": "openvino", "max_length": 1024},
    }
    return build(recipe, folder, store)


def build(recipe: dict[str, Any], folder: Path, store: Path) -> Path:
    path = folder / f"{recipe['name']}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    subprocess.run(
        [sys.executable, "-m", "archiver", "build", str(path), "--model-store", str(store)], cwd=ROOT, check=True
    )
    return store / f"{recipe['name']}.mar"


def measure_server(archive: Path, folder: Path, parts: list[str], rounds: int) -> None:
    with extracted(archive) as (files, _), TorchServe([archive], config=ROOT / "config.properties") as server:
        handler = handler_of(files)
        assert isinstance(handler, TextGenerationHandler), f"{archive.name} holds no language model"
        handler.open(files, threads=container_cores())
        server.wait_ready(300)
        texts = Texts(handler)
        read_streams(server, NAME, texts.take(2), 8)  # one untimed
        if "speed" in parts:
            speed(server, handler, texts, folder / "model", rounds)
        if "latency" in parts:
            latency(server, texts, rounds)


class Texts:
    """Prompts of 32 tokens, each handed out once: prefix caching must not help."""

    def __init__(self, handler: TextGenerationHandler) -> None:
        self._tokenizer = handler.input.encoder.tokenizer
        text = (SHARED / "data/docs/train.txt").read_text(encoding="utf-8")[:2_000_000]
        self._ids = handler.input.encoder.encode([TextInput(text)], truncate=False)[0].ids
        self._next = 0

    def ids(self, count: int, length: int = READ) -> np.ndarray:
        """[count, length]"""
        found = np.array(self._ids[self._next : self._next + count * length], np.int64).reshape(count, length)
        self._next += count * length
        return found

    def take(self, count: int, length: int = READ) -> list[str]:
        return [self._tokenizer.decode(row.tolist()) for row in self.ids(count, length)]


def speed(server: TorchServe, handler: TextGenerationHandler, texts: Texts, model: Path, rounds: int) -> None:
    sides: dict[str, Callable[[], float]] = {
        "generate fp32, 1": lambda: generate(model, texts.ids(1), 16),
        "generate fp32, 8": lambda: generate(model, texts.ids(8), 16),
    }
    for count in (1, 8, 16):
        sides[f"in process, {count}"] = lambda count=count: in_process(handler, texts.ids(count))  # type: ignore[misc]
        sides[f"served, {count} streams"] = lambda count=count: served(server, texts.take(count))  # type: ignore[misc]
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds):
        for name, run in sides.items():
            rates[name].append(run())
        print(f"round {turn + 1}: " + ", ".join(f"{name} {found[-1]:.1f}" for name, found in rates.items()), flush=True)
    print("\n| | tokens/s, median (lowest to highest) |\n|---|---|")
    for name, found in rates.items():
        print(f"| {name} | {median(found):.1f} ({min(found):.1f} to {max(found):.1f}) |")
    for over, under in (
        ("served, 16 streams", "in process, 16"),
        ("served, 8 streams", "in process, 8"),
        ("served, 1 streams", "in process, 1"),
        ("served, 16 streams", "generate fp32, 8"),
        ("served, 1 streams", "generate fp32, 1"),
    ):
        ratios = sorted(a / b for a, b in zip(rates[over], rates[under], strict=True))
        print(f"{over} / {under}: {median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


def generate(model: Path, prompts: np.ndarray, written: int) -> float:
    """Tokens per second of transformers' generate, in this process."""
    import torch
    import transformers

    if model not in _LOADED:
        _LOADED[model] = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    ids = torch.from_numpy(prompts)
    started = time.perf_counter()
    with torch.inference_mode():
        _LOADED[model].generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=written, min_new_tokens=written, do_sample=False,
            pad_token_id=0,
        )  # fmt: skip
    return len(prompts) * written / (time.perf_counter() - started)


_LOADED: dict[Path, Any] = {}


def in_process(handler: TextGenerationHandler, prompts: np.ndarray) -> float:
    started = time.perf_counter()
    return run_streams(handler.backend, prompts, WRITTEN) / (time.perf_counter() - started)


def served(server: TorchServe, prompts: list[str]) -> float:
    started = time.perf_counter()
    readings = read_streams(server, NAME, prompts, WRITTEN)
    assert all(reading.tokens == WRITTEN for reading in readings)
    # The clients' own start-up is no part of it: from the first request sent to the last answer read.
    del started
    return len(prompts) * WRITTEN / (max(r.ended for r in readings) - min(r.sent for r in readings))


def latency(server: TorchServe, texts: Texts, rounds: int) -> None:
    """A short request alone and beside 8 long ones; a long prefix the first time and again."""
    alone, beside, ended_first, first, again = [], [], 0, [], []
    for _ in range(rounds):
        alone.append(read_streams(server, NAME, texts.take(1), 8)[0].ttft)
        long: list[Reading] = []
        prompts = texts.take(8)
        thread = threading.Thread(target=lambda found=long, p=prompts: found.extend(read_streams(server, NAME, p, 192)))
        thread.start()
        time.sleep(3.0)
        short = read_streams(server, NAME, texts.take(1), 8)[0]
        thread.join()
        beside.append(short.ttft)
        ended_first += all(short.ended < reading.ended for reading in long)
        prefix = texts.take(1, 400)[0]
        first.append(read_streams(server, NAME, [prefix], 4)[0].ttft)
        again.append(read_streams(server, NAME, [prefix], 4)[0].ttft)
    print("\n| time to the first token, ms | median (lowest to highest) |\n|---|---|")
    for name, found in (
        ("short prompt, idle server", alone),
        ("short prompt beside 8 long ones", beside),
        ("prefix of 400 tokens, first", first),
        ("the same again", again),
    ):
        print(f"| {name} | {median(found) * 1e3:.0f} ({min(found) * 1e3:.0f} to {max(found) * 1e3:.0f}) |")
    print(f"beside 8 long / idle: {median(b / a for a, b in zip(alone, beside, strict=True)):.2f}; ", end="")
    print(f"ended before all long ones: {ended_first} of {rounds}")
    print(f"prefix first / again: {median(a / b for a, b in zip(first, again, strict=True)):.2f}")


# ---- quality -----------------------------------------------------------------------------------------------------------


def measure_quality(folder: Path, store: Path) -> None:
    """Perplexity of docs-lm through the serving pipeline, and served greedy text against the same in process."""
    print("\n| docs-lm | perplexity, fp32 → served | archive, MB | × generate fp32, 8 streams |\n|---|---|---|---|")
    for name, options in (
        ("int8", {"bits": 8}),
        ("int4-rtn", {"bits": 4, "group_size": 64, "algorithm": "rtn"}),
        ("int4-gptq", {"bits": 4, "group_size": 64, "algorithm": "gptq"}),
        ("int4-awq", {"bits": 4, "group_size": 64, "algorithm": "awq"}),
        ("int4-scale-estimation", {"bits": 4, "group_size": 64, "algorithm": "scale-estimation"}),
    ):
        recipe = {
            "name": f"docs-{name}",
            "task": "text-generation",
            "model": str(SHARED / "models/docs-lm"),
            "data": {
                "train": str(SHARED / "data/docs/train.txt"),
                "validation": str(SHARED / "data/docs/validation.txt"),
                "context": 256,
                "windows": "all",
            },
            "compress": [{"quantize": {"method": "weight-only", **options}}],
            "serve": {"runtime": "openvino", "max_length": 512},
        }
        archive = build(recipe, folder, store)
        done = subprocess.run(
            [sys.executable, "-m", "archiver", "inspect", str(archive), "--json"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        report = json.loads(done.stdout)
        before, after = (report["metrics"][side]["perplexity"] for side in ("original", "compressed"))
        size, ratio = report["size"]["archive_bytes"] / 1e6, report["timings"]["speedup"]
        print(
            f"| {name} | {before:.4f} → {after:.4f} ({after / before - 1:+.2%}) | {size:.2f} | {ratio:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
