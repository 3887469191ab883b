"""Interactions: who had which item when, as histories in the order of time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any

from archiver.data.examples import raise_mistakes
from archiver.data.files import BadRow, Columns, read_rows
from archiver.errors import DataError

KEYS = ("user", "item", "time")
_NAMES: Mapping[str, str | int] = {"item": "item", "name": "title"}
LEAST = 2  # interactions of a user: one alone says nothing about what comes next

Mistakes = list[tuple[int, str]]


@dataclass(frozen=True)
class Interactions:
    """users: [n], in the order of their first row. histories: [n] items of each by their ids, oldest first."""

    users: list[str]
    histories: list[list[str]]

    @property
    def items(self) -> list[str]:
        """Every item's id once: numbers by value, before all else by spelling."""
        found = {item for history in self.histories for item in history}
        return sorted(found, key=lambda item: (not is_number(item), len(item) if is_number(item) else 0, item))


def read_interactions(
    path: Path,
    columns: Mapping[str, str | int] | None = None,
    *,
    min_count: int = 1,
    known: Iterable[str] | None = None,
) -> Interactions:
    """The histories of a file of interactions, one a row.

    Interactions of one user at one time keep the file's order.

    Args:
        path: a .tsv, .csv, .jsonl or .ndjson file.
        columns: {"user", "item", "time": column name (the file has a header) or position (it has none)}; default: columns
            of these names. Without a time the file's order is the order of time.
        min_count: users and items with fewer interactions are left out, until all that stay have as many; users with a
            single one always are.
        known: the items that a model knows. Others are mistakes, or left out where min_count is above 1.
    Raises: DataError that lists every bad row (the first 20, then how many more), each with its line.
    """
    wanted = Columns(dict(columns or {}), KEYS, required=KEYS[:2])
    mistakes: Mistakes = []
    rows: dict[str, list[tuple[float, int, str]]] = {}
    items = None if known is None else set(known)
    for row in read_rows(path, wanted):
        if isinstance(row, BadRow):
            mistakes.append((row.line, row.problem))
            continue
        problems, user, item, time = _checked(row.values)
        if items is not None and item not in items and not problems:
            if min_count > 1:
                continue
            problems.append(f"item {item[:60]!r} is none of the {len(items)} that the model knows")
        mistakes += [(row.line, problem) for problem in problems]
        if not problems:
            rows.setdefault(user, []).append((time, row.line, item))
    if mistakes:
        raise_mistakes(path.name, mistakes)
    found = _frequent({user: [item for _, _, item in sorted(mine)] for user, mine in rows.items()}, min_count)
    if not found:
        raise DataError(
            f"{path.name} holds no user with {max(min_count, LEAST)} interactions or more: nothing comes next anywhere"
        )
    return Interactions(list(found), list(found.values()))


def read_names(path: Path, columns: Mapping[str, str | int] | None = None) -> dict[str, str]:
    """The names of items: {id: name}.

    Args:
        path: a file as `read_interactions` takes. columns: {"item", "name": column}; default: item and title.
    Raises: DataError that lists every bad row, each with its line.
    """
    mistakes: Mistakes = []
    found: dict[str, str] = {}
    for row in read_rows(path, Columns(dict(columns or _NAMES), ("item", "name"))):
        if isinstance(row, BadRow):
            mistakes.append((row.line, row.problem))
            continue
        item, name = (_text(row.values[key]) for key in ("item", "name"))
        if not item or not name:
            mistakes.append((row.line, f"{'item' if not item else 'name'} is empty"))
        elif item in found:
            mistakes.append((row.line, f"item {item[:60]!r} has a name already"))
        else:
            found[item] = name
    if mistakes:
        raise_mistakes(path.name, mistakes)
    return found


def is_number(item: str) -> bool:
    """Whether an id is a whole number as JSON writes it: then it is answered as one."""
    return item.isascii() and item.isdigit() and (item == "0" or not item.startswith("0")) and len(item) <= 15


def _checked(values: Mapping[str, Any]) -> tuple[list[str], str, str, float]:
    """(what is wrong, user, item, time) of a row."""
    user, item = _text(values["user"]), _text(values["item"])
    problems = [f"{key} is empty" for key, value in (("user", user), ("item", item)) if not value]
    time = 0.0
    if "time" in values:
        try:
            time = _time(values["time"])
        except ValueError:
            shown = str(values["time"])[:60]
            problems.append(f"time {shown!r} is neither a number nor a date such as 2024-05-01T12:30:00")
    return problems, user, item, time


def _text(value: Any) -> str:
    """An id or a name as text; JSON lines have numbers, too."""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return ""
    return str(value).strip()


def _time(value: Any) -> float:
    """Seconds, or whatever the numbers count. Raises: ValueError."""
    if isinstance(value, bool):
        raise ValueError("no time")
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        moment = datetime.fromisoformat(str(value).strip())
        found = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if not isfinite(found):
        raise ValueError("no time")
    return found


def _frequent(histories: dict[str, list[str]], min_count: int) -> dict[str, list[str]]:
    """Histories without users and items that have fewer than min_count interactions."""
    while True:
        counts = Counter(item for history in histories.values() for item in history)
        cut = {
            user: [item for item in history if counts[item] >= min_count] for user, history in histories.items()
        }  # fmt: skip
        kept = {user: history for user, history in cut.items() if len(history) >= max(min_count, LEAST)}
        if kept == histories:
            return kept
        histories = kept
