"""`make bench-language PART="prune MODEL_DIR"`: a quarter of a language model's layers cut out and recovered.

Two builds, one after the other on all cores: the pruned model, what reads the neurons refitted to those that stay, then
the whole taught by the original and the text; and the original, trained on the same text in the same way for as long: the
pruned one, whose steps take less time, reads some of it twice. Perplexity of both on data/docs, whose other part they were
trained on, and on a text that neither has seen: the language reference that CPython ships as pydoc's topics. And what each
of them writes a second. `prune MODEL_DIR pruned` and `prune MODEL_DIR original` build one of them alone.
"""

import json
import math
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

PIECE = 2_000  # characters of data/docs/train.txt, which is learnt from in pieces from all over it
WINDOWS = 100  # of each text
READ = {"pruned": 1.28, "original": 1.0}  # times the whole text: as long a training of each, by the time of their steps
SURGEON: Mapping[str, Any] = {"importance": "surgeon", "scope": "global", "compensate": True, "samples": 128}
CUT: Sequence[Mapping[str, Any]] = ({"prune": {"method": "structured", "neurons": 0.335, **SURGEON}},)
TAUGHT: Mapping[str, Any] = {
    "retrain": {"epochs": 1, "batch_size": 2, "learning_rate": 1e-4, "distill": {"hidden": 0}, "temperature": 1}
}


def pruned(model: Path, labels: Sequence[str]) -> None:
    """A row for each of the builds, and the ratios where there are two."""
    with tempfile.TemporaryDirectory(prefix="marpress-bench-") as name:
        folder = Path(name)
        recipes = {"pruned": [*CUT, TAUGHT], "original": [TAUGHT]}
        took: dict[str, float] = {}
        for label in labels:
            (folder / "train.txt").write_text(_learnt(READ[label]), encoding="utf-8")
            started = time.perf_counter()
            _build(label, model, recipes[label], folder)
            took[label] = time.perf_counter() - started
        print(f"on {container_cores()} cores")
        print("| model | of the layers' weights | docs validation | unseen text | tokens/s | minutes |")
        print("|---|---|---|---|---|---|")
        validation = (SHARED / "data/docs/validation.txt").read_text(encoding="utf-8")
        found: dict[str, list[float]] = {}
        for label in labels:
            report = json.loads((folder / f"{label}.out").read_text())
            archive = folder / "store" / f"{label}.mar"
            found[label] = [_perplexity(archive, model, text) for text in (validation, _unseen())]
            print(
                f"| {label}, trained | {_share(report, model):.3f} | {found[label][0]:.2f} | {found[label][1]:.2f} | "
                f"{report['timings']['compressed_per_s']:.0f} | {took[label] / 60:.1f} |"
            )
        if len(found) == len(recipes):
            ratios = [ours / theirs for ours, theirs in zip(found["pruned"], found["original"], strict=True)]
            print(f"pruned ÷ original: {ratios[0]:.3f} on docs validation, {ratios[1]:.3f} on the unseen text")


def _build(label: str, model: Path, stages: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """folder/store/LABEL.mar, its report in folder/LABEL.out."""
    gate = {"max_increase": {"perplexity": 10.0}}  # so wide that few windows decide: they are counted below
    command = build_command(label, model, stages, folder, data={"train": str(folder / "train.txt")}, gate=gate)
    with (folder / f"{label}.out").open("w") as out:
        if subprocess.run(command, cwd=ROOT, stdout=out).returncode:
            sys.exit(f"the build of {label} failed")


def _share(report: Mapping[str, Any], model: Path) -> float:
    """Parameters of the layers as they are, of those that they had; tables and norms outside of them are left out."""
    sizes = {name: math.prod(tensor.shape) for name, tensor in stored_tensors(model).items()}
    of_layers = sum(size for name, size in sizes.items() if ".layers." in name)
    return float(1 - (sum(sizes.values()) - report["stages"][-1]["parameters"]) / of_layers)


def _learnt(times: float) -> str:
    """Pieces from all over data/docs/train.txt in a random order: what is calibrated on is the beginning of this.

    times: its length, as a multiple of the whole text's; beyond 1 the pieces overlap.
    """
    text = (SHARED / "data/docs/train.txt").read_text(encoding="utf-8")
    starts = np.linspace(0, len(text) - PIECE, round(times * len(text) / PIECE)).astype(int)
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
