"""audio-classification: the label of a recording, or several of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from archiver.evaluation.metrics.classification import classification_metrics
from archiver.tasks.base import Metric
from archiver.tasks.forward import Measured
from archiver.tasks.speech.audio import AudioTask
from archiver.tasks.text.classification import TextClassification, class_targets

if TYPE_CHECKING:
    import torch

    from archiver.models.facts import ModelFacts
    from archiver.tasks.workload import Workload

_STARTER = """
# Recordings that the gate and the stored examples come from: without them nothing can be built. Name a list here.
data:
  # train: train.tsv            # what is calibrated on, and retrained with
  validation: validation.tsv    # .tsv, .csv or .jsonl; the sound files' paths are relative to the list
  columns: {audio: 0, label: 1}      # positions where the list has no header, else names

compress:
  - quantize: {method: weight-only, bits: 8}
  # - quantize: {method: static-int8}  # faster; calibrated on data.train. Use it instead of weight-only

# gate:                         # a bound that is missed, or cannot be measured, means no archive
#   max_drop: {accuracy: 0.01}  # 0.01 is one point, against the original model on data.validation
#   min_speedup: 2.0            # against PyTorch eager fp32
#   max_size_mb: 150            # of the archive
"""


class AudioClassification(AudioTask):
    """Labels are learnt and compared as those of texts are."""

    name = "audio-classification"
    auto_class = "AutoModelForAudioClassification"
    architectures = ("ForAudioClassification", "ForSequenceClassification")
    metrics = {
        "accuracy": Metric(needs=("label",)),
        "f1": Metric(needs=("label",)),  # macro
        "cross_entropy": Metric(higher_is_better=False, needs=("label",)),
        "agreement": Metric(),  # share of answers equal to the original model's
    }
    headlines = ("accuracy", "agreement")
    fine = ("cross_entropy", "agreement")
    columns = ("audio", "label")
    unit = "recordings"
    handler = "handlers.tasks.speech.classification:AudioClassificationHandler"
    starter = _STARTER
    _of_texts = TextClassification()

    def metrics_of(self, measured: Measured) -> dict[str, float]:
        labels = [example.label for example in measured.examples]
        return classification_metrics(
            measured.rows, measured.reference_rows, labels, multi_label=measured.facts.multi_label
        )

    def targets(
        self, workload: Workload, examples: Sequence[Any], prepared: Sequence[Sequence[Any]]
    ) -> list[Any] | None:
        return class_targets([example.label for example in examples], workload.facts)

    def answer_settings(self, facts: ModelFacts) -> dict[str, Any]:
        return self._of_texts.answer_settings(facts)

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self._of_texts.loss(outputs, labels)

    def distance(
        self, outputs: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None, temperature: float
    ) -> torch.Tensor:
        return self._of_texts.distance(outputs, teacher, mask, temperature)

    def summary(self, facts: ModelFacts) -> list[str]:
        return self._of_texts.summary(facts)

    def starter_limits(self, facts: ModelFacts) -> str:
        return "  max_seconds: 60               # of sound in one request"
