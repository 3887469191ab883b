"""Texts with the texts that should be made of them: translations, summaries, answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from archiver.data.examples import raise_mistakes, source_rows
from archiver.data.files import BadRow, Columns
from archiver.errors import DataError

KEYS = ("source", "target")


@dataclass(frozen=True)
class Pair:
    """A text, and what should be made of it; None where the data does not say."""

    source: str
    target: str | None = None


def read_pairs(
    where: Path | str, columns: Mapping[str, str | int] | None = None, *, targets: bool = False
) -> list[Pair]:
    """The pairs of one source.

    Args:
        where: a .tsv, .csv, .jsonl, .ndjson or .txt file, "hub://name[/config]:split", or "embedded:cpython:…".
        columns: {"source" | "target": column name or position}; without: columns of these names.
        targets: whether each row needs a target.
    Raises: DataError that lists every bad row.
    """
    name = where.name if isinstance(where, Path) else where
    pairs: list[Pair] = []
    problems: list[tuple[int, str]] = []
    for row in source_rows(where, Columns(dict(columns or {}), KEYS, KEYS if targets else KEYS[:1])):
        if isinstance(row, BadRow):
            problems.append((row.line, row.problem))
            continue
        wrong = [
            f"{key} " + ("is empty" if isinstance(value, str) else f"must be a string; found {type(value).__name__}")
            for key, value in row.values.items()
            if not isinstance(value, str) or not value.strip()
        ]
        if targets and "target" not in row.values:
            wrong.append("has no target: what learns from it needs one")
        problems += [(row.line, mistake) for mistake in wrong]
        if not wrong:
            pairs.append(Pair(row.values["source"], row.values.get("target")))
    if problems:
        raise_mistakes(name, problems)
    if not pairs:
        raise DataError(f"{name} holds no examples: it needs at least one row with a source")
    return pairs
