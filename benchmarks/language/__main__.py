"""`make bench-language`: builds of language models of real size: what they cost, and what few bits lose.

    python -m benchmarks.language walk
    python -m benchmarks.language bits MODEL_DIR [ROW …]
    python -m benchmarks.language large [int8] [int4]
    python -m benchmarks.language prune MODEL_DIR [pruned] [original]
    python -m benchmarks.language peer ARCHIVE.mar [MODEL_DIR]
    python -m benchmarks.language chat [ARCHIVE.mar]
    python -m benchmarks.language forms ARCHIVE.mar

walk: the calibration of GPTQ on random Llamas of 12 and 24 layers, in turns. bits: one build a row of a real model with
its layers in few bits and its tables and head in eight (or as TABLES says), perplexity over all validation windows: rows
of ROWS, default all. large: a random Llama of 1.0 billion parameters, bf16, sharded in two files, built by the command a
user would type: time and peak memory. prune: see pruned.py. peer: see llama_cpp.py and, with the archive's model,
transformers_serve.py. These need the real data (environment variable MARPRESS_SHARED, or ../shared beside the
repository). chat: see capital.py; needs PyPI, once. forms: see forms.py.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from archiver.packaging.entry import handler_of
from archiver.packaging.mar import extracted
from archiver.torchserve.client import predict_rest
from archiver.torchserve.server import TorchServe
from benchmarks.language.builds import CONTEXT, build_command
from benchmarks.language.capital import capital
from benchmarks.language.forms import forms
from benchmarks.language.llama_cpp import peer
from benchmarks.language.pruned import pruned
from benchmarks.language.transformers_serve import transformers_peer
from benchmarks.table import ROOT, SHARED
from handlers.cpu import container_cores
from handlers.inputs.text import TextInput

PROMPTS = ["The file is opened", "A list of numbers", "When the server starts, it reads", "def main():"]
GREEDY: Mapping[str, Any] = {"max_new_tokens": 32, "do_sample": False}
ROUNDS = 3
WINDOWS = 16  # of the walk
# What is said of the layers; targets, data and the stage for tables and head are the same in every row.
ROWS: Mapping[str, Mapping[str, Any]] = {
    "rtn-4": {"bits": 4, "group_size": 64, "symmetric": True},
    "gptq-4": {"bits": 4, "group_size": 64, "symmetric": True, "algorithm": "gptq"},
    "awq-4": {"bits": 4, "group_size": 64, "symmetric": True, "algorithm": "awq"},
    "scale-estimation-4": {"bits": 4, "group_size": 64, "symmetric": True, "algorithm": "scale-estimation"},
    "awq-gptq-4": {"bits": 4, "group_size": 64, "symmetric": True, "algorithm": "awq-gptq"},
    "autoround-4": {"bits": 4, "group_size": 64, "symmetric": True, "algorithm": "autoround"},
    "awq-gptq-4-asymmetric": {"bits": 4, "group_size": 64, "symmetric": False, "algorithm": "awq-gptq"},
    "gptq-4-rotated": {"bits": 4, "group_size": 64, "symmetric": True, "algorithm": "gptq", "rotate": True},
    "gptq-4-tables-6": {"bits": 4, "group_size": 64, "symmetric": True, "algorithm": "gptq"},
    "rtn-3": {"bits": 3, "group_size": 64},
    "gptq-3": {"bits": 3, "group_size": 64, "algorithm": "gptq"},
    "gptq-3-rotated": {"bits": 3, "group_size": 64, "algorithm": "gptq", "rotate": True},
    "awq-3": {"bits": 3, "group_size": 64, "algorithm": "awq"},
    "awq-gptq-3": {"bits": 3, "group_size": 64, "algorithm": "awq-gptq"},
    "autoround-3": {"bits": 3, "group_size": 64, "algorithm": "autoround"},
}
TABLES = {"gptq-4-tables-6": 6}  # bits of tables and head where they are not 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["walk", "bits", "large", "prune", "peer", "chat", "forms"])
    parser.add_argument("words", nargs="*")
    options = parser.parse_args()
    if options.part == "chat":
        return capital(Path(options.words[0]) if options.words else None)
    if options.part == "forms":
        return forms(Path(options.words[0]))
    if not SHARED.is_dir():
        sys.exit(f"no real data at {SHARED}: set MARPRESS_SHARED")
    if options.part == "walk":
        walk()
    elif options.part == "bits":
        bits(Path(options.words[0]), options.words[1:] or list(ROWS))
    elif options.part == "prune":
        pruned(Path(options.words[0]), options.words[1:] or ["pruned", "original"])
    elif options.part == "peer":
        archive, *model = map(Path, options.words)
        transformers_peer(archive, model[0]) if model else peer(archive)
    else:
        large(options.words or ["int8", "int4"])


# ---- the walk ------------------------------------------------------------------------------------------------------------


def walk() -> None:
    """Seconds of GPTQ's walk over 12 and over 24 layers, and their ratio."""
    taken: dict[int, list[float]] = {12: [], 24: []}
    for turn in range(ROUNDS):
        for depth, times in taken.items():
            times.append(_walk_of(depth))
            print(f"  round {turn + 1}: {depth} layers {times[-1]:.1f} s", flush=True)
    few, many = (statistics.median(times) for times in taken.values())
    print(f"12 layers {few:.1f} s, 24 layers {many:.1f} s: {many / few:.2f} x")


