"""token-classification: a label for each word of a text, and the entities that they make."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from archiver.data.examples import read_examples
from archiver.data.text.tagged import CONLL, JSON_LINES, KEYS, PLAIN, Tagged, read_tagged
from archiver.evaluation.metrics.entities import entity_metrics, tag_agreement
from archiver.evaluation.rounding import rounded
from archiver.models.inputs.tokenizer import special_token
from archiver.tasks.base import FALLBACK_VALIDATION, Metric, limit_line, shown_labels
from archiver.tasks.forward import Measured
from archiver.tasks.text.encoder import EncoderTask
from handlers.inputs.texts.windows import TextWindows
from handlers.tasks.text.token_classification import token_scores

if TYPE_CHECKING:
    import torch

    from archiver.models.facts import ModelFacts
    from archiver.models.source import ModelSource
    from archiver.spec import Recipe
    from archiver.tasks.workload import Workload

IGNORED = -100  # the label of a token that nothing is learnt from, as torch's cross-entropy has it

_STARTER = """
# Fill in your data and uncomment: then the model can be calibrated, and the gate can measure what it lost.
# data:
#   train: train.conll          # CoNLL (a word and its tag a line, an empty line behind each sentence): .conll, .iob, .bio,
#   validation: dev.conll       #   .tsv; or .jsonl with lists tokens and tags; or hub://name[/config]:split
#   columns: {tokens: 0, tags: 1}     # CoNLL: positions, by default the first and the last; else names

compress:
  - quantize: {method: weight-only, bits: 8}
  # - quantize: {method: static-int8}  # faster; calibrated on data.train. Use it instead of weight-only

