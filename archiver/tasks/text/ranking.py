"""text-ranking: how relevant each of several texts is for a query, by a model that sees both (a cross-encoder)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from archiver.data.text.ranking import COLUMNS, RankingExample, read_ranking
from archiver.evaluation.metrics.ranking import ranking_metrics
from archiver.tasks.base import FALLBACK_VALIDATION, Metric
from archiver.tasks.forward import Measured
from archiver.tasks.text.encoder import EncoderTask
from handlers.inputs.texts.against import Against, Query
from handlers.tasks.text.ranking import relevance

if TYPE_CHECKING:
    import torch

    from archiver.models.facts import ModelFacts
    from archiver.models.source import ModelSource
    from archiver.spec import Recipe
    from archiver.tasks.workload import Workload

_STARTER = """
# Fill in your data and uncomment: then the model can be calibrated, and the gate can measure what it lost.
# data:
#   train: train.tsv            # .tsv, .csv or .jsonl, relative to this file; or hub://name[/config]:split
#   validation: dev.tsv         # what the gate is measured on
#   columns: {query: 0, text: 1, label: 2}      # label: how relevant, from 0; in JSON lines text and label may be lists

compress:
  - quantize: {method: weight-only, bits: 8}
  # - quantize: {method: static-int8}  # faster; calibrated on data.train. Use it instead of weight-only

# gate:                         # a bound that is missed, or cannot be measured, means no archive
#   max_drop: {ndcg@10: 0.01}   # 0.01 is one point, against the original model on data.validation
#   min: {agreement: 0.98}      # share of pairs of a query's texts that stay in the original's order
#   min_speedup: 2.0            # against PyTorch eager fp32
"""

# Of config.json: sentence-transformers' CrossEncoder leaves one of them there.
_MARKS = ("sentence_transformers", "sbert_ce_default_activation_function")
_CARD = ("cross-encoder", "CrossEncoder", "text-ranking", "reranker")  # of a model card's text
_CARD_CHARACTERS = 4000


class TextRanking(EncoderTask):
    """Labels are learnt by binary cross-entropy of each text by itself; two models are compared by their logits.

    A model has one label, or two of which the second says that a text is relevant.
    """

    name = "text-ranking"
    auto_class = "AutoModelForSequenceClassification"
    architectures = ("ForSequenceClassification",)
    metrics = {
        "ndcg@10": Metric(needs=("label",)),
        "mrr@10": Metric(needs=("label",)),
        "hit@10": Metric(needs=("label",)),
        "agreement": Metric(),  # share of pairs of a query's texts in the original's order
    }
    headlines = ("ndcg@10", "agreement")
    fine = ("ndcg@10", "agreement")
    columns = COLUMNS
    data_suffixes = (".tsv", ".csv", ".jsonl", ".ndjson")
    unit = "pairs"
    handler = "handlers.tasks.text.ranking:TextRankingHandler"
    starter = _STARTER

    def suits(self, path: Path, config: Mapping[str, Any]) -> bool:
        """One label, and the marks of a cross-encoder in config.json or the model card: a number alone may be a rating."""
        if not super().suits(path, config) or len(config.get("id2label") or ()) != 1:
            return False
        return any(config.get(mark) for mark in _MARKS) or any(word in _card(path) for word in _CARD)

    def check(self, recipe: Recipe, source: ModelSource, facts: ModelFacts) -> list[str]:
        if facts.num_labels in (1, 2) and not (facts.num_labels == 2 and facts.multi_label):
            return []
        return [
            f"{source.source} has {facts.num_labels} labels; {self.name} needs one (how relevant a text is), or two of "
            "which the second says that it is: use text-classification"
        ]

    def read(self, where: Path | str, recipe: Recipe, source: ModelSource, facts: ModelFacts) -> list[Any]:
        return list(read_ranking(where, None if where == FALLBACK_VALIDATION else recipe.data.columns))

    def values(self, examples: Sequence[Any]) -> list[Any]:
        return [Against(example.query, example.texts) for example in examples]

    def make_input(self, workload: Workload, original: bool) -> Query:
        return Query(self.encoder(workload, original))

    def examples_of(self, where: Path, workload: Workload) -> list[Any]:
        return self.values(self.read(where, workload.recipe, workload.source, workload.facts))

    def answer_settings(self, facts: ModelFacts) -> dict[str, Any]:
        return {}

    def metrics_of(self, measured: Measured) -> dict[str, float]:
        found, reference = ([relevance(one.outputs) for one in each] for each in (measured.found, measured.reference))
        labels = [None if one.labels is None else np.array(one.labels) for one in measured.examples]
        return ranking_metrics(found, reference, labels)

    def targets(
        self, workload: Workload, examples: Sequence[RankingExample], prepared: Sequence[Sequence[Any]]
    ) -> list[Any] | None:
        """Each text's label as a share of the highest one."""
        labels = [label for example in examples for label in example.labels or ()]
        if any(example.labels is None for example in examples) or not any(labels):
            return None
        return [np.float32(label / max(labels)) for label in labels]

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional

        scores = outputs[:, 0] if outputs.shape[1] == 1 else outputs[:, 1] - outputs[:, 0]
        return functional.binary_cross_entropy_with_logits(scores, labels)

    def distance(
        self, outputs: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None, temperature: float
    ) -> torch.Tensor:
        """Squared difference of logits.

        Source: Hofstätter et al. 2020, arXiv:2010.02666, without their margins between two texts of one query.
        """
        from torch.nn import functional

        return functional.mse_loss(outputs, teacher)

    def summary(self, facts: ModelFacts) -> list[str]:
        return [
            "relevance: " + ("its one logit" if facts.num_labels == 1 else "its second label's logit less the first's")
        ]


def _card(path: Path) -> str:
    """The beginning of a model card; "" where there is none."""
    try:
        return (path / "README.md").read_text(encoding="utf-8", errors="replace")[:_CARD_CHARACTERS]
    except OSError:
        return ""
