"""image-classification: one label of several, or several of several, for an image."""

from __future__ import annotations

from archiver.tasks.classification import Classification
from archiver.tasks.image.images import ImageTask

_STARTER = """
# Fill in your data and uncomment: then the model can be calibrated, and the gate can measure what it lost.
# data:
#   train: train.tsv            # an image's path and its label a row (.tsv, .csv, .jsonl); or a folder of labels' folders
#   validation: dev.tsv         # what the gate is measured on
#   columns: {image: 0, label: 1}     # positions where the file has no header, else names

compress:
  - quantize: {method: weight-only, bits: 8}
  # - quantize: {method: static-int8}  # faster; calibrated on data.train. Use it instead of weight-only

# gate:                         # a bound that is missed, or cannot be measured, means no archive
#   max_drop: {accuracy: 0.01}  # 0.01 is one point, against the original model on data.validation
#   min_speedup: 2.0            # against PyTorch eager fp32
#   max_size_mb: 50             # of the archive
"""


class ImageClassification(Classification, ImageTask):
    """Labels of an image."""

    name = "image-classification"
    auto_class = "AutoModelForImageClassification"
    architectures = ("ForImageClassification", "ForImageClassificationWithTeacher")
    handler = "handlers.tasks.image.classification:ImageClassificationHandler"
    starter = _STARTER
