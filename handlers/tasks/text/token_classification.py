"""token-classification: the entities of a text, with their characters; long texts are read in windows that overlap."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from handlers.base import BatchHandler, Found
from handlers.inputs.checks import Parameter
from handlers.inputs.text import Encoder
from handlers.inputs.texts.windows import TextWindows, Window
from handlers.tasks.text.classification import softmax
from handlers.tasks.text.entities import STRATEGIES, Token, Vocabulary, find_entities, token_differences

_SCORES = "scores"  # no request may set it: each token's score of each label is answered, for stored examples


class TokenClassificationHandler(BatchHandler[str]):
    """The session's output for a window is [tokens, labels] float32 logits.

    serving: labels, by id; unknown_token.
    """

    parameters: ClassVar[dict[str, Parameter]] = {
        "aggregation_strategy": Parameter(
            lambda value: isinstance(value, str) and value in STRATEGIES, ", ".join(STRATEGIES)
        ),
        "ignore_labels": Parameter(
            lambda value: isinstance(value, list) and all(isinstance(label, str) for label in value),
            'a list of labels; the default is ["O"]',
        ),
    }
    input: TextWindows

    def make_input(self, folder: Path) -> TextWindows:
        return TextWindows(Encoder.open(folder, self.serving))

    def prepare(self, values: Sequence[str], parameters: Mapping[str, Any]) -> list[Sequence[Window]]:
        return self.input.windows(values, parameters)

    def answers(self, found: Sequence[Found[str]], parameters: Mapping[str, Any]) -> list[Any]:
        labels: Sequence[str] = self.serving["labels"]
        vocabulary = Vocabulary(self.input.encoder.tokenizer, self.serving["unknown_token"])
        answers: list[Any] = []
        for one in found:
            tokens, scores = token_scores(one)
            if parameters.get(_SCORES):
                # Five digits: far below any tolerance, and half the bytes.
                answers.append([dict(zip(labels, [round(x, 5) for x in row], strict=True)) for row in scores.tolist()])
                continue
            answers.append(
                find_entities(
                    one.value,
                    tokens,
                    scores,
                    labels,
                    vocabulary,
                    strategy=parameters.get("aggregation_strategy", "none"),
                    ignored=parameters.get("ignore_labels", ["O"]),
                )
            )
        return answers

    @property
    def full_parameters(self) -> dict[str, Any]:
        """All scores: one label's that comes close to the best must not slip by unseen."""
        return {_SCORES: True}

    def compare(self, stored: Any, found: Any) -> float:
        """By token and label; scores are shares of 1."""
        try:
            return token_differences(stored, found)
        except (AttributeError, TypeError):
            return float("inf")


def token_scores(one: Found[str]) -> tuple[list[Token], np.ndarray]:
    """The tokens of a text, each once, with their scores.

    Returns: [n] tokens in order, each from the window that sees most on both its sides; [n, labels] float32, rows sum to 1.
    Raises: ArithmeticError when the logits are no numbers.
    """
    tokens: list[Token] = []
    rows: list[np.ndarray] = []
    for window, logits in zip(one.items, one.outputs, strict=True):
        own: range = window.own
        rows.append(logits[own.start : own.stop])
        for place in own:
            start, end = window.offsets[place]
            tokens.append(Token(window.ids[place], window.first + place, start, end))
    together = np.concatenate(rows)
    if not np.isfinite(together).all():
        raise ArithmeticError("the model's answer is not finite")
    return tokens, softmax(together) if len(together) else together