def _walk_of(depth: int) -> float:
    from archiver.compression.context import StageContext
    from archiver.compression.quantize.algorithms.gptq import gptq_model
    from archiver.compression.quantize.options import WeightOnly
    from archiver.pipeline.stages import objective_of
    from archiver.tasks import TASKS
    from handlers.architecture.outputs.decoder import DecoderWithHead

    model: Any = _llama(depth, hidden=384, feed_forward=1024, tokens=4096).float().eval()
    module = DecoderWithHead(model)
    ids = torch.randint(0, 4096, (WINDOWS, 1, CONTEXT), generator=torch.Generator().manual_seed(0))
    batches = [{"input_ids": one, "attention_mask": torch.ones_like(one)} for one in ids]
    context = StageContext(
        module=module,
        teacher=module,
        objective=objective_of(TASKS["text-generation"]),
        calibrate=lambda samples: batches[:samples],
        train=lambda rows, seed: [],
        measure=dict,
    )
    names = [name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear) and "layers" in name]
    started = time.perf_counter()
    gptq_model(
        model, dict.fromkeys(names, 4), WeightOnly(bits=4, group_size=64, algorithm="gptq", samples=WINDOWS), context
    )
    return time.perf_counter() - started


def _llama(depth: int, *, hidden: int, feed_forward: int, tokens: int) -> Any:
    """A Llama with random weights, bf16."""
    torch.manual_seed(0)
    config: Any = transformers.AutoConfig.for_model(
        "llama",
        vocab_size=tokens,
        hidden_size=hidden,
        intermediate_size=feed_forward,
        num_hidden_layers=depth,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 256),
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    auto: Any = transformers.AutoModelForCausalLM
    return auto.from_config(config, dtype=torch.bfloat16, attn_implementation="eager")


# ---- few bits ------------------------------------------------------------------------------------------------------------


def bits(model: Path, names: Sequence[str]) -> None:
    """A row for each build: perplexity before and after over all windows, bytes, seconds, peak memory."""
    print(
        "| row | perplexity, original → compressed | weights, MB | s | peak memory, GB |\n|---|---|---|---|---|",
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="marpress-bench-") as folder:
        for name in names:
            layers = {"method": "weight-only", "targets": ["@layers"], **ROWS[name]}
            tables = {"method": "weight-only", "targets": ["@embeddings", "@head"], "bits": TABLES.get(name, 8)}
            stages = [{"quantize": layers}, {"quantize": tables}]
            print(_row(name, model, stages, Path(folder), {"windows": "all"}), flush=True)


