"""`make bench-compression`: the tables of docs/compression.md, one shipped recipe a row, by the command a user would type.

    python -m benchmarks.compression [--store DIR] [RECIPE …]      RECIPE: a name from archiver/recipes, default: all

Needs the real models and data (environment variable MARPRESS_SHARED, or ../shared beside the repository). Each recipe is
built with `--set` pointing at them; a gate that is missed shows as such. Takes about two hours for all on two cores.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.table import RECIPES, ROOT, SHARED

ENCODER = (
    f"model={SHARED / 'models/minilm-sst2'}",
    f"data.train={SHARED / 'data/sst2/train.tsv'}",
    f"data.validation={SHARED / 'data/sst2/dev.tsv'}",
    "data.columns={text: 0, label: 1}",
)
DECODER = (
    f"model={SHARED / 'models/docs-lm'}",
    f"data.train={SHARED / 'data/docs/train.txt'}",
    f"data.validation={SHARED / 'data/docs/validation.txt'}",
    "data.windows=all",
    "serve.max_length=512",  # docs-lm has no more positions
)
LEFT_OUT = ("default", "sentence-similarity", "sst2")  # rows of the README's own table


def overrides(name: str) -> Sequence[str]:
    return DECODER if name.startswith(("decoder-", "llm-")) else ENCODER


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE")
    parser.add_argument("--store", type=Path, help="keep the archives here")
    options = parser.parse_args()
    if not SHARED.is_dir():
        sys.exit(f"no real data at {SHARED}: set MARPRESS_SHARED")
    every = sorted(path.stem for path in RECIPES.glob("*.yaml") if path.stem not in LEFT_OUT)
    names = options.recipes or every
    print("| recipe | metric, original → compressed | cross-entropy | weights, MB | archive, MB | × eager fp32 | s |")
    print("|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="marpress-bench-") as temporary:
        store = options.store or Path(temporary)
        for name in names:
            print(row(name, store), flush=True)
    return 0


def row(name: str, store: Path) -> str:
    """Build one recipe and give its line of the table."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "archiver", "build", str(RECIPES / f"{name}.yaml"), "--model-store", str(store)]
    command += [part for item in overrides(name) for part in ("--set", item)]
    done = subprocess.run([*command, "--json"], cwd=ROOT, capture_output=True, text=True, check=False)
    took = time.perf_counter() - started
    if done.returncode:
        reasons = [line.strip() for line in done.stderr.splitlines() if line.startswith(("error:", "  max_", "  min_"))]
        return f"| {name} | exit {done.returncode}: {' '.join(reasons)[:300]} | | | | | {took:.0f} |"
    return line(json.loads(done.stdout), took)


def line(report: dict[str, Any], took: float) -> str:
    original, compressed = report["metrics"]["original"], report["metrics"]["compressed"]
    headline = "perplexity" if "perplexity" in compressed else "accuracy"
    scale, digits = (1, 2) if headline == "perplexity" else (100, 2)
    metric = f"{headline} {original[headline] * scale:.{digits}f} → {compressed[headline] * scale:.{digits}f}"
    entropy = (
        f"{original['cross_entropy']:.4f} → {compressed['cross_entropy']:.4f}" if "cross_entropy" in compressed else ""
    )
    size = report["size"]
    weights = f"{size['original_bytes'] / 1e6:.2f} → {size['weight_bytes'] / 1e6:.2f}"
    speed = f"{report['timings']['speedup']:.2f} ({report['runtime']})"
    archive = f"{size['archive_bytes'] / 1e6:.2f}"
    return f"| {report['name']} | {metric} | {entropy} | {weights} | {archive} | {speed} | {took:.0f} |"


if __name__ == "__main__":
    sys.exit(main())