# gate:                         # a bound that is missed, or cannot be measured, means no archive
#   max_drop: {f1: 0.01}        # of entities, as seqeval counts; 0.01 is one point, against the original model
#   min_speedup: 2.0            # against PyTorch eager fp32
#   max_size_mb: 50             # of the archive
"""


class TokenClassification(EncoderTask):
    """A word's label is that of its first token; the others are not learnt, and not counted."""

    name = "token-classification"
    auto_class = "AutoModelForTokenClassification"
    architectures = ("ForTokenClassification",)
    metrics = {
        "f1": Metric(needs=("tags",)),  # of entities
        "precision": Metric(needs=("tags",)),
        "recall": Metric(needs=("tags",)),
        "strict_f1": Metric(needs=("tags",)),  # by the scheme IOB2 alone
        "accuracy": Metric(needs=("tags",)),  # over words
        "cross_entropy": Metric(higher_is_better=False, needs=("tags",)),  # over words
        "agreement": Metric(),  # share of words whose label is the original model's
    }
    headlines = ("f1", "accuracy", "agreement")
    fine = ("cross_entropy", "agreement")
    columns = KEYS
    data_suffixes = (*CONLL, *JSON_LINES, PLAIN)
    unit = "windows"
    module = "handlers.architecture.outputs.token_heads:TokenHead"
    handler = "handlers.tasks.text.token_classification:TokenClassificationHandler"
    starter = _STARTER

    def module_settings(self, facts: ModelFacts) -> dict[str, Any]:
        return {}

    # ---- inputs -------------------------------------------------------------------------------------------------------

    def read(self, where: Path | str, recipe: Recipe, source: ModelSource, facts: ModelFacts) -> list[Any]:
        columns = None if where == FALLBACK_VALIDATION else recipe.data.columns
        return list(read_tagged(where, columns, id2label=facts.id2label))

    def values(self, examples: Sequence[Any]) -> list[Any]:
        return [example.text for example in examples]

    def examples_of(self, where: Path, workload: Workload) -> list[Any]:
        if where.suffix.lower() == PLAIN:
            return [example.text for example in read_examples(where, labels="none")]
        return self.values(self.read(where, workload.recipe, workload.source, workload.facts))

    def make_input(self, workload: Workload, original: bool) -> Any:
        return TextWindows(self.encoder(workload, original))

    def input_settings(self, workload: Workload) -> dict[str, Any]:
        return super().input_settings(workload) | {"unknown_token": special_token(workload.source.path, "unk_token")}

    # ---- answers ------------------------------------------------------------------------------------------------------

    def answer_settings(self, facts: ModelFacts) -> dict[str, Any]:
        return {"labels": [facts.id2label[index] for index in range(facts.num_labels)]}

    def metrics_of(self, measured: Measured) -> dict[str, float]:
        names, examples = measured.facts.id2label, measured.examples
        scores = [_word_scores(one, example) for one, example in zip(measured.found, examples, strict=True)]
        before = [_word_scores(one, example) for one, example in zip(measured.reference, examples, strict=True)]
        found, original = ([[names[best] for best in _best(rows)] for rows in side] for side in (scores, before))
        if any(example.tags is None for example in examples):
            return rounded({"agreement": tag_agreement(original, found)})
        right = [[names[tag] for tag in example.tags] for example in examples]
        chances = [
            rows[place, tag] for rows, one in zip(scores, examples, strict=True) for place, tag in enumerate(one.tags)
        ]
        surprise = float(-np.log(np.maximum(np.array(chances, np.float64), 1e-12)).mean())
        return rounded(entity_metrics(right, found, original) | {"cross_entropy": surprise})

    # ---- training -----------------------------------------------------------------------------------------------------

    def targets(
        self, workload: Workload, examples: Sequence[Tagged], prepared: Sequence[Sequence[Any]]
    ) -> list[Any] | None:
        """[tokens] int64 for each window: the label at a word's first token, if the window's own; else IGNORED."""
        targets = []
        for example, windows in zip(examples, prepared, strict=True):
            if example.tags is None:
                return None
            offsets = [window.offsets[place] for window in windows for place in window.own]
            labels = [IGNORED] * len(offsets)
            for token, tag in zip(first_tokens(offsets, example.words), example.tags, strict=True):
                if token is not None:
                    labels[token] = tag
            position = 0
            for window in windows:
                target = np.full(len(window.ids), IGNORED, np.int64)
                target[window.own.start : window.own.stop] = labels[position : position + len(window.own)]
                position += len(window.own)
                targets.append(target)
        return targets

    def collate_targets(self, targets: Sequence[Any], size: int) -> torch.Tensor:
        import torch

        rows = np.full((len(targets), size), IGNORED, np.int64)
        for row, target in zip(rows, targets, strict=True):
            row[: len(target)] = target
        return torch.from_numpy(rows)

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy over words; 0 where a batch has none.

        Args:
            outputs: [rows, length, labels]. labels: [rows, length] ids, or IGNORED.
        """
        from torch.nn import functional

        total = functional.cross_entropy(outputs.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
        return total / (labels != IGNORED).sum().clamp(min=1)

    def distance(
        self, outputs: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None, temperature: float
    ) -> torch.Tensor:
        """The divergence of softened answers, a mean over real tokens."""
        from archiver.compression.retrain.objectives import softened_divergence

        apart = softened_divergence(outputs, teacher, temperature)
        return apart.mean() if mask is None else (apart * mask).sum() / mask.sum()

    # ---- starter ------------------------------------------------------------------------------------------------------

    def summary(self, facts: ModelFacts) -> list[str]:
        return [f"labels: {shown_labels(list(facts.id2label.values()))}"]

    def starter_limits(self, facts: ModelFacts) -> str:
        return limit_line(max(8, min(128, facts.max_positions)), "longer texts are read in windows that overlap")


def first_tokens(offsets: Sequence[tuple[int, int]], words: Sequence[tuple[int, int]]) -> list[int | None]:
    """The first token of each word.

    Args:
        offsets: [n] (start, end) characters of each token, in order. words: the same of each word, in order.
    Returns: the token's number; None for a word of which the tokenizer keeps nothing.
    """
    found: list[int | None] = []
    token = 0
    for start, end in words:
        # By its end: a byte-level token may begin with the space before the word.
        while token < len(offsets) and offsets[token][1] <= start:
            token += 1
        inside = token < len(offsets) and offsets[token][0] < end and offsets[token][1] > offsets[token][0]
        found.append(token if inside else None)
    return found


def _word_scores(one: Any, example: Tagged) -> np.ndarray:
    """[words, labels]: the scores of each word's first token; zeros for a word without tokens, whose best is label 0."""
    tokens, scores = token_scores(one)
    firsts = first_tokens([(token.start, token.end) for token in tokens], example.words)
    rows = np.zeros((len(firsts), scores.shape[-1]), np.float32)
    for row, first in zip(rows, firsts, strict=True):
        if first is not None:
            row[:] = scores[first]
    return rows


def _best(rows: np.ndarray) -> list[int]:
    return [int(index) for index in rows.argmax(axis=-1)] if len(rows) else []
