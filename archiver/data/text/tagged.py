"""Tagged sentences: a tag for each word, from CoNLL files, JSON lines and hub data sets; and texts without tags."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archiver.data.examples import raise_mistakes, source_rows
from archiver.data.files import BadRow, Columns, Row, read_lines
from archiver.errors import DataError

KEYS = ("tokens", "tags")
CONLL = (".conll", ".iob", ".bio", ".tsv")
JSON_LINES = (".jsonl", ".ndjson")
PLAIN = ".txt"
_DOCUMENT = "-DOCSTART-"  # what CoNLL-2003 parts documents with: a sentence of this word alone


@dataclass(frozen=True)
class Tagged:
    """One sentence as a text.

    words: [n] (start, end) characters of each word in `text`; one space apart. tags: [n] label ids; None without tags.
    """

    text: str
    words: tuple[tuple[int, int], ...]
    tags: tuple[int, ...] | None


def read_tagged(
    source: Path | str, columns: Mapping[str, str | int] | None = None, *, id2label: Mapping[int, str]
) -> list[Tagged]:
    """The sentences of one source.

    Args:
        source: a CoNLL file (.conll, .iob, .bio or .tsv: a word and its tag a line, apart by a tab or spaces, a blank line
            behind each sentence); .jsonl with a list of tokens and one of tags a line; "hub://name[/config]:split"; texts
            without tags: .txt, one a line, and "embedded:cpython:train|validation".
        columns: {"tokens" | "tags": column}: positions in a CoNLL line (default: the first and the last), names elsewhere
            (default: tokens and tags).
        id2label: the model's labels; a tag is one of these names, or in JSON also an id.
    Raises: DataError that lists every bad line.
    """
    name = source.name if isinstance(source, Path) else source
    ids = {label: index for index, label in id2label.items()}
    problems: list[tuple[int, str]] = []
    found: list[Tagged] = []
    for row in _rows(source, dict(columns or {})):
        if isinstance(row, BadRow):
            problems.append((row.line, row.problem))
            continue
        tokens, tags = row.values["tokens"], row.values.get("tags")
        wrong = _mistakes(row, tokens, tags, ids)
        problems += wrong
        if not wrong:
            found.append(_sentence(tokens, None if tags is None else [ids.get(tag, tag) for tag in tags]))
    if problems:
        raise_mistakes(name, problems)
    if not found:
        raise DataError(f"{name} holds no sentences: it needs at least one word with its tag")
    return found


def _sentence(words: Sequence[str], tags: Sequence[int] | None) -> Tagged:
    places, start = [], 0
    for word in words:
        places.append((start, start + len(word)))
        start += len(word) + 1
    return Tagged(" ".join(words), tuple(places), None if tags is None else tuple(tags))


def _rows(source: Path | str, columns: dict[str, str | int]) -> Iterator[Row | BadRow]:
    """Rows with `tokens` and, where there are any, `tags`. `lines` in values: the file's lines of the tokens."""
    if isinstance(source, Path) and source.suffix.lower() in CONLL:
        return _conll(source, columns)
    if isinstance(source, Path) and source.suffix.lower() not in (*JSON_LINES, PLAIN):
        allowed = ", ".join((*CONLL, *JSON_LINES, PLAIN))
        raise DataError(f"{source.name} has the suffix {source.suffix!r}; allowed: {allowed}")
    rows = source_rows(source, Columns(columns, KEYS))
    plain = source.startswith("embedded:") if isinstance(source, str) else source.suffix.lower() == PLAIN
    return (row if isinstance(row, BadRow) or not plain else _untagged(row) for row in rows)


def _untagged(row: Row) -> Row:
    return Row(row.line, {"tokens": row.values["tokens"].split()})


def _conll(path: Path, columns: Mapping[str, str | int]) -> Iterator[Row | BadRow]:
    """The sentences of a CoNLL file; each line has as many columns as the first."""
    if any(isinstance(column, str) for column in columns.values()):
        raise DataError(
            f"{path.name}: CoNLL files have positions, not names: give data.columns as {{tokens: 0, tags: 1}}"
        )
    word_at, tag_at = int(columns.get("tokens", 0)), int(columns.get("tags", -1))
    words: list[str] = []
    tags: list[str] = []
    lines: list[int] = []
    width = 0
    for number, line in read_lines(path):
        if line is None:
            yield BadRow(number, "is not UTF-8: save the file as UTF-8")
            continue
        if not line.strip():
            if words:
                yield Row(lines[0], {"tokens": words, "tags": tags, "lines": lines})
            words, tags, lines = [], [], []
            continue
        # A tab parts columns where there is one: words of social media hold odd spaces.
        parts = line.split("\t") if "\t" in line else line.split()
        if parts[0] == _DOCUMENT:
            continue
        if not width:
            width = len(parts)
            if width < 2 or max(word_at, tag_at) >= width:
                most = max(2, word_at + 1, tag_at + 1)
                yield BadRow(number, f"has {width} columns; at least {most} are needed: a word and its tag")
                return
        if len(parts) != width:
            yield BadRow(number, f"has {len(parts)} columns, the first line has {width}")
            continue
        words.append(parts[word_at].strip())
        tags.append(parts[tag_at].strip())
        lines.append(number)
    if words:
        yield Row(lines[0], {"tokens": words, "tags": tags, "lines": lines})


def _mistakes(row: Row, tokens: Any, tags: Any, ids: Mapping[str, int]) -> list[tuple[int, str]]:
    """(line, what is wrong) of one row."""
    if not isinstance(tokens, list) or not tokens:
        return [(row.line, f"tokens must be a list of words, at least one; found {_shown(tokens)}")]
    lines = row.values.get("lines") or [row.line] * len(tokens)
    wrong = [
        (line, f"a word must be a text that is not empty; found {_shown(word)}")
        for line, word in zip(lines, tokens, strict=True)
        if not isinstance(word, str) or not word.strip()
    ]
    if tags is None:
        return wrong
    if not isinstance(tags, list) or len(tags) != len(tokens):
        found = f"{len(tags)} tags" if isinstance(tags, list) else _shown(tags)
        return [*wrong, (row.line, f"needs a list of tags, one for each of its {len(tokens)} tokens; found {found}")]
    known = list(ids)
    allowed = ", ".join(known[:10]) + (f" and {len(known) - 10} more" if len(known) > 10 else "")
    return wrong + [
        (line, f"the tag {_shown(tag)} is none of the model's labels: {allowed}")
        for line, tag in zip(lines, tags, strict=True)
        if not ((isinstance(tag, str) and tag in ids) or (type(tag) is int and 0 <= tag < len(ids)))
    ]


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {value!r}"[:60]
