"""text2text-generation, summarization, translation: a text read once, and another written from it token by token."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from archiver.data.text.pairs import Pair, read_pairs
from archiver.tasks.base import FALLBACK_VALIDATION, SEQ2SEQ, Metric, Task, engine_server, limit_line

if TYPE_CHECKING:
    import torch

    from archiver.models.facts import ModelFacts
    from archiver.models.source import ModelSource
    from archiver.spec import Recipe, ServeSpec

_STARTER = """
# Fill in your data and uncomment: then the model can be retrained, and the gate can measure what it lost.
# data:
#   train: train.tsv            # .tsv, .csv or .jsonl, relative to this file; or hub://name[/config]:split
#   validation: dev.tsv         # what the gate is measured on
#   columns: {source: 0, target: 1}   # positions where the file has no header, else names

compress:
  - quantize: {method: weight-only, bits: 8}

# gate:                         # a bound that is missed, or cannot be measured, means no archive
#   max_drop: {chrf: 0.01}      # 0.01 is one point, against the original model on data.validation; also rougeL
#   min_speedup: 2.0            # against transformers' generate in fp32
#   max_size_mb: 100            # of the archive
"""

_SERVE = """\
  batch_size: 32                # texts that are written at once, a beam counts as one
  max_queue: 128                # texts that may wait for a place; beyond, 503
  deadline_s: 120               # a text ends here at the latest"""


class Seq2SeqTask(Task):
    """outputs [rows, length, vocabulary] are about the target's token at each place; labels are the target, -100 behind it.

    Attributes:
        answer: what a text is called in an answer.
    """

    auto_class = "AutoModelForSeq2SeqLM"
    execution = SEQ2SEQ
    answer: ClassVar[str]
    metrics = {
        "chrf": Metric(needs=("target",)),
        "rougeL": Metric(needs=("target",)),
        "exact_match": Metric(needs=("target",)),
        "agreement": Metric(),  # share of texts equal to the original model's
    }
    fine = ("chrf", "agreement")
    columns = ("source", "target")
    batched = False  # a backend's own groups
    serve_keys = ("max_length", "max_queue", "deadline_s")
    unit = "tokens"
    batches = "written from 16 texts at once, greedily"
    module = "handlers.architecture.outputs.seq2seq:Seq2Seq"
    workload = "archiver.tasks.seq2seq.workload:Seq2SeqWorkload"
    handler = "handlers.tasks.text.seq2seq:Seq2SeqHandler"
    starter = _STARTER
    starter_serve = _SERVE

    def read(self, where: Path | str, recipe: Recipe, source: ModelSource, facts: ModelFacts) -> list[Pair]:
        learns = where == recipe.data.train and any(stage.needs_data for stage in recipe.compress)
        columns = None if where == FALLBACK_VALIDATION else recipe.data.columns
        return read_pairs(where, columns, targets=learns)

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        from archiver.compression.retrain.objectives import cross_entropy

        return cross_entropy(outputs, labels)

    def distance(
        self, outputs: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None, temperature: float
    ) -> torch.Tensor:
        """Over the places of targets: padding has logits of 0 in both. The mask is the source's, and says nothing here."""
        from archiver.compression.retrain.objectives import softened_divergence

        real = teacher.abs().sum(-1) > 0
        return softened_divergence(outputs[real], teacher[real], temperature).mean()

    def server_config(self, serve: ServeSpec) -> dict[str, Any]:
        return engine_server(serve)

    def summary(self, facts: ModelFacts) -> list[str]:
        return [f"an encoder and a decoder with {facts.vocab_size} tokens"]

    def starter_limits(self, facts: ModelFacts) -> str:
        return limit_line(min(512, facts.max_positions), "of a text that is read; longer ones are cut")


class Text2TextGeneration(Seq2SeqTask):
    """Any text from any text."""

    name = "text2text-generation"
    architectures = ("ForConditionalGeneration",)
    headlines = ("chrf", "rougeL", "agreement")
    answer = "generated_text"


class Summarization(Seq2SeqTask):
    """A short text from a long one."""

    name = "summarization"
    headlines = ("rougeL", "chrf", "agreement")
    answer = "summary_text"


class Translation(Seq2SeqTask):
    """A text in another language."""

    name = "translation"
    architectures = ("MTModel",)
    headlines = ("chrf", "rougeL", "agreement")
    answer = "translation_text"
