"""Stored examples: inputs with the answers the archive gave when it was built, and how near an answer must come.

tolerance: the largest |difference| of any number of an answer, as a share of the largest number of the stored answer.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from handlers.inputs.text import TextInput
from handlers.manifest import EXAMPLES


def read_examples(folder: Path) -> list[dict[str, Any]]:
    """`[{"input": "text" or {"text", "text_pair"}, "answer": …}, …]`"""
    return json.loads((folder / EXAMPLES).read_bytes())


def as_input(stored: Any) -> TextInput:
    return TextInput(stored) if isinstance(stored, str) else TextInput(stored["text"], stored.get("text_pair"))


def check_examples(handler: Any, examples: Sequence[dict[str, Any]], tolerance: float) -> list[str]:
    """Answer every example one by one and all together; a sentence for each answer beyond the tolerance."""
    inputs = [as_input(example["input"]) for example in examples]
    alone = [respond_fully(handler, [item])[0] for item in inputs]
    together = respond_fully(handler, inputs) if inputs else []
    problems = []
    for index, example in enumerate(examples):
        for how, answer in (("alone", alone[index]), ("in a batch", together[index])):
            difference = answer_difference(example["answer"], answer)
            if difference > tolerance:
                problems.append(f"example {index} {how} differs by {difference:.3g}, allowed {tolerance:.3g}")
    return problems


def respond_fully(handler: Any, inputs: Sequence[TextInput]) -> list[Any]:
    """The answers with every label, not the best alone: a second best that moves must not slip by unseen.

    Continuations are as long as the archive says: up to where the next token could be another one on another host.
    """
    if "max_new_tokens" in handler.parameters:
        return handler.respond(inputs, {"max_new_tokens": handler.serving["example_tokens"], "return_full_text": False})
    return handler.respond(inputs, {"top_k": 1 << 30} if "top_k" in handler.parameters else {})


def answer_difference(stored: Any, found: Any) -> float:
    """How far two answers of one input lie apart, as a share of the largest stored number.

    inf if their form differs; texts are equal (0) or not (inf).
    """
    if _is_text(stored) or _is_text(found):
        return 0.0 if stored == found else float("inf")
    a, b = _numbers(stored), _numbers(found)
    if a.keys() != b.keys():
        return float("inf")
    peak = max((abs(value) for value in a.values()), default=0.0)
    return max((abs(a[key] - b[key]) for key in a), default=0.0) / (peak or 1.0)


def _is_text(answer: Any) -> bool:
    return bool(answer) and isinstance(answer[0], dict) and "generated_text" in answer[0]


def _numbers(answer: Any) -> dict[Any, float]:
    """An answer's numbers by label (classification) or by position (a vector)."""
    if answer and isinstance(answer[0], dict):
        return {item["label"]: item["score"] for item in answer}
    return dict(enumerate(answer))