def _row(
    name: str, model: Path, stages: Sequence[Mapping[str, Any]], folder: Path, data: Mapping[str, Any]
) -> str:  # fmt: skip
    report, took, peak = _built(name, model, stages, folder, data)
    if report is None:
        return f"| {name} | failed | | {took:.0f} | {peak:.1f} |"
    before, after = (report["metrics"][side]["perplexity"] for side in ("original", "compressed"))
    weights = f"{report['size']['original_bytes'] / 1e6:.1f} → {report['size']['weight_bytes'] / 1e6:.1f}"
    return f"| {name} | {before:.4f} → {after:.4f} | {weights} | {took:.0f} | {peak:.2f} |"


def _built(
    name: str,
    model: Path,
    stages: Sequence[Mapping[str, Any]],
    folder: Path,
    data: Mapping[str, Any],
    gate: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any] | None, float, float]:
    """(the report, seconds, peak memory of the build's process in GB), by the command a user would type."""
    command = build_command(name, model, stages, folder, data=data, gate=gate)
    started = time.perf_counter()
    with (folder / "out.json").open("w") as out:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out)
        _, status, usage = os.wait4(process.pid, 0)
    took, peak = time.perf_counter() - started, usage.ru_maxrss * 1024 / 1e9
    process.returncode = os.waitstatus_to_exitcode(status)
    report = json.loads((folder / "out.json").read_text()) if process.returncode == 0 else None
    return report, took, peak


# ---- a billion -----------------------------------------------------------------------------------------------------------


def large(which: Sequence[str]) -> None:
    """Builds of a random Llama of 16 layers × 2048, intermediate 6144, 32 000 tokens."""
    with tempfile.TemporaryDirectory(prefix="marpress-bench-") as folder:
        model = Path(folder) / "llama-1b"
        made = _llama(16, hidden=2048, feed_forward=6144, tokens=32_000)
        parameters = sum(value.numel() for value in made.parameters())
        made.save_pretrained(model, max_shard_size="1100MB")
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(SHARED / "models/docs-lm" / file, model / file)
        del made
        files = len(list(model.glob("*.safetensors")))
        print(f"{parameters / 1e9:.2f} billion parameters in {files} files; in fp32 {4 * parameters / 1e9:.2f} GB")
        turned = {"method": "weight-only", "targets": ["@layers"], **ROWS["gptq-4-rotated"], "samples": 32}
        recipes: dict[str, list[Mapping[str, Any]]] = {
            "int8": [{"quantize": {"method": "weight-only", "bits": 8}}],
            "int4": [
                {"quantize": turned},
                {"quantize": {"method": "weight-only", "bits": 8, "targets": ["@embeddings", "@head"]}},
            ],
        }
        for name in which:
            bound = {"max_increase": {"perplexity": {"int8": 0.01, "int4": 0.1}[name]}}
            report, took, peak = _built(f"large-{name}", model, recipes[name], Path(folder), {}, bound)
            told = "failed" if report is None else f"{report['size']['weight_bytes'] / 1e6:.0f} MB of weights"
            share = peak * 1e9 / (4 * parameters)
            print(f"{name}: {took / 60:.1f} min, peak memory {peak:.2f} GB = {share:.2f} x fp32, {told}", flush=True)
            if report is not None:
                _served(Path(folder) / "store" / f"large-{name}.mar")


def _served(archive: Path) -> None:
    """Whether a server writes the tokens that the pipeline writes in this process."""
    with extracted(archive) as (folder, _):
        handler: Any = handler_of(folder)
        handler.open(folder, threads=container_cores())
        expected = [_text(one) for one in handler.respond(list(map(TextInput, PROMPTS)), GREEDY)]
        handler.engine.close()
    with TorchServe([archive], config=ROOT / "config.properties") as server:
        server.wait_ready(300)
        body = json.dumps({"inputs": PROMPTS, "parameters": GREEDY}).encode()
        answer = predict_rest(server.prediction_url(server.models[0]), body, token=server.inference_key, timeout=300)
    found = list(map(_text, json.loads(answer.body)))
    alike = sum(a == b for a, b in zip(expected, found, strict=True))
    print(
        f"  served: {alike} of {len(PROMPTS)} texts of {GREEDY['max_new_tokens']} tokens are those of the pipeline here"
    )


def _text(answer: Any) -> str:
    return str((answer[0] if isinstance(answer, list) else answer)["generated_text"])


if __name__ == "__main__":
    main()
