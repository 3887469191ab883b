"""JSON documents that were right, changed in some places."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    1.5,
    1e308,
    "",
    "x",
    "BYTES",
    "FP32",
    [],
    [[]],
    {},
    {"a": 1},
    [1, 2],
    "😀" * 50,
    2**70,
]


def mutated(right: dict[str, Any], dice: random.Random) -> bytes:
    """The document with one to three places changed, or its bytes cut; one in twenty stays right."""
    document: Any = copy.deepcopy(right)
    for _ in range(dice.choice((0, *[1] * 9, *[2] * 6, *[3] * 4))):
        document = _changed(document, dice)
    text = json.dumps(document, ensure_ascii=dice.random() < 0.5).encode()
    return text[: dice.randrange(len(text)) or 1] if dice.random() < 0.1 else text


def _changed(value: Any, dice: random.Random) -> Any:
    if isinstance(value, dict) and value and dice.random() < 0.85:
        key = dice.choice(list(value))
        if dice.random() < 0.15:
            del value[key]
        elif dice.random() < 0.1:
            value["other"] = dice.choice(VALUES)
        else:
            value[key] = _changed(value[key], dice)
        return value
    if isinstance(value, list) and value and dice.random() < 0.7:
        place = dice.randrange(len(value))
        if dice.random() < 0.2:
            value.append(dice.choice(VALUES))
        else:
            value[place] = _changed(value[place], dice)
        return value
    return copy.deepcopy(dice.choice(VALUES))
