"""A cross-encoder to measure with: the embedded MiniLM with a head of one label, trained to rank by the stage `retrain`.

    python -m benchmarks.training.ranking OUT_DIR [--seed 0] [--epochs 2] [--compress]

Writes OUT_DIR/minilm-ranking (a model directory) and OUT_DIR/train.jsonl, OUT_DIR/validation.jsonl (queries with texts and
labels), from data/xquad-en of the shared folder (environment variable MARPRESS_SHARED, or ../shared beside the
repository): a question's own paragraph against the others of its article and random ones of the same file. What is
validated on shares articles with the training data, never paragraphs or questions. The same seed gives the same weights on
the same host. Takes some ten minutes on two idle cores. With --compress it then builds two archives from the model into
OUT_DIR, in int8 alone and with heads and neurons cut before, and prints the metrics of all.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from archiver.models.config import quiet
from archiver.models.source import resolve_model
from archiver.pipeline.build import build
from archiver.pipeline.check import check
from archiver.pipeline.stages import compress
from archiver.progress import Progress
from archiver.recipe.load import load_recipe
from benchmarks.table import SHARED

EMBEDDED = "embedded:all-MiniLM-L6-v2"
MAX_LENGTH = 128
TRAIN_TEXTS, VALIDATION_TEXTS = 3, 10  # a question's own paragraph and others
VALIDATION_QUESTIONS = 80

_RECIPE = """
name: minilm-ranking
task: text-ranking
model: {model}
data: {{train: train.jsonl, validation: validation.jsonl}}
compress:
  - retrain: {{epochs: {epochs}, learning_rate: 5e-5, batch_size: 16, teacher: none, seed: {seed}}}
serve: {{max_length: {length}}}
"""

_COMPRESSED = """
name: minilm-ranking-{name}
task: text-ranking
model: minilm-ranking
data: {{train: train.jsonl, validation: validation.jsonl}}
compress: {stages}
serve: {{runtime: openvino, max_length: {length}}}
"""
_STAGES = {
    "int8": "[quantize: {method: static-int8}]",
    "cut": "[prune: {method: structured, heads: 0.33, neurons: 0.5}, retrain: {epochs: 2, learning_rate: 2e-4, "
    "batch_size: 16}, quantize: {method: static-int8}]",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT_DIR")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument(
        "--compress", action="store_true", help="build archives from the model, and print their metrics"
    )
    options = parser.parse_args()
    if not SHARED.is_dir():
        sys.exit(f"no real data at {SHARED}: set MARPRESS_SHARED")
    options.out.mkdir(parents=True, exist_ok=True)
    write_data(options.out, options.seed)
    with tempfile.TemporaryDirectory(prefix="marpress-ranking-", dir=options.out) as temporary:
        untrained = Path(temporary) / "minilm"
        write_untrained(untrained, options.seed)
        recipe = options.out / "train.yaml"
        recipe.write_text(
            _RECIPE.format(
                model=untrained.relative_to(options.out), epochs=options.epochs, seed=options.seed, length=MAX_LENGTH
            )
        )
        workload = check(load_recipe(recipe)).load()
        print(f"untrained: {json.dumps(workload.original_metrics)}", flush=True)
        compress(workload, Progress())
        print(f"trained: {json.dumps(workload.measure())}", flush=True)
        target = options.out / "minilm-ranking"
        shutil.copytree(untrained, target, dirs_exist_ok=True)
        with quiet():
            workload.model.save_pretrained(target)  # type: ignore[operator]
        recipe.unlink()
    print(f"written: {target}", flush=True)
    if options.compress:
        for name in _STAGES:
            compressed(options.out, name)
    return 0


def compressed(folder: Path, name: str) -> None:
    """Build folder/minilm-ranking-NAME.mar from the trained model, and print how it ranks."""
    recipe = folder / f"{name}.yaml"
    recipe.write_text(_COMPRESSED.format(name=name, stages=_STAGES[name], length=MAX_LENGTH))
    built = build(load_recipe(recipe), folder, Progress(quiet=True))
    sizes = built.manifest["size"]
    print(
        f"{name}: {json.dumps(built.manifest['metrics'])}, {sizes['original_bytes'] / 1e6:.1f} → "
        f"{sizes['weight_bytes'] / 1e6:.1f} MB of weights, {built.timings['speedup']} × PyTorch eager fp32",
        flush=True,
    )


def write_data(folder: Path, seed: int) -> None:
    """train.jsonl and validation.jsonl from xquad-en."""
    for part, texts, most in (("train", TRAIN_TEXTS, None), ("validation", VALIDATION_TEXTS, VALIDATION_QUESTIONS)):
        articles = json.loads((SHARED / f"data/xquad-en/{part}.json").read_text(encoding="utf-8"))["data"]
        chance = random.Random(seed)
        rows = list(queries(articles, texts, chance))
        rows = rows if most is None else chance.sample(rows, most)
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def queries(articles: Sequence[dict[str, Any]], texts: int, chance: random.Random) -> Iterator[dict[str, Any]]:
    """A row for each question: its paragraph, those of its article, random ones up to `texts`, in random order."""
    paragraphs = [[paragraph["context"] for paragraph in article["paragraphs"]] for article in articles]
    asked = Counter(
        qa["question"].strip() for article in articles for one in article["paragraphs"] for qa in one["qas"]
    )
    for index, article in enumerate(articles):
        elsewhere = [text for place, others in enumerate(paragraphs) if place != index for text in others]
        for paragraph in article["paragraphs"]:
            near = [text for text in paragraphs[index] if text != paragraph["context"]]
            for question in paragraph["qas"]:
                if (
                    asked[question["question"].strip()] > 1
                ):  # of several paragraphs: which one is right, it does not say
                    continue
                others = chance.sample(near, min(len(near), texts // 2))
                others += chance.sample(elsewhere, texts - 1 - len(others))
                chosen = [paragraph["context"], *others]
                chance.shuffle(chosen)
                labels = [int(text == paragraph["context"]) for text in chosen]
                yield {"query": question["question"].strip(), "texts": chosen, "labels": labels}


def write_untrained(folder: Path, seed: int) -> None:
    """The embedded encoder with a random head of one label, as sentence-transformers' CrossEncoder writes its config."""
    import torch
    import transformers

    source = resolve_model(EMBEDDED).path
    torch.manual_seed(seed)
    with quiet():
        model = transformers.AutoModelForSequenceClassification.from_pretrained(source, num_labels=1)
    model.config.sentence_transformers = {"activation_fn": "torch.nn.modules.activation.Sigmoid"}
    with quiet():
        model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, folder / name)


if __name__ == "__main__":
    sys.exit(main())
