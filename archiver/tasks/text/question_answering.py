"""question-answering: the span of a context that answers a question."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from archiver.data.text.questions import KEYS, Asked, read_questions
from archiver.evaluation.metrics.answers import answer_metrics
from archiver.evaluation.rounding import rounded
from archiver.models.inputs.tokenizer import special_token
from archiver.tasks.base import FALLBACK_VALIDATION, Metric, limit_line
from archiver.tasks.forward import Measured
from archiver.tasks.text.encoder import EncoderTask
from handlers.inputs.texts.question import Question, Questions
from handlers.inputs.texts.windows import Window

if TYPE_CHECKING:
    import torch

    from archiver.models.facts import ModelFacts
    from archiver.models.source import ModelSource
    from archiver.spec import Recipe
    from archiver.tasks.workload import Workload

_STARTER = """
# Fill in your data and uncomment: then the model can be calibrated, and the gate can measure what it lost.
# data:
#   train: train.json           # SQuAD's JSON (v1.1, v2); or .jsonl, .csv, .tsv with question, context, answers
#   validation: dev.json        # what the gate is measured on
#   columns: {question: question, context: context, answers: answers}   # of tables; answer_start where there is one

compress:
  - quantize: {method: weight-only, bits: 8}
  # - quantize: {method: static-int8}  # faster; calibrated on data.train. Use it instead of weight-only

# gate:                         # a bound that is missed, or cannot be measured, means no archive
#   max_drop: {f1: 0.01}        # as SQuAD counts; 0.01 is one point, against the original model on data.validation
#   min_speedup: 2.0            # against PyTorch eager fp32
#   max_size_mb: 50             # of the archive
"""


class QuestionAnswering(EncoderTask):
    """An answer's first and last token are learnt, each among all tokens of a window."""

    name = "question-answering"
    auto_class = "AutoModelForQuestionAnswering"
    architectures = ("ForQuestionAnswering", "ForQuestionAnsweringSimple")
    metrics = {
        "f1": Metric(needs=("answers",)),
        "exact_match": Metric(needs=("answers",)),
        "agreement": Metric(),  # share of questions whose answer is the original model's
    }
    headlines = ("f1", "exact_match", "agreement")
    fine = ("f1", "agreement")
    columns = KEYS
    data_suffixes = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")
    unit = "windows"
    module = "handlers.architecture.outputs.token_heads:TokenHead"
    handler = "handlers.tasks.text.question_answering:QuestionAnsweringHandler"
    starter = _STARTER

    def module_settings(self, facts: ModelFacts) -> dict[str, Any]:
        return {}

    # ---- inputs -------------------------------------------------------------------------------------------------------

    def read(self, where: Path | str, recipe: Recipe, source: ModelSource, facts: ModelFacts) -> list[Any]:
        return list(read_questions(where, None if where == FALLBACK_VALIDATION else recipe.data.columns))

    def values(self, examples: Sequence[Any]) -> list[Any]:
        return [Question(example.question, example.context) for example in examples]

    def examples_of(self, where: Path, workload: Workload) -> list[Any]:
        return self.values(self.read(where, workload.recipe, workload.source, workload.facts))

    def make_input(self, workload: Workload, original: bool) -> Any:
        return Questions(self.encoder(workload, original), special_token(workload.source.path, "cls_token"))

    def input_settings(self, workload: Workload) -> dict[str, Any]:
        return super().input_settings(workload) | {"null_token": special_token(workload.source.path, "cls_token")}

    # ---- answers ------------------------------------------------------------------------------------------------------

    def answer_settings(self, facts: ModelFacts) -> dict[str, Any]:
        return {}

    def metrics_of(self, measured: Measured) -> dict[str, float]:
        """Where the data has questions without an answer, "" counts as one too."""
        golds = [example.answers for example in measured.examples]
        options = {"handle_impossible_answer": any(answers == () for answers in golds)}
        found, original = (
            [answer["answer"] for answer in measured.handler.answers(side, options)]
            for side in (measured.found, measured.reference)
        )
        metrics = {"agreement": sum(a == b for a, b in zip(found, original, strict=True)) / len(found)}
        if all(answers is not None for answers in golds):
            metrics |= answer_metrics(
                [[text for text, _ in answers] for answers in golds if answers is not None], found
            )
        return rounded(metrics)

    # ---- training -----------------------------------------------------------------------------------------------------

    def targets(
        self, workload: Workload, examples: Sequence[Asked], prepared: Sequence[Sequence[Window]]
    ) -> list[Any] | None:
        """[2] int64 for each window: the answer's first and last token, or twice the null token where it has none."""
        if any(example.answers is None for example in examples):
            return None
        return [
            _span_of(window, example) for example, windows in zip(examples, prepared, strict=True) for window in windows
        ]

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of the first and of the last token, their mean.

        Args:
            outputs: [rows, length, 2]. labels: [rows, 2] places.
        """
        from torch.nn import functional

        return functional.cross_entropy(outputs.transpose(1, 2).flatten(0, 1), labels.flatten())

    def distance(
        self, outputs: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None, temperature: float
    ) -> torch.Tensor:
        """The divergence of softened answers over real tokens, a mean over rows and both sides."""
        from archiver.compression.retrain.objectives import softened_divergence

        sides = [side.transpose(1, 2) for side in (outputs, teacher)]  # [rows, 2, length]
        if mask is not None:
            sides = [side.masked_fill(mask[:, None] == 0, -1e4) for side in sides]
        return softened_divergence(sides[0], sides[1], temperature).mean()

    # ---- starter ------------------------------------------------------------------------------------------------------

    def summary(self, facts: ModelFacts) -> list[str]:
        return []

    def starter_limits(self, facts: ModelFacts) -> str:
        return limit_line(max(32, min(384, facts.max_positions)), "longer contexts are read in windows that overlap")


def _span_of(window: Window, example: Asked) -> np.ndarray:
    """The places in a window of the first true answer's first and last token; the null token's where not all of it is."""
    nowhere = np.full(2, window.null or 0, np.int64)
    if not example.answers:
        return nowhere
    text, begin = example.answers[0]
    inside = [
        place
        for place in window.text
        if window.offsets[place][0] < begin + len(text) and window.offsets[place][1] > begin
    ]
    if not inside:
        return nowhere
    cut_before = inside[0] == window.text.start and window.offsets[inside[0]][0] > begin
    cut_behind = inside[-1] == window.text.stop - 1 and window.offsets[inside[-1]][1] < begin + len(text.rstrip())
    return nowhere if cut_before or cut_behind else np.array([inside[0], inside[-1]], np.int64)
