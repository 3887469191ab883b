"""What tasks share that answer a text, or a pair of texts, in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from archiver.data.examples import Example, read_examples
from archiver.tasks.base import FALLBACK_VALIDATION
from archiver.tasks.forward import ForwardTask
from handlers.inputs.base import Input
from handlers.inputs.text import Encoder, Text, TextInput, Texts

if TYPE_CHECKING:
    from archiver.architecture.tracing import Tracing
    from archiver.models.facts import ModelFacts
    from archiver.models.source import ModelSource
    from archiver.spec import Recipe, ServeSpec
    from archiver.tasks.workload import Workload


class EncoderTask(ForwardTask):
    """A task whose inputs are texts or pairs of texts.

    Attributes:
        labels: what a label is: "class" (an id or name, several where the model is multi-label) or "score" (a number).
    """

    labels: ClassVar[Literal["class", "score"]] = "class"
    module = "handlers.architecture.outputs.encoder:EncoderWithHead"
    serve_keys = ("max_length", "precision", "max_queue")

    def read(self, where: Path | str, recipe: Recipe, source: ModelSource, facts: ModelFacts) -> list[Any]:
        columns = None if where == FALLBACK_VALIDATION else recipe.data.columns
        return list(
            read_examples(
                where, columns, labels=self.labels, id2label=facts.id2label or None, multi_label=facts.multi_label
            )
        )

    def values(self, examples: Sequence[Example]) -> list[Any]:
        return [TextInput(example.text, example.text_pair) for example in examples]

    def input_settings(self, workload: Workload) -> dict[str, Any]:
        return {"max_length": workload.recipe.serve.max_length, "pad_id": workload.pad_id}

    def make_input(self, workload: Workload, original: bool) -> Input[Any, Any]:
        return Text(self.encoder(workload, original))

    def encoder(self, workload: Workload, original: bool, cut: str = Texts.cut) -> Encoder:
        """The tokenizer at work; cut: see `Encoder`."""
        return Encoder(
            workload.tokenizer_bytes if original else workload.tokenizer_json,
            max_length=workload.recipe.serve.max_length,
            pad_id=workload.facts.pad_token_id if original else workload.pad_id,
            cut=cut,
        )

    def write_inputs(self, workload: Workload, folder: Path) -> None:
        (folder / "tokenizer.json").write_bytes(workload.tokenizer_json)

    def tracing(self, workload: Workload) -> Tracing:
        from archiver.architecture.tracing import text_tracing

        return text_tracing(workload.module, max_length=workload.recipe.serve.max_length)

    def sizes(self, serve: ServeSpec) -> list[int]:
        """Some fifty lengths, closer together where texts are short."""
        steps = ((8, 64), (16, 128), (32, 256), (64, 512), (128, serve.max_length))
        lengths = {size for step, end in steps for size in range(step, end + 1, step) if size < serve.max_length}
        return [*sorted(lengths), serve.max_length]

    def examples_of(self, where: Path, workload: Workload) -> list[Any]:
        found = read_examples(where, {"text": 0} if where.suffix == ".tsv" else None, labels=self.labels)
        return [TextInput(example.text, example.text_pair) for example in found]

    def extent(self, workload: Workload) -> dict[str, int]:
        return {"max_length": workload.recipe.serve.max_length}
