"""Stored examples: inputs with the answers the archive gave when it was built, and how near an answer must come.

tolerance: the largest |difference| of any number of an answer, as a share of the largest number of the stored answer.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from handlers.manifest import EXAMPLES

_NOTHING: Mapping[str, Any] = {}


class Answering(Protocol):
    """What answers examples: a handler."""

    @property
    def input(self) -> Any:
        """Its kind of input, see handlers.inputs.base."""
        ...

    @property
    def full_parameters(self) -> Mapping[str, Any]:
        """The request parameters under which an answer leaves nothing out."""
        ...

    def respond(self, inputs: Sequence[Any], parameters: Mapping[str, Any] | None = None) -> list[Any]:
        """The answers of inputs, in order."""
        ...

    def compare(self, stored: Any, found: Any) -> float:
        """How far two answers of one input lie apart; inf where their form differs."""
        ...


def read_examples(folder: Path) -> list[dict[str, Any]]:
    """`[{"input": as the kind of input stores it, "answer": …}, …]` of an extracted archive.

    One that was asked with parameters of its own has them as `parameters`.
    """
    found: list[dict[str, Any]] = json.loads((folder / EXAMPLES).read_bytes())
    return found


def check_examples(handler: Answering, examples: Sequence[dict[str, Any]], tolerance: float) -> list[str]:
    """Answer every example one by one and all together.

    Args:
        handler: what answers. examples: as `read_examples` gives them. tolerance: see above.
    Returns: a sentence for each answer beyond the tolerance.
    """
    inputs = [handler.input.from_stored(example["input"]) for example in examples]
    own = [example.get("parameters", {}) for example in examples]
    alone = [respond_fully(handler, [item], more)[0] for item, more in zip(inputs, own, strict=True)]
    together: dict[int, Any] = {}
    for index, more in enumerate(own):
        if index not in together:
            places = [place for place, other in enumerate(own) if other == more]
            answers = respond_fully(handler, [inputs[place] for place in places], more)
            together |= zip(places, answers, strict=True)
    problems = []
    for index, example in enumerate(examples):
        for how, answer in (("alone", alone[index]), ("in a batch", together[index])):
            difference = handler.compare(example["answer"], answer)
            if difference > tolerance:
                problems.append(f"example {index} {how} differs by {difference:.3g}, allowed {tolerance:.3g}")
    return problems


def respond_fully(handler: Answering, inputs: Sequence[Any], more: Mapping[str, Any] = _NOTHING) -> list[Any]:
    """The answers with all that they can say: a second best that moves must not slip by unseen.

    Args:
        more: parameters of these inputs' own.
    """
    return handler.respond(inputs, {**handler.full_parameters, **more})


def largest_share(stored: Mapping[Any, float], found: Mapping[Any, float]) -> float:
    """The largest |difference| of two answers' numbers, as a share of the largest |stored number|.

    Args:
        stored, found: numbers by label or by position.
    Returns: the share, inf when they are numbers of different things.
    """
    if stored.keys() != found.keys():
        return float("inf")
    peak = max((abs(value) for value in stored.values()), default=0.0)
    return max((abs(stored[key] - found[key]) for key in stored), default=0.0) / (peak or 1.0)
