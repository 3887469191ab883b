"""image-feature-extraction: one vector for an image, for search and likeness."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archiver.tasks.image.images import ImageTask
from archiver.tasks.vectors import Vectors

if TYPE_CHECKING:
    from archiver.models.facts import ModelFacts

_STARTER = """
# Fill in your data and uncomment: then the model can be calibrated, and the gate can measure what it lost.
# data:
#   train: images               # a folder of images, or a list of their paths (.txt, .tsv, .csv, .jsonl)
#   validation: more-images     # what the gate is measured on

compress:
  - quantize: {method: weight-only, bits: 8}
  # - quantize: {method: static-int8}  # faster; calibrated on data.train. Use it instead of weight-only

# gate:                         # a bound that is missed, or cannot be measured, means no archive
#   min: {cosine: 0.99, recall@10: 0.95}      # against the original model's vectors, on data.validation
#   min_speedup: 2.0            # against PyTorch eager fp32
#   max_size_mb: 50             # of the archive
"""


class ImageFeatureExtraction(Vectors, ImageTask):
    """The vector that the model makes of an image: projected (CLIP), pooled, or the first token's."""

    name = "image-feature-extraction"
    auto_class = "AutoModel"
    features = True
    handler = "handlers.tasks.image.feature_extraction:ImageFeatureExtractionHandler"
    starter = _STARTER

    def suits(self, path: Path, config: Mapping[str, Any]) -> bool:
        """transformers' class for the model has no head and takes images, alone or beside texts."""
        import transformers
        from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

        from archiver.models.files import architecture_of

        name = architecture_of(config) or MODEL_MAPPING_NAMES.get(config.get("model_type", ""), "")
        kind = getattr(transformers, name, None) if isinstance(name, str) and name and "For" not in name else None
        return getattr(kind, "main_input_name", "") == "pixel_values" or "image" in getattr(
            kind, "input_modalities", ()
        )

    def answer_settings(self, facts: ModelFacts) -> dict[str, Any]:
        return {"normalize": False}

    def summary(self, facts: ModelFacts) -> list[str]:
        return ["features: as the model gives them, not normalised unless a request asks for it"]
