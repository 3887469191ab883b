"""Rows of TSV, CSV, JSONL and plain text files; a row that cannot be read is yielded as what is wrong with it."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archiver.errors import DataError


@dataclass(frozen=True)
class Row:
    """values: those of the wanted keys that the source has, as read; line counts from 1."""

    line: int
    values: dict[str, Any]


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be read, and why."""

    line: int
    problem: str


@dataclass(frozen=True)
class Columns:
    """Which columns are wanted.

    Args:
        names: key → name or position of a column; {}: each column that is named like a key.
        keys: what a row may have. required: which of them it must have where `names` is {}; without: the first.
    """

    names: Mapping[str, str | int]
    keys: tuple[str, ...]
    required: tuple[str, ...] = ()

    def wanted(self, present: Callable[[str], bool]) -> dict[str, str]:
        """Key → column's name. present: whether there is a column of that name."""
        required = self.required or self.keys[:1]
        own = {key: key for key in self.keys if key in required or present(key)}
        return {key: str(name) for key, name in self.names.items()} or own


def read_rows(path: Path, columns: Columns) -> Iterator[Row | BadRow]:
    """The rows of a file by its suffix: blank lines skipped, a byte-order mark and CRLF taken off.

    .tsv: no quoting. .csv: RFC 4180. .jsonl, .ndjson: one object a line. .txt: the first key, one a line.
    raises DataError when the file cannot be opened, is UTF-16, or lacks a column
    """
    readers: dict[str, Callable[[Path, Columns], Iterator[Row | BadRow]]] = {
        ".tsv": lambda file, wanted: _table(file, wanted, _tsv_records(file)),
        ".csv": lambda file, wanted: _table(file, wanted, _csv_records(file)),
        ".jsonl": _json_lines,
        ".ndjson": _json_lines,
        ".txt": _plain_lines,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path.name} has the suffix {path.suffix!r}; allowed: {', '.join(readers)}")
    return reader(path, columns)


def read_lines(path: Path) -> Iterator[tuple[int, str | None]]:
    """(line number, text without its line end) of a file, or (line number, None) for a line that is not UTF-8."""
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                if number == 1:
                    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                        raise DataError(f"{path.name} is UTF-16: save it as UTF-8")
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                try:
                    yield number, raw.decode("utf-8").rstrip("\n").removesuffix("\r")
                except UnicodeDecodeError:
                    yield number, None
    except OSError as error:
        raise DataError(f"{path.name} cannot be read: {error.strerror}; name a file that exists") from error


_NOT_UTF8 = "is not UTF-8: save the file as UTF-8"


def _plain_lines(path: Path, columns: Columns) -> Iterator[Row | BadRow]:
    for number, line in read_lines(path):
        if line is None:
            yield BadRow(number, _NOT_UTF8)
        elif line.strip():
            yield Row(number, {columns.keys[0]: line.strip()})


def _json_lines(path: Path, columns: Columns) -> Iterator[Row | BadRow]:
    if any(isinstance(column, int) for column in columns.names.values()):
        raise DataError(f"{path.name}: JSON lines have names, not positions: give data.columns by name")
    for number, line in read_lines(path):
        if line is None:
            yield BadRow(number, _NOT_UTF8)
            continue
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield BadRow(number, f"is not JSON: {error}")
            continue
        if not isinstance(record, dict):
            yield BadRow(number, f"must be a JSON object; found {type(record).__name__}")
            continue
        yield pick_named(number, record, columns)


def pick_named(line: int, record: Mapping[str, Any], columns: Columns) -> Row | BadRow:
    """The wanted columns of one record with named values."""
    names = columns.wanted(lambda key: record.get(key) is not None)
    missing = [name for name in names.values() if record.get(name) is None]
    if missing:
        found = ", ".join(map(str, list(record)[:10])) or "nothing"
        return BadRow(line, f"has no value for {', '.join(map(repr, missing))}; its columns are {found}")
    return Row(line, {key: record[name] for key, name in names.items()})


Record = tuple[int, list[str]] | BadRow


def _tsv_records(path: Path) -> Iterator[Record]:
    for number, line in read_lines(path):
        if line is None:
            yield BadRow(number, _NOT_UTF8)
        elif line.strip():
            yield number, line.split("\t")


def _csv_records(path: Path) -> Iterator[Record]:
    """Records by RFC 4180: a quoted field may hold commas, doubled quotes and line breaks."""
    undecodable: set[int] = set()

    def decoded() -> Iterator[str]:
        for number, line in read_lines(path):
            if line is None:
                undecodable.add(number)
            yield (line if line is not None else "?") + "\n"

    reader = csv.reader(decoded(), strict=True)
    while True:
        first = reader.line_num + 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            reason = str(error)
            if "unexpected end of data" in reason:
                reason = "a quote that opens here is never closed"
            yield BadRow(first, f"is not CSV: {reason}")
            continue
        bad = undecodable.intersection(range(first, reader.line_num + 1))
        if bad:
            yield BadRow(min(bad), _NOT_UTF8)
        elif any(field.strip() for field in record):
            yield first, record


def _table(path: Path, columns: Columns, records: Iterator[Record]) -> Iterator[Row | BadRow]:
    """Rows of a table: the first record is a header unless the columns are positions; all are equally wide."""
    positions: dict[str, int] | None = None
    width = 0
    if columns.names and all(isinstance(column, int) for column in columns.names.values()):
        positions = {key: int(column) for key, column in columns.names.items()}
    for record in records:
        if isinstance(record, BadRow):
            yield record
            continue
        line, values = record
        if positions is None:
            positions, width = _header(path, values, columns), len(values)
            continue
        width = width or len(values)
        if len(values) != width:
            yield BadRow(line, f"has {len(values)} columns, the first row has {width}")
        elif max(positions.values()) >= width:
            wanted = {key: position for key, position in positions.items() if position >= width}
            yield BadRow(line, f"has {width} columns; data.columns {wanted} must be from 0 to {width - 1}")
        else:
            yield Row(line, {key: values[position] for key, position in positions.items()})


def _header(path: Path, header: list[str], columns: Columns) -> dict[str, int]:
    """{key: position} of the named columns."""
    header = [name.strip() for name in header]
    names = columns.wanted(header.__contains__)
    problems = [
        f"{'no' if name not in header else 'more than one'} column is named {name!r}"
        for name in names.values()
        if header.count(name) != 1
    ]
    if problems:
        shown = ", ".join(repr(name[:40]) for name in header[:10])
        raise DataError(
            f"{path.name}: the header (its first line) has the columns {shown}; name columns of the header in "
            "data.columns, or give positions where the file has none, such as {text: 0, label: 1}",
            problems,
        )
    return {key: header.index(name) for key, name in names.items()}
