"""zero-shot-classification: a text against any labels, by a model of natural language inference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from archiver.data.examples import Example, read_examples
from archiver.errors import DataError
from archiver.evaluation.metrics.classification import classification_metrics
from archiver.tasks.base import FALLBACK_VALIDATION, shown_labels
from archiver.tasks.forward import Measured
from archiver.tasks.text.classification import TextClassification, class_targets
from handlers.inputs.texts.candidates import Candidates, CandidateText

if TYPE_CHECKING:
    from archiver.models.facts import ModelFacts
    from archiver.models.source import ModelSource
    from archiver.spec import Recipe
    from archiver.tasks.workload import Workload

_STARTER = """
# Fill in your data and uncomment: then the model can be calibrated, and the gate can measure what it lost.
# data:
#   train: train.tsv            # .tsv, .csv, .jsonl or .txt, relative to this file; or hub://name[/config]:split
#   validation: dev.tsv         # what the gate is measured on
#   columns: {text: 0, label: 1}      # labels by name: each text is classified among all of the file's; or premise and
#                                     # hypothesis, {text: 0, text_pair: 1, label: 2}, with the model's own labels

compress:
  - quantize: {method: weight-only, bits: 8}
  # - quantize: {method: static-int8}  # faster; calibrated on data.train. Use it instead of weight-only

# gate:                         # a bound that is missed, or cannot be measured, means no archive
#   max_drop: {accuracy: 0.01}  # 0.01 is one point, against the original model on data.validation
#   min_speedup: 2.0            # against PyTorch eager fp32
"""
# What texts without labels are classified by.
_LABELS = ("technology", "politics", "sports", "science", "business")


def entailment_of(names: Mapping[int, str]) -> int | None:
    """The id of the first label that begins with "entail", as transformers' pipeline finds it; None where none does."""
    return next((index for index, name in names.items() if name.lower().startswith("entail")), None)


class ZeroShotClassification(TextClassification):
    """Learns and is compared as a classifier of premise and hypothesis; measured on texts with labels of any names (each
    among all of them), or on premises with hypotheses."""

    name = "zero-shot-classification"
    unit = "pairs"
    handler = "handlers.tasks.text.zero_shot_classification:ZeroShotClassificationHandler"
    starter = _STARTER

    def suits(self, path: Path, config: Mapping[str, Any]) -> bool:
        """A label says "entailment"."""
        labels = config.get("id2label")
        names = dict(enumerate(map(str, labels.values()))) if isinstance(labels, Mapping) else {}
        return super().suits(path, config) and entailment_of(names) is not None

    def check(self, recipe: Recipe, source: ModelSource, facts: ModelFacts) -> list[str]:
        if facts.num_labels > 1 and entailment_of(facts.id2label) is not None and not facts.multi_label:
            return []
        return [
            f"{source.source} has the labels {shown_labels(list(facts.id2label.values()))}; {self.name} needs a model of "
            'natural language inference, one of whose labels begins with "entail"'
        ]

    def read(self, where: Path | str, recipe: Recipe, source: ModelSource, facts: ModelFacts) -> list[Any]:
        columns = None if where == FALLBACK_VALIDATION else recipe.data.columns
        found = read_examples(where, columns, labels="name", id2label=facts.id2label, multi_label=False)
        if len({example.text_pair is None for example in found}) > 1:
            name = where.name if isinstance(where, Path) else where
            raise DataError(
                f"{name} has rows with text_pair and rows without: give premises with hypotheses, or texts alone"
            )
        return list(found)

    def values(self, examples: Sequence[Example]) -> list[Any]:
        labels = candidates(examples)
        return [
            Candidates((example.text,), labels=labels)
            if example.text_pair is None
            else Candidates((example.text,), labels=(example.text_pair,), template="{}")
            for example in examples
        ]

    def make_input(self, workload: Workload, original: bool) -> Any:
        return CandidateText(self.encoder(workload, original, CandidateText.cut))

    def examples_of(self, where: Path, workload: Workload) -> list[Any]:
        return self.values(self.read(where, workload.recipe, workload.source, workload.facts))

    def answer_settings(self, facts: ModelFacts) -> dict[str, Any]:
        return {"entailment": entailment_of(facts.id2label)}

    def metrics_of(self, measured: Measured) -> dict[str, float]:
        examples, names = measured.examples, candidates(measured.examples)
        labels: list[Any] = [example.label for example in examples]
        if examples[0].text_pair is not None:
            return classification_metrics(measured.rows, measured.reference_rows, labels, multi_label=False)
        entailment = entailment_of(measured.facts.id2label)
        found, reference = (
            np.array([[output[entailment] for output in one.outputs] for one in each])
            for each in (measured.found, measured.reference)
        )
        places = [None if label is None else names.index(label) for label in labels]
        return classification_metrics(found, reference, places, multi_label=False)

    def targets(
        self, workload: Workload, examples: Sequence[Example], prepared: Sequence[Sequence[Any]]
    ) -> list[Any] | None:
        """Those of premises with hypotheses; what a text's label says of the other ones is the original's to tell."""
        if any(example.text_pair is None for example in examples):
            return None
        return class_targets([example.label for example in examples], workload.facts)


def candidates(examples: Sequence[Example]) -> tuple[str, ...]:
    """The labels that single texts are classified by: all that some example has, in order of first appearance."""
    names = dict.fromkeys(example.label for example in examples if isinstance(example.label, str))
    return tuple(names) or _LABELS
