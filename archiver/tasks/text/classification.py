"""text-classification: one label of several, several of several, or a number for a text or a pair."""

from __future__ import annotations

from archiver.tasks.classification import Classification, class_targets
from archiver.tasks.text.encoder import EncoderTask

__all__ = ["TextClassification", "class_targets"]

_STARTER = """
# Fill in your data and uncomment: then the model can be calibrated, and the gate can measure what it lost.
# data:
#   train: train.tsv            # .tsv, .csv, .jsonl or .txt, relative to this file; or hub://name[/config]:split
#   validation: dev.tsv         # what the gate is measured on
#   columns: {text: 0, label: 1}      # positions where the file has no header, else names; text_pair for pairs

compress:
  - quantize: {method: weight-only, bits: 8}
  # - quantize: {method: static-int8}  # faster; calibrated on data.train. Use it instead of weight-only

# gate:                         # a bound that is missed, or cannot be measured, means no archive
#   max_drop: {accuracy: 0.01}  # 0.01 is one point, against the original model on data.validation
#   min_speedup: 2.0            # against PyTorch eager fp32
#   max_size_mb: 50             # of the archive
"""


class TextClassification(Classification, EncoderTask):
    """Labels of a text, or of a pair of texts."""

    name = "text-classification"
    auto_class = "AutoModelForSequenceClassification"
    architectures = ("ForSequenceClassification",)
    handler = "handlers.tasks.text.classification:TextClassificationHandler"
    starter = _STARTER
