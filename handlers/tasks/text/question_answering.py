"""question-answering: the span of a context that answers a question; long contexts are read in windows that overlap."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from handlers.base import BatchHandler, Found
from handlers.examples import largest_share
from handlers.inputs.checks import Parameter, is_bool, is_positive_int
from handlers.inputs.texts.question import Question, Questions
from handlers.inputs.texts.windows import Window
from handlers.tasks.text.spans import find_spans, probabilities

_OPTIONS = ("top_k", "max_answer_len", "handle_impossible_answer", "align_to_words")
_PROBABILITIES = "probabilities"  # no request may set it: those of every token are answered, for stored examples


class QuestionAnsweringHandler(BatchHandler[Question]):
    """The session's output for a window is [tokens, 2] float32: logits of an answer's first and last token."""

    parameters: ClassVar[dict[str, Parameter]] = {
        "top_k": Parameter(
            lambda value: is_positive_int(value) and value <= 1000,
            "a whole number from 1 to 1000; one answer comes as an object, more in a list",
        ),
        "max_answer_len": Parameter(is_positive_int, "a whole number from 1: the most tokens of an answer"),
        "handle_impossible_answer": Parameter(is_bool, "true or false"),
        "align_to_words": Parameter(is_bool, "true or false"),
    }
    input: Questions

    def make_input(self, folder: Path) -> Questions:
        return Questions.open(folder, self.serving)

    def prepare(self, values: Sequence[Question], parameters: Mapping[str, Any]) -> list[Sequence[Window]]:
        return self.input.windows(values, parameters)

    def answers(self, found: Sequence[Found[Question]], parameters: Mapping[str, Any]) -> list[Any]:
        options = {name: parameters[name] for name in _OPTIONS if name in parameters}
        answers: list[Any] = []
        for one in found:
            if not all(np.isfinite(output).all() for output in one.outputs):
                raise ArithmeticError("the model's answer is not finite")
            if parameters.get(_PROBABILITIES):
                pairs = (probabilities(*pair) for pair in zip(one.items, one.outputs, strict=True))
                answers.append([[round(share, 6) for share in side.tolist()] for pair in pairs for side in pair])
                continue
            spans = find_spans(one.value.context, one.items, one.outputs, **options)
            nothing = {"score": 0.0, "start": 0, "end": 0, "answer": ""}
            answers.append(spans if parameters.get("top_k", 1) > 1 else (spans or [nothing])[0])
        return answers

    @property
    def full_parameters(self) -> dict[str, Any]:
        """How likely an answer starts and ends at every token: a second best that comes close must not slip by unseen."""
        return {_PROBABILITIES: True}

    def compare(self, stored: Any, found: Any) -> float:
        """By window, side and token."""
        try:
            return largest_share(
                *(
                    {(row, place): float(share) for row, side in enumerate(answer) for place, share in enumerate(side)}
                    for answer in (stored, found)
                )
            )
        except (TypeError, ValueError):
            return float("inf")
