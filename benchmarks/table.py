"""`make bench`: every number of the README's table, by the commands a user would type. Takes about half an hour.

Without real data (the environment variable MARPRESS_SHARED, or ../shared beside the repository) only the embedded default
is measured. `make bench QUICK=1` takes fewer rounds.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from archiver.torchserve.client import predict_rest
from archiver.torchserve.server import TorchServe

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("MARPRESS_SHARED", ROOT.parent / "shared"))
RECIPES = ROOT / "archiver" / "recipes"


def main() -> int:
    rounds = ["--rounds", "4", "--seconds", "5"] if os.environ.get("QUICK") else ["--rounds", "8", "--seconds", "8"]
    with tempfile.TemporaryDirectory(prefix="marpress-bench-") as temporary:
        store = Path(temporary)
        default = RECIPES / "default.yaml"
        _build(default, store, [])
        if not SHARED.is_dir():
            print(f"no real data at {SHARED}: SST-2 and STS-B are left out")
            _compare(store / "all-MiniLM-L6-v2.mar", default, [], rounds)
            return 0
        stsb = [
            "data.validation=" + str(SHARED / "data/stsb/dev.csv"),
            "data.columns={text: 0, text_pair: 1, label: 2}",
        ]
        _build(default, store, [*stsb, "name=stsb"])
        sst2 = [
            f"model={SHARED / 'models/minilm-sst2'}",
            f"data.train={SHARED / 'data/sst2/train.tsv'}",
            f"data.validation={SHARED / 'data/sst2/dev.tsv'}",
            "data.columns={text: 0, label: 1}",
        ]
        for runtime in ("auto", "onnxruntime", "openvino"):
            _build(RECIPES / "sst2.yaml", store, [*sst2, f"name=sst2-{runtime}", f"serve.runtime={runtime}"])
        for runtime in ("onnxruntime", "openvino"):
            _served_accuracy(store / f"sst2-{runtime}.mar", SHARED / "data/sst2/dev.tsv")
            _compare(store / f"sst2-{runtime}.mar", RECIPES / "sst2.yaml", sst2, rounds)
        _compare(store / "all-MiniLM-L6-v2.mar", default, stsb, rounds)
    return 0


def _build(recipe: Path, store: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Build into `store`, print what it cost and won."""
    command = ["build", str(recipe), "--model-store", str(store), "--json", *_set(overrides)]
    report: dict[str, Any] = json.loads(_run(command))
    size, timings, metrics = report["size"], report["timings"], report["metrics"]
    seconds = sum(timings["stage_seconds"].values())
    print(f"\n{report['name']} ({report['runtime']}): {size['original_bytes'] / 1e6:.1f} → "
          f"{size['archive_bytes'] / 1e6:.1f} MB, built in {seconds:.0f} s, {timings['speedup']} × eager fp32")  # fmt: skip
    for name, value in metrics["compressed"].items():
        print(f"  {name:<16}{metrics['original'][name]:.4f} → {value:.4f}")
    return report


def _compare(mar: Path, recipe: Path, overrides: Sequence[str], rounds: Sequence[str]) -> None:
    """Serve `mar` and the plain fp32 handler in turns and print the table."""
    print(_run(["bench", str(mar), "--against", "stock", "--recipe", str(recipe), "--clients", "1,32", *rounds,
                *_set(overrides)]))  # fmt: skip


def _served_accuracy(mar: Path, dev: Path) -> None:
    """Accuracy of what comes back over REST, all rows of `dev` (text, tab, 0 or 1)."""
    rows = [line.rsplit("\t", 1) for line in dev.read_text(encoding="utf-8").splitlines()]
    right = 0
    with TorchServe([mar], config=ROOT / "config.properties") as server:
        server.wait_ready()
        for start in range(0, len(rows), 64):
            chunk = rows[start : start + 64]
            body = json.dumps({"inputs": [text for text, _ in chunk]}).encode()
            answer = predict_rest(server.prediction_url(mar.stem), body, token=server.inference_key)
            found = [item[0]["label"] for item in json.loads(answer.body)]
            right += sum(
                ("0", "1")[label == "POSITIVE"] == wanted for label, (_, wanted) in zip(found, chunk, strict=True)
            )
    print(f"{mar.name}: {100 * right / len(rows):.2f} % right through REST, {len(rows)} rows")


def _set(overrides: Sequence[str]) -> list[str]:
    return [part for item in overrides for part in ("--set", item)]


def _run(arguments: Sequence[str]) -> str:
    print("\n$ marpress " + " ".join(arguments).replace(str(ROOT) + "/", "").replace(str(SHARED), "SHARED"), flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "archiver", *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
