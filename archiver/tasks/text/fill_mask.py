"""fill-mask: the words that may stand at masked places of a text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from archiver.data.text.masks import MaskedExample, read_masked
from archiver.errors import UnsupportedModelError
from archiver.evaluation.rounding import rounded
from archiver.tasks.base import FALLBACK_VALIDATION, Metric
from archiver.tasks.forward import Measured
from archiver.tasks.text.encoder import EncoderTask
from handlers.inputs.text import Text
from handlers.inputs.texts.masked import PLACES, MaskedText

if TYPE_CHECKING:
    import torch

    from archiver.architecture.tracing import Tracing
    from archiver.models.facts import ModelFacts
    from archiver.models.source import ModelSource
    from archiver.spec import Recipe
    from archiver.tasks.workload import Workload

_STARTER = """
# Fill in your data and uncomment: then the model can be calibrated, and the gate can measure what it lost.
# data:
#   train: embedded:cpython     # English text that Python ships; better: your own texts, one a line in a .txt
#   validation: embedded:cpython      # what the gate is measured on: some words of it are masked, the same ones each time

compress:
  - quantize: {method: weight-only, bits: 8}
  # - quantize: {method: static-int8}  # calibrated on data.train. Use it instead of weight-only

# gate:                         # a bound that is missed, or cannot be measured, means no archive
#   min: {agreement: 0.95}      # share of masks whose likeliest word is the original model's
#   max_drop: {accuracy: 0.01}  # 0.01 is one point; share of masks whose likeliest word is the one that stood there
#   min_speedup: 2.0            # against PyTorch eager fp32
"""
_IGNORED = -100  # of a word that the vocabulary has lost


class FillMask(EncoderTask):
    """The masked words are learnt by cross-entropy; two models are compared by the divergence of their softened words."""

    name = "fill-mask"
    auto_class = "AutoModelForMaskedLM"
    architectures = ("ForMaskedLM", "WithLMHeadModel")
    metrics = {
        "agreement": Metric(),  # share of masks whose likeliest word is the original's
        "accuracy": Metric(),  # … is the one that stood there
        "top5": Metric(),  # share of masks among whose five likeliest words it is
    }
    headlines = ("accuracy", "agreement")
    fine = ("agreement", "accuracy")
    predicts_tokens = True
    columns = ("text",)
    module = "handlers.architecture.outputs.masked:MaskedModel"
    handler = "handlers.tasks.text.fill_mask:FillMaskHandler"
    starter = _STARTER

    def read(self, where: Path | str, recipe: Recipe, source: ModelSource, facts: ModelFacts) -> list[Any]:
        """With up to PLACES words of each text masked, so that a text is one item."""
        return read_masked(
            where,
            None if where == FALLBACK_VALIDATION else recipe.data.columns,
            (source.path / "tokenizer.json").read_bytes(),
            mask_token(source),
            recipe.serve.max_length,
            PLACES,
        )

    def values(self, examples: Sequence[Any]) -> list[Any]:
        return [example.text for example in examples]

    def make_input(self, workload: Workload, original: bool) -> Any:
        return MaskedText(Text(self.encoder(workload, original)), mask_token(workload.source))

    def tracing(self, workload: Workload) -> Tracing:
        from archiver.architecture.tracing import text_tracing

        return text_tracing(workload.module, max_length=workload.recipe.serve.max_length, max_places=PLACES)

    def input_settings(self, workload: Workload) -> dict[str, Any]:
        from archiver.models.inputs.tokenizer import tokenizer_settings

        clean_up = tokenizer_settings(workload.source.path).get("clean_up_tokenization_spaces")
        return super().input_settings(workload) | {
            "mask_token": mask_token(workload.source),
            "clean_up": clean_up is True,
        }

    def examples_of(self, where: Path, workload: Workload) -> list[Any]:
        return self.values(self.read(where, workload.recipe, workload.source, workload.facts))

    def answer_settings(self, facts: ModelFacts) -> dict[str, Any]:
        return {}

    def metrics_of(self, measured: Measured) -> dict[str, float]:
        found = _words(measured.found, measured.handler)
        reference = _words(measured.reference, measured.original)
        truth = [word for example in measured.examples for word in example.words]
        pairs = list(zip(found, truth, strict=True))
        return rounded(
            {
                "agreement": float(np.mean([a[0] == b[0] for a, b in zip(found, reference, strict=True)])),
                "accuracy": float(np.mean([words[0] == word for words, word in pairs])),
                "top5": float(np.mean([word in words[:5] for words, word in pairs])),
            }
        )

    def targets(
        self, workload: Workload, examples: Sequence[MaskedExample], prepared: Sequence[Sequence[Any]]
    ) -> list[Any] | None:
        """The ids of the masked words, [places] an item."""
        ids = self.encoder(workload, False).tokenizer.token_to_id
        found = []
        for example, items in zip(examples, prepared, strict=True):
            words = iter(example.words)
            found += [np.array([_known(ids(next(words))) for _ in item.places]) for item in items]
        return found

    def collate_targets(self, targets: Sequence[Any], size: int) -> torch.Tensor:
        """As `MaskedText.collate` places the masks: a row with fewer than others has its own again."""
        import torch

        width = PLACES if any(len(row) > 1 for row in targets) else 1
        return torch.as_tensor(np.stack([np.resize(row, width) for row in targets]))

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        from archiver.compression.retrain.objectives import cross_entropy

        return cross_entropy(outputs, labels)

    def distance(
        self, outputs: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None, temperature: float
    ) -> torch.Tensor:
        from archiver.compression.retrain.objectives import softened_divergence

        return softened_divergence(outputs, teacher, temperature).mean()

    def summary(self, facts: ModelFacts) -> list[str]:
        return [f"vocabulary: {facts.vocab_size} tokens"]


def mask_token(source: ModelSource) -> str:
    """The token that stands for a word to find, as the tokenizer's files name it.

    Raises: UnsupportedModelError where they name none.
    """
    from archiver.models.inputs.tokenizer import read_vocabulary, tokenizer_settings

    vocabulary = read_vocabulary(source.path, [])
    named = tokenizer_settings(source.path).get("mask_token")
    candidates = [named.get("content") if isinstance(named, dict) else named, "[MASK]", "<mask>"]
    token = next((token for token in candidates if token in vocabulary), None)
    if token is None:
        raise UnsupportedModelError(
            f"{source.source} has no mask token (mask_token of tokenizer_config.json, [MASK], <mask>): fill-mask needs one"
        )
    return str(token)


def _words(found: Sequence[Any], handler: Any) -> list[list[str]]:
    """The likeliest words of each mask in order, as the vocabulary spells them."""
    spelled = handler.input.text.encoder.tokenizer.id_to_token
    return [[spelled(int(word)) for word in place[:, 0]] for one in found for output in one.outputs for place in output]


def _known(word: int | None) -> int:
    return _IGNORED if word is None else word
