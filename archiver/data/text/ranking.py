"""Queries with the texts to rank for each: rows of query, text and label, or one row a query with lists."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from archiver.data.embedded import SOURCE
from archiver.data.examples import raise_mistakes, source_rows, text_mistake
from archiver.data.files import BadRow, Columns, Row
from archiver.errors import DataError

COLUMNS = ("query", "text", "label")
_LISTS = ("texts", "labels")  # what the columns with lists may be called, too
_EMBEDDED = 8  # sentences of which the first asks for the others


@dataclass(frozen=True)
class RankingExample:
    """A query with its texts, at least one, in the file's order; labels: each text's relevance from 0, or None."""

    query: str
    texts: tuple[str, ...]
    labels: tuple[float, ...] | None = None


def read_ranking(source: Path | str, columns: Mapping[str, str | int] | None = None) -> list[RankingExample]:
    """The queries of one source, in order of first appearance.

    Args:
        source: a .tsv, .csv or .jsonl file, "hub://name[/config]:split" or "embedded:cpython:train|validation" (sentences
            without labels, of which each eighth asks for the seven behind it).
        columns: {"query" | "text" | "label": name or position}; rows of one query are one example wherever they stand. In
            JSON lines a row's text and label may be lists, one label a text. Default: columns of these names, or of the
            names "texts" and "labels".
    Raises: DataError that lists every bad row with its line: an empty or missing text, a label that is no number from 0, a
        text that a query has twice, labels for some texts of a query only.
    """
    if isinstance(source, str) and source.startswith(f"{SOURCE}:"):
        return _embedded(source)
    name = source.name if isinstance(source, Path) else source
    rows = iter(source_rows(source, Columns(dict(columns or {}), (*COLUMNS, *_LISTS))))
    problems: list[tuple[int, str]] = []
    groups: dict[str, _Group] = {}
    for row in rows:
        if isinstance(row, BadRow):
            problems.append((row.line, row.problem))
            continue
        mistakes = _add(row, groups)
        problems += [(row.line, mistake) for mistake in mistakes]
    for group in groups.values():
        known = sum(label is not None for label in group.labels)
        if 0 < known < len(group.labels):
            line = group.lines[next(i for i, label in enumerate(group.labels) if label is None)]
            problems.append((line, "has no label, other texts of its query have one"))
    if problems:
        raise_mistakes(name, problems)
    if not groups:
        raise DataError(f"{name} holds no examples: it needs at least one row with a query and a text")
    return [group.example(query) for query, group in groups.items()]


@dataclass
class _Group:
    texts: dict[str, None] = field(default_factory=dict)
    labels: list[float | None] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)

    def example(self, query: str) -> RankingExample:
        labels = tuple(label for label in self.labels if label is not None)
        return RankingExample(query, tuple(self.texts), labels or None)


def _add(row: Row, groups: dict[str, _Group]) -> list[str]:
    """Put a row's texts to those of its query; what is wrong with it, else."""
    query = row.values["query"]
    if mistake := text_mistake(query):
        return [f"query {mistake}"]
    given = [key for key in ("text", "texts") if key in row.values]
    if len(given) != 1:
        return ["has both text and texts: name one" if given else "has no text: it needs the columns query and text"]
    texts, several = row.values[given[0]], isinstance(row.values[given[0]], list) or given == ["texts"]
    label = row.values.get("label", row.values.get("labels"))
    labels = label if several else [label]
    texts = texts if several else [texts]
    if not isinstance(texts, list) or not texts:
        return ["texts must be a list of one text or more"]
    if labels is None:
        labels = [None] * len(texts)
    if not isinstance(labels, list) or len(labels) != len(texts):
        found = f"{len(labels)}" if isinstance(labels, list) else repr(labels)[:40]
        return [f"labels must be a list of {len(texts)} numbers, one a text; found {found}"]
    group = groups.get(query, _Group())
    mistakes = []
    known = set(group.texts)
    for place, (text, label) in enumerate(zip(texts, labels, strict=True)):
        where = f"texts[{place}]" if several else "text"
        if mistake := text_mistake(text):
            mistakes.append(f"{where} {mistake}")
        elif text in known:
            mistakes.append(f"{where} stands under its query already")
        elif label is not None and relevance(label) is None:
            mistakes.append(f"label {label!r} must be a finite number from 0: how relevant the text is")
        else:
            known.add(text)
    if not mistakes:
        groups.setdefault(query, group)
        group.texts.update(dict.fromkeys(texts))
        group.labels += [None if label is None else relevance(label) for label in labels]
        group.lines += [row.line] * len(texts)
    return mistakes


def relevance(raw: Any) -> float | None:
    """A label as read: a finite number from 0; None for anything else."""
    try:
        value = math.nan if isinstance(raw, bool) else float(raw)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) and value >= 0 else None


def _embedded(source: str) -> list[RankingExample]:
    rows: Iterable[Row | BadRow] = source_rows(source, Columns({}, ("text",)))
    texts = [row.values["text"] for row in rows if isinstance(row, Row)]
    groups: list[Sequence[str]] = [texts[i : i + _EMBEDDED] for i in range(0, len(texts), _EMBEDDED)]
    return [RankingExample(group[0], tuple(group[1:])) for group in groups if len(group) > 1]
