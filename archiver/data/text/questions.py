"""Questions with contexts and their answers, from SQuAD's JSON, tables, JSON lines and hub data sets."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archiver.data.examples import raise_mistakes, source_rows
from archiver.data.files import BadRow, Columns, Row
from archiver.errors import DataError

KEYS = ("question", "context", "answers", "answer_start")
_CONTEXT = 6  # sentences of an embedded context


@dataclass(frozen=True)
class Asked:
    """A question on a context.

    answers: (text, first character in the context) of each true answer; () where the context holds none, None where nobody
        said.
    """

    question: str
    context: str
    answers: tuple[tuple[str, int], ...] | None


def read_questions(source: Path | str, columns: Mapping[str, str | int] | None = None) -> list[Asked]:
    """The questions of one source.

    Args:
        source: SQuAD's JSON, v1.1 or v2 (.json); .jsonl, .csv or .tsv with a question and a context a row;
            "hub://name[/config]:split"; "embedded:cpython:train|validation", sentences without answers.
        columns: {"question" | "context" | "answers" | "answer_start": column name or position}; default: those names,
            of which the first two must exist. answers: a text, a list of texts, or {"text": […], "answer_start": […]} as
            hub data sets have it; empty where the context holds none. answer_start: a number or a list of them; without it
            an answer is looked for in the context.
    Raises: DataError that lists every bad row.
    """
    name = source.name if isinstance(source, Path) else source
    problems: list[tuple[int, str]] = []
    found: list[Asked] = []
    for row in _rows(source, dict(columns or {})):
        if isinstance(row, BadRow):
            problems.append((row.line, row.problem))
            continue
        wrong = [
            f"{key} must be a text that is not empty; found {_shown(value)}"
            for key in ("question", "context")
            if not isinstance(value := row.values.get(key), str) or not value.strip()
        ]
        if not wrong:
            try:
                found.append(Asked(row.values["question"], row.values["context"], _answers(row.values)))
            except ValueError as error:
                wrong = [str(error)]
        problems += [(row.line, mistake) for mistake in wrong]
    if problems:
        raise_mistakes(name, problems)
    if not found:
        raise DataError(f"{name} holds no questions: it needs at least one question with its context")
    return found


def _rows(source: Path | str, columns: dict[str, str | int]) -> Iterator[Row | BadRow]:
    if isinstance(source, Path) and source.suffix.lower() == ".json":
        return _squad(source)
    rows = source_rows(source, Columns(columns, KEYS, required=("question", "context")))
    return _embedded(rows) if isinstance(source, str) and source.startswith("embedded:") else rows


def _embedded(rows: Iterator[Row | BadRow]) -> Iterator[Row]:
    """Sentences as questions: each is asked of the next few together."""
    sentences = [row.values["question"] for row in rows if isinstance(row, Row)]
    for place in range(0, len(sentences) - _CONTEXT, _CONTEXT):
        part = sentences[place : place + _CONTEXT]
        yield Row(place + 1, {"question": part[0], "context": " ".join(part)})


def _squad(path: Path) -> Iterator[Row | BadRow]:
    """The rows of SQuAD's JSON; a row's line is the question's number, as the file is often one line."""
    try:
        articles = json.loads(path.read_text(encoding="utf-8-sig"))["data"]
    except OSError as error:
        raise DataError(f"{path.name} cannot be read: {error.strerror}; name a file that exists") from error
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise DataError(f'{path.name} is no SQuAD file, which is JSON with a list "data": {error!r}') from error
    number = 0
    for article in articles if isinstance(articles, list) else [articles]:
        paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
        if not isinstance(paragraphs, list):
            yield BadRow(number + 1, 'stands in an article without a list "paragraphs" (the number is the question\'s)')
            continue
        for paragraph in paragraphs:
            questions = paragraph.get("qas") if isinstance(paragraph, dict) else None
            if not isinstance(questions, list):
                yield BadRow(number + 1, 'stands in a paragraph without a list "qas" (the number is the question\'s)')
                continue
            for asked in questions:
                number += 1
                if not isinstance(asked, dict):
                    yield BadRow(number, f"must be an object; found {_shown(asked)}")
                    continue
                answers = [] if asked.get("is_impossible") else asked.get("answers")
                yield Row(
                    number, {"question": asked.get("question"), "context": paragraph.get("context"), "answers": answers}
                )


def _answers(values: Mapping[str, Any]) -> tuple[tuple[str, int], ...] | None:
    """The true answers of one row; ValueError says what is wrong with them."""
    raw: Any = values.get("answers")
    starts, context = values.get("answer_start"), values["context"]
    if raw is None:
        return None
    if isinstance(raw, dict):  # as hub data sets have it: {"text": […], "answer_start": […]}
        raw, starts = raw.get("text"), raw.get("answer_start", starts)
    if isinstance(raw, list) and raw and all(isinstance(item, dict) for item in raw):  # as SQuAD has it
        starts, raw = [item.get("answer_start") for item in raw], [item.get("text") for item in raw]
    texts = [raw] if isinstance(raw, str) else raw
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"answers must be a text or a list of texts; found {_shown(raw)}")
    if texts == [""]:
        return ()
    places = starts if isinstance(starts, list) else [starts] * len(texts)
    if len(places) != len(texts):
        raise ValueError(f"has {len(texts)} answers and {len(places)} answer_start")
    return tuple(_placed(context, text, place) for text, place in zip(texts, places, strict=True))


def _placed(context: str, text: str, start: Any) -> tuple[str, int]:
    """An answer with its first character; ValueError where the context does not have it there, or nowhere."""
    if start is None or start == "":
        place = context.find(text) if text else -1
        if place < 0:
            raise ValueError(f"the answer {_shown(text)} does not stand in the context")
        return text, place
    try:
        place = int(start)
    except (TypeError, ValueError):
        raise ValueError(f"answer_start must be a whole number; found {_shown(start)}") from None
    if not text or context[place : place + len(text)] != text or place < 0:
        raise ValueError(f"the answer {_shown(text)} does not stand at character {place} of the context")
    return text, place


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {value!r}"[:80]
