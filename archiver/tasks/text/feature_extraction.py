"""feature-extraction: one pooled vector for a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from archiver.data.examples import Example
from archiver.evaluation.metrics.embedding import embedding_metrics, unique_texts
from archiver.tasks.base import Metric
from archiver.tasks.forward import Measured
from archiver.tasks.text.encoder import EncoderTask
from archiver.tasks.vectors import Vectors

if TYPE_CHECKING:
    from archiver.models.facts import ModelFacts

_STARTER = """
# Fill in your data and uncomment: then the model can be calibrated, and the gate can measure what it lost.
# data:
#   train: embedded:cpython     # English text that Python ships; better: your own texts, one a line in a .txt
#   validation: embedded:cpython      # what the gate is measured on

compress:
  - quantize: {method: weight-only, bits: 8}
  # - quantize: {method: static-int8}  # calibrated on data.train. Use it instead of weight-only

# gate:                         # a bound that is missed, or cannot be measured, means no archive
#   min: {cosine: 0.99, recall@10: 0.95}      # against the original model's vectors, on data.validation
#   min_speedup: 2.0            # against PyTorch eager fp32
#   max_size_mb: 50             # of the archive
"""


class FeatureExtraction(Vectors, EncoderTask):
    """The pooled vector of a text; pairs with scores show whether vectors still lie as people judge the texts."""

    name = "feature-extraction"
    auto_class = "AutoModel"
    metrics = {**Vectors.metrics, "spearman": Metric(needs=("label", "text_pair"), lowest=-1.0)}
    headlines = ("spearman", *Vectors.headlines)
    labels = "score"
    handler = "handlers.tasks.text.feature_extraction:FeatureExtractionHandler"
    starter = _STARTER

    def module_settings(self, facts: ModelFacts) -> dict[str, Any]:
        return {"pooling": facts.pooling.mode}

    def values(self, examples: Sequence[Example]) -> list[Any]:
        """Every single text once."""
        return list(unique_texts(examples))

    def metrics_of(self, measured: Measured) -> dict[str, float]:
        texts = [one.value for one in measured.found]
        return embedding_metrics(measured.rows, measured.reference_rows, texts, measured.examples)

    def answer_settings(self, facts: ModelFacts) -> dict[str, Any]:
        return {"normalize": facts.pooling.normalize}

    def summary(self, facts: ModelFacts) -> list[str]:
        ending = ", then L2 normalisation" if facts.pooling.normalize else ""
        origin = "modules.json" if facts.pooling.declared else "the default, as there is no modules.json"
        return [f"pooling: {facts.pooling.mode}{ending} ({origin})"]
