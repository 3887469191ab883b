"""A small T5 that gives technical English its capital letters and punctuation back, trained by the project's own code.

    python -m benchmarks.training.t5 OUT_DIR [--steps N]

Writes OUT_DIR/model (a T5ForConditionalGeneration of 1 M parameters with its tokenizer), OUT_DIR/train.tsv and
OUT_DIR/validation.tsv: tab-separated, a clause of technical English in lower case without punctuation, and the clause
as it was. The pairs are made from data/docs, in the folder that MARPRESS_SHARED names or ../shared beside the repository.
Less than ten minutes on two cores; an interrupted run goes on from its checkpoint.
"""

import argparse
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from archiver.compression.context import StageContext
from archiver.compression.objective import Objective
from archiver.compression.retrain.options import Retrain
from archiver.compression.retrain.training import train
from archiver.tasks.seq2seq.tasks import Text2TextGeneration
from benchmarks.table import SHARED
from handlers.architecture.linear_layers import to_linear_layers
from handlers.architecture.outputs.seq2seq import Seq2Seq

SEED = 0
TOKENS = 1024
WORDS = (4, 9)
PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
SIZES: dict[str, Any] = {
    "d_model": 128,
    "d_kv": 32,
    "d_ff": 512,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "dropout_rate": 0.0,
    "relative_attention_num_buckets": 16,
    "relative_attention_max_distance": 32,
}


def pairs_of(text: str) -> list[tuple[str, str]]:
    """(in lower case, without punctuation; as it was), of every clause of WORDS words that loses something by it."""
    found: dict[str, str] = {}
    for line in re.split(r"(?<=[.;:!?])\s|\n", text):
        clause = " ".join(line.split())
        words = clause.split()
        if not WORDS[0] <= len(words) <= WORDS[1] or not all(
            re.fullmatch(r"[(\"']?[\w'-]+[\"')]?[.,;:!?]?", w) for w in words
        ):
            continue
        bare = " ".join(re.sub(r"[^\w\s'-]", "", clause.lower()).split())
        if bare and bare != clause:
            found.setdefault(bare, clause)
    return list(found.items())


def new_tokenizer(texts: Sequence[str]) -> Tokenizer:
    """SentencePiece's kind (a unigram model over words that carry the blank before them), which ends a text with </s>."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=TOKENS, special_tokens=[PAD, END, UNKNOWN], unk_token=UNKNOWN, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", pair=f"$A {END} $B {END}", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return tokenizer


class Batches(Sequence[Mapping[str, torch.Tensor]]):
    """Training batches, each drawn from its place and the seed alone."""

    def __init__(self, encoded: Sequence[tuple[list[int], list[int]]], steps: int, rows: int, seed: int) -> None:
        self.encoded, self.steps, self.rows, self.seed = encoded, steps, rows, seed

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, place: Any) -> Any:
        random = np.random.default_rng([self.seed, place])
        chosen = [self.encoded[index] for index in random.integers(len(self.encoded), size=self.rows)]
        sources, targets = _padded([source for source, _ in chosen], 0), _padded([target for _, target in chosen], -100)
        given = np.roll(np.where(targets < 0, 0, targets), 1, axis=1)
        given[:, 0] = 0
        batch = {
            "input_ids": sources,
            "attention_mask": (sources > 0).astype(np.int64),
            "decoder_input_ids": given,
            "decoder_attention_mask": (targets >= 0).astype(np.int64),
            "labels": targets,
        }
        return {name: torch.from_numpy(value) for name, value in batch.items()}


def _padded(rows: Sequence[Sequence[int]], fill: int) -> np.ndarray:
    found = np.full((len(rows), max(map(len, rows))), fill, np.int64)
    for index, row in enumerate(rows):
        found[index, : len(row)] = row
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT_DIR")
    parser.add_argument("--steps", type=int, default=3000)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    parts = {
        name: pairs_of((SHARED / f"data/docs/{name}.txt").read_text(encoding="utf-8"))
        for name in ("train", "validation")
    }
    known = {source for source, _ in parts["train"]}
    parts["validation"] = [pair for pair in parts["validation"] if pair[0] not in known][:400]
    for name, pairs in parts.items():
        (options.out / f"{name}.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in pairs), encoding="utf-8")
        print(f"{name}: {len(pairs)} pairs")
    tokenizer = new_tokenizer([text for pair in parts["train"] for text in pair])
    encoded = [(tokenizer.encode(a).ids, tokenizer.encode(b).ids) for a, b in parts["train"]]
    torch.manual_seed(SEED)
    tokens = {
        "vocab_size": tokenizer.get_vocab_size(),
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }
    config: Any = transformers.AutoConfig.for_model("t5", **tokens, **SIZES)
    model: Any = to_linear_layers(transformers.T5ForConditionalGeneration(config)).eval()
    module, task = Seq2Seq(model), Text2TextGeneration()
    settings = Retrain(
        epochs=1, batch_size=64, learning_rate=3e-3, teacher="none", warmup=0.05, weight_decay=0.01, seed=SEED
    )
    context = StageContext(
        module=module,
        teacher=module,
        objective=Objective(distance=task.distance, loss=task.loss),
        calibrate=lambda samples: [],
        train=lambda rows, seed: Batches(encoded, options.steps, rows, seed),
        measure=dict,
        say=lambda line: print(line, flush=True),
        checkpoint=options.out / "checkpoint",
    )
    started = time.perf_counter()
    done = train(model, settings, context)
    print(f"{done.steps} steps in {time.perf_counter() - started:.0f} s")
    model.generation_config.max_length = 48
    model.save_pretrained(options.out / "model")
    names = {"pad_token": PAD, "eos_token": END, "unk_token": UNKNOWN}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(options.out / "model")
    print(f"exact: {100 * exact(module, tokenizer, parts['validation']):.1f} % of {len(parts['validation'])} clauses")


def exact(module: Seq2Seq, tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> float:
    """The share of clauses that come back as they were."""
    model: Any = module.model
    right = 0
    for start in range(0, len(pairs), 50):
        part = pairs[start : start + 50]
        ids = torch.from_numpy(_padded([tokenizer.encode(source).ids for source, _ in part], 0))
        found = model.generate(ids, attention_mask=(ids > 0).long(), max_new_tokens=48)
        right += sum(tokenizer.decode(row.tolist()) == target for row, (_, target) in zip(found, part, strict=True))
    return right / len(pairs)


if __name__ == "__main__":
    main()
