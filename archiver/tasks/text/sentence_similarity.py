"""sentence-similarity: how alike each of several sentences is to one, by the cosine of their vectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from archiver.data.examples import Example
from archiver.evaluation.metrics.embedding import embedding_metrics
from archiver.tasks.forward import Measured
from archiver.tasks.text.feature_extraction import FeatureExtraction
from handlers.inputs.text import TextInput
from handlers.inputs.texts.against import Against, SourceSentence

if TYPE_CHECKING:
    from archiver.models.facts import ModelFacts
    from archiver.tasks.workload import Workload

_STARTER = """
# Fill in your data and uncomment: then the model can be calibrated, and the gate can measure what it lost.
# data:
#   train: embedded:cpython     # English text that Python ships; better: your own texts, one a line in a .txt
#   validation: dev.tsv         # pairs with a number that says how alike they are
#   columns: {text: 0, text_pair: 1, label: 2}

compress:
  - quantize: {method: weight-only, bits: 8}
  # - quantize: {method: static-int8}  # calibrated on data.train. Use it instead of weight-only

# gate:                         # a bound that is missed, or cannot be measured, means no archive
#   max_drop: {spearman: 0.01}  # 0.01 is one point, against the original model on data.validation
#   min: {cosine: 0.99}         # against the original model's vectors
#   min_speedup: 2.0            # against PyTorch eager fp32
"""
_OTHERS = 7  # of texts without pairs: what each eighth one is compared with
_MOST = 32  # of one input, where one text has many pairs


class SentenceSimilarity(FeatureExtraction):
    """Measured and trained as an embedding model is: on its vectors, and on how the cosines of pairs are ordered."""

    name = "sentence-similarity"
    handler = "handlers.tasks.text.sentence_similarity:SentenceSimilarityHandler"
    starter = _STARTER

    def values(self, examples: Sequence[Example]) -> list[Any]:
        """Pairs of one text together; texts without a pair by eight, the first against the others."""
        pairs: dict[str, list[str]] = {}
        for example in examples:
            if example.text_pair is not None:
                pairs.setdefault(example.text, []).append(example.text_pair)
        found = [
            Against(one, tuple(others[start : start + _MOST]))
            for one, others in pairs.items()
            for start in range(0, len(others), _MOST)
        ]
        single = [example.text for example in examples if example.text_pair is None]
        groups = [single[start : start + 1 + _OTHERS] for start in range(0, len(single), 1 + _OTHERS)]
        # A last one that is left over is compared with itself: its vector is measured as any other's.
        return found + [Against(group[0], tuple(group[1:] or group)) for group in groups]

    def make_input(self, workload: Workload, original: bool) -> Any:
        return SourceSentence(self.encoder(workload, original))

    def examples_of(self, where: Path, workload: Workload) -> list[Any]:
        return self.values(self.read(where, workload.recipe, workload.source, workload.facts))

    def answer_settings(self, facts: ModelFacts) -> dict[str, Any]:
        return {}

    def metrics_of(self, measured: Measured) -> dict[str, float]:
        vectors = [
            {
                text: output
                for one in each
                for text, output in zip((one.value.one, *one.value.others), one.outputs, strict=True)
            }
            for each in (measured.found, measured.reference)
        ]
        ours, theirs = (np.stack(list(one.values())) for one in vectors)
        return embedding_metrics(ours, theirs, [TextInput(text) for text in vectors[0]], measured.examples)
