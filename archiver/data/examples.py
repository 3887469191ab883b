"""Examples for calibration, validation and retraining: from files, a hub data set, or the text CPython ships."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NoReturn

from archiver.data.embedded import SOURCE, embedded_sentences
from archiver.data.files import BadRow, Columns, Row, read_rows
from archiver.data.hub import HUB_PREFIX, read_hub_rows
from archiver.errors import DataError

SHOWN_PROBLEMS = 20
KEYS = ("text", "text_pair", "label")

Label = int | float | str | tuple[int, ...] | None


@dataclass(frozen=True)
class Example:
    """One text or pair of texts.

    label: a class id; a tuple of ids, possibly empty, for multi-label data; a score where the label is a number
    (feature-extraction pairs, a model with a single output); a name that the model does not know, where it is told which
    labels there are; None for data without labels
    """

    text: str
    text_pair: str | None = None
    label: Label = None


def read_examples(
    source: Path | str,
    columns: Mapping[str, str | int] | None = None,
    *,
    labels: Literal["class", "score", "name", "none"] = "class",
    id2label: Mapping[int, str] | None = None,
    multi_label: bool | None = None,
    limit: int | None = None,
) -> list[Example]:
    """The examples of one source.

    source: a .tsv, .csv, .jsonl/.ndjson or .txt file; "hub://name[/config]:split"; "embedded:cpython:train|validation"
    columns: {"text" | "text_pair" | "label": column name (the file has a header) or position (it has none)};
        without it: columns named text, text_pair and label, of which only text must exist
    labels: "score" where a label is a number whatever the model says, "name" where a label of a single text
        is any name (that of a pair is one of the model's), "none" where labels are not wanted, else "class"
    id2label: the model's labels; a label is one of these names, or an id. With one label only it is a score
    multi_label: labels are names or ids joined by `|`; None: decided by whether some label holds a `|`
    limit: read no more than this many examples
    raises DataError that lists every bad row (the first 20, then how many more), each with its line
    """
    name = source.name if isinstance(source, Path) else source
    problems: list[tuple[int, str]] = []
    good: list[Row] = []
    for row in islice(source_rows(source, Columns(dict(columns or {}), KEYS)), limit):
        if isinstance(row, BadRow):
            problems.append((row.line, row.problem))
            continue
        mistakes = [f"{key} {mistake}" for key, value in _texts(row) if (mistake := text_mistake(value))]
        problems += [(row.line, mistake) for mistake in mistakes]
        if not mistakes:
            good.append(row)
    parse = label_parser(labels, id2label, multi_label, [row.values.get("label") for row in good])
    examples = []
    for row in good:
        raw = row.values.get("label")
        try:
            single = "text_pair" not in row.values
            label = (
                None if raw is None or labels == "none" else _name(raw) if labels == "name" and single else parse(raw)
            )
        except ValueError as error:
            problems.append((row.line, str(error)))
        else:
            examples.append(Example(row.values["text"], row.values.get("text_pair"), label))
    if problems:
        raise_mistakes(name, problems)
    if not examples:
        raise DataError(f"{name} holds no examples: it needs at least one row with a text")
    return examples


def source_rows(source: Path | str, columns: Columns) -> Iterator[Row | BadRow]:
    """The rows of a file, a hub data set, or the embedded text (whose only column is the first key)."""
    if isinstance(source, str) and source.startswith("embedded:"):
        base, _, split = source.rpartition(":")
        if base != SOURCE:
            raise DataError(f"{source} is not embedded; allowed: {SOURCE}:train, {SOURCE}:validation")
        return (Row(i, {columns.keys[0]: text}) for i, text in enumerate(embedded_sentences(split), start=1))
    if isinstance(source, str) and source.startswith(HUB_PREFIX):
        return read_hub_rows(source, columns)
    return read_rows(Path(source), columns)


def _texts(row: Row) -> list[tuple[str, Any]]:
    return [(key, row.values[key]) for key in ("text", "text_pair") if key in row.values]


def text_mistake(value: Any) -> str | None:
    """What is wrong with a value that should be a text; None for nothing."""
    if not isinstance(value, str):
        return f"must be a string; found {type(value).__name__} {value!r}"[:120]
    return None if value.strip() else "is empty"


def raise_mistakes(name: str, problems: list[tuple[int, str]]) -> NoReturn:
    """DataError that lists the mistakes of one source, the first 20 of them, by line."""
    lines = [f"{name}:{line}: {problem}" for line, problem in sorted(problems, key=lambda item: item[0])]
    shown = lines[:SHOWN_PROBLEMS] + (
        [f"and {len(lines) - SHOWN_PROBLEMS} more"] if len(lines) > SHOWN_PROBLEMS else []
    )
    raise DataError(
        f"{name} has {len(lines)} mistake{'s' if len(lines) > 1 else ''}: correct or remove the rows", shown
    )


def label_parser(
    labels: str, id2label: Mapping[int, str] | None, multi_label: bool | None, raw_labels: list[Any]
) -> Callable[[Any], Label]:
    """The function that turns one label as read (str, int, float, list) into an Example's label.

    Args: as `read_examples` has them; raw_labels: all labels, by which it is decided whether they are several.
    Returns: a function that raises ValueError saying what is wrong and what is allowed.
    """
    if labels == "score" or (id2label is not None and len(id2label) == 1 and not multi_label):
        return _score
    ids = {name: index for index, name in (id2label or {}).items()}
    if multi_label is None:
        multi_label = any(
            isinstance(raw, list) or (isinstance(raw, str) and "|" in raw and raw not in ids) for raw in raw_labels
        )
    if not multi_label:
        return lambda raw: _class_id(raw, ids, id2label)

    def parse_several(raw: Any) -> tuple[int, ...]:
        parts = raw if isinstance(raw, list) else str(raw).split("|") if str(raw).strip() else []
        return tuple(sorted({_class_id(part, ids, id2label) for part in parts}))

    return parse_several


def _name(raw: Any) -> str:
    if not isinstance(raw, str) or not raw.strip():
        raise ValueError(f"label {raw!r} must be a name, as a request would send it")
    return raw.strip()


def _score(raw: Any) -> float:
    try:
        value = math.nan if isinstance(raw, bool) else float(raw)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"label {raw!r} must be a finite number")
    return value


def _class_id(raw: Any, ids: Mapping[str, int], id2label: Mapping[int, str] | None) -> int:
    """A label's name comes before its id: a model whose labels are named "1" to "5" means those names."""
    text = raw.strip() if isinstance(raw, str) else raw
    if isinstance(text, str) and text in ids:
        return ids[text]
    index = _whole_number(text)
    if index is not None and (index in id2label if id2label is not None else index >= 0):
        return index
    if id2label is None:
        raise ValueError(f"label {raw!r} is no class id; names need the model's id2label")
    names = list(ids)
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    raise ValueError(f"label {raw!r} is not in {shown}, nor an id from 0 to {len(names) - 1}")


def _whole_number(value: Any) -> int | None:
    """Labels that went through a table with gaps come back as 1.0: that is 1."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and not (value.isascii() and value.replace(".", "", 1).isdigit() and len(value) < 12):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return int(number) if number.is_integer() else None
