"""`make bench-language PART="prune MODEL_DIR"`: a quarter of a language model's layers cut out and recovered.

Two builds side by side, each on half of the cores: the pruned model, what reads the neurons refitted to those that stay,
then the whole taught by the original and the text; and the original, trained on the same text in the same way for as many
steps. Perplexity of both on data/docs, whose other part they were trained on, and on a text that neither has seen: the
language reference that CPython ships as pydoc's topics. And what each of them writes a second.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np

from archiver.data.text.windows import windows_of
from archiver.models.stored import stored_tensors
from archiver.packaging.mar import extracted
from benchmarks.language.builds import CONTEXT, build_command
from benchmarks.table import ROOT, SHARED
from handlers.cpu import container_cores
from handlers.runtimes.openvino_paged import OpenVinoBackend

SEEN = 400_000  # characters of data/docs/train.txt that are learnt from: what fits into the time
PIECE = 2_000  # of which they are put together, from all over the text
WINDOWS = 100  # of each text
CUT: Sequence[Mapping[str, Any]] = (
    {"prune": {"method": "structured", "neurons": 0.335, "importance": "surgeon", "compensate": True, "samples": 64}},
)
TAUGHT: Mapping[str, Any] = {
    "retrain": {"epochs": 1, "batch_size": 2, "learning_rate": 2e-4, "distill": {"hidden": 0}, "temperature": 1}
}


def pruned(model: Path) -> None:
    """A row for each of the two builds, and their ratios."""
    cores = container_cores()
    with tempfile.TemporaryDirectory(prefix="marpress-bench-") as name:
        folder = Path(name)
        (folder / "train.txt").write_text(_learnt(), encoding="utf-8")
        recipes = {"pruned": [*CUT, TAUGHT], "original": [TAUGHT]}
        started = time.perf_counter()
        running = {label: _started(label, model, stages, folder, cores) for label, stages in recipes.items()}
        took: dict[str, float] = {}
        while len(took) < len(running):
            for label, process in running.items():
                if label not in took and process.poll() is not None:
                    took[label] = time.perf_counter() - started
            time.sleep(0.5)
        print(f"each build on {max(1, cores // 2)} of {cores} cores")
        print("| model | of the layers' weights | docs validation | unseen text | tokens/s | minutes |")
        print("|---|---|---|---|---|---|")
        validation = (SHARED / "data/docs/validation.txt").read_text(encoding="utf-8")
        found: dict[str, list[float]] = {}
        for label, process in running.items():
            if process.returncode:
                sys.exit(f"the build of {label} failed: {(folder / f'{label}.err').read_text()[-2000:]}")
            report = json.loads((folder / f"{label}.out").read_text())
            archive = folder / "store" / f"{label}.mar"
            found[label] = [_perplexity(archive, model, text) for text in (validation, _unseen())]
            print(
                f"| {label}, trained | {_share(report, model):.3f} | {found[label][0]:.2f} | {found[label][1]:.2f} | "
                f"{report['timings']['compressed_per_s']:.0f} | {took[label] / 60:.1f} |"
            )
        ratios = [ours / theirs for ours, theirs in zip(found["pruned"], found["original"], strict=True)]
        print(f"pruned ÷ original: {ratios[0]:.3f} on docs validation, {ratios[1]:.3f} on the unseen text")


def _started(
    label: str, model: Path, stages: Sequence[Mapping[str, Any]], folder: Path, cores: int
) -> subprocess.Popen[bytes]:
    gate = {"max_increase": {"perplexity": 10.0}}  # so wide that few windows decide: they are counted below
    command = build_command(label, model, stages, folder, data={"train": str(folder / "train.txt")}, gate=gate)
    share = str(max(1, cores // 2))
    surroundings = {**os.environ, "MARPRESS_THREADS": share, "OMP_NUM_THREADS": share}
    with (folder / f"{label}.out").open("w") as out, (folder / f"{label}.err").open("w") as error:
        return subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=error, env=surroundings)


def _share(report: Mapping[str, Any], model: Path) -> float:
    """Parameters of the layers as they are, of those that they had; tables and norms outside of them are left out."""
    sizes = {name: math.prod(tensor.shape) for name, tensor in stored_tensors(model).items()}
    of_layers = sum(size for name, size in sizes.items() if ".layers." in name)
    return float(1 - (sum(sizes.values()) - report["stages"][-1]["parameters"]) / of_layers)


def _learnt() -> str:
    """Pieces from all over data/docs/train.txt in a random order: what is calibrated on is the beginning of this."""
    text = (SHARED / "data/docs/train.txt").read_text(encoding="utf-8")
    starts = np.linspace(0, len(text) - PIECE, SEEN // PIECE).astype(int)
    return "\n".join(text[start : start + PIECE] for start in np.random.default_rng(0).permutation(starts))


def _unseen() -> str:
    """The text that nothing was trained on."""
    return "\n".join(topics[name] for name in sorted(topics))


def _perplexity(archive: Path, model: Path, text: str) -> float:
    """Over WINDOWS windows spread over a text, by the pipeline that serves."""
    windows = windows_of(text, (model / "tokenizer.json").read_bytes(), CONTEXT)
    chosen = windows[np.linspace(0, len(windows) - 1, WINDOWS).astype(int)]
    with extracted(archive) as (folder, _):
        session = json.loads((folder / "serving.json").read_text())["session"]
        backend = OpenVinoBackend(folder, session, container_cores(), ())
        found = [-sum(backend.log_likelihoods(window.tolist())) / (CONTEXT - 1) for window in chosen]
    return math.exp(sum(found) / len(found))
