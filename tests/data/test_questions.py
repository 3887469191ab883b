"""Questions are read from SQuAD's JSON and tables; every mistake is told with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from archiver.data.text.questions import Asked, read_questions
from archiver.errors import DataError

CONTEXT = "Anna lives in Bern, and Bern is old."
NAMED = {"question": "q", "context": "c", "answers": "a", "answer_start": "s"}
WHERE = Asked("Where?", CONTEXT, (("Bern", 14),))


def squad(*questions: Any) -> str:
    return json.dumps({"version": "v2.0", "data": [{"paragraphs": [{"context": CONTEXT, "qas": list(questions)}]}]})


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text", "columns"),
    [
        ("a.json", squad({"question": "Where?", "answers": [{"text": "Bern", "answer_start": 14}]}), {}),
        ("a.jsonl", json.dumps({"question": "Where?", "context": CONTEXT, "answers": "Bern"}), {}),
        ("a.jsonl", json.dumps({"question": "Where?", "context": CONTEXT, "answers": ["Bern"]}), {}),
        (
            "a.jsonl",
            json.dumps({"question": "Where?", "context": CONTEXT, "answers": {"text": ["Bern"], "answer_start": [14]}}),
            {},
        ),
        ("a.csv", f'q,c,a,s\nWhere?,"{CONTEXT}",Bern,14\n', NAMED),
        ("a.csv", f'question,context,answers\nWhere?,"{CONTEXT}",Bern\n', {}),
        ("a.tsv", f"Where?\t{CONTEXT}\tBern\n", {"question": 0, "context": 1, "answers": 2}),
    ],
)
def test_questions_are_read(tmp_path: Path, name: str, text: str, columns: dict[str, str | int]) -> None:
    assert read_questions(written(tmp_path, name, text), columns) == [WHERE]


def test_no_answer_and_no_label_are_told_apart(tmp_path: Path) -> None:
    impossible = {"question": "Why?", "is_impossible": True, "answers": [], "plausible_answers": [{"text": "Bern"}]}
    found = read_questions(written(tmp_path, "a.json", squad(impossible, {"question": "Who?"})))
    assert [item.answers for item in found] == [(), None]
    second = {
        "question": "Which?",
        "answers": [{"text": "Bern", "answer_start": 24}, {"text": "Anna", "answer_start": 0}],
    }
    assert read_questions(written(tmp_path, "b.json", squad(second)))[0].answers == (("Bern", 24), ("Anna", 0))
    assert all(item.answers is None for item in read_questions("embedded:cpython:train"))


def test_every_mistake_is_told_with_its_line(tmp_path: Path) -> None:
    rows = [
        {"question": "", "context": CONTEXT},
        {"question": "Where?"},
        {"question": "Where?", "context": 7},
        {"question": "Where?", "context": CONTEXT, "answers": "Basel"},
        {"question": "Where?", "context": CONTEXT, "answers": "Bern", "answer_start": 3},
        {"question": "Where?", "context": CONTEXT, "answers": "Bern", "answer_start": "x"},
        {"question": "Where?", "context": CONTEXT, "answers": 5},
        {"question": "Where?", "context": CONTEXT, "answers": ["Bern", "Anna"], "answer_start": [14]},
        {"question": "Where?", "context": CONTEXT, "answers": "Bern", "answer_start": -22},
    ]
    with pytest.raises(DataError) as caught:
        read_questions(written(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows))))
    assert [problem.split(": ", 1)[1] for problem in caught.value.problems] == [
        "question must be a text that is not empty; found str ''",
        "has no value for 'context'; its columns are question",
        "context must be a text that is not empty; found int 7",
        "the answer str 'Basel' does not stand in the context",
        "the answer str 'Bern' does not stand at character 3 of the context",
        "answer_start must be a whole number; found str 'x'",
        "answers must be a text or a list of texts; found int 5",
        "has 2 answers and 1 answer_start",
        "the answer str 'Bern' does not stand at character -22 of the context",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no json", 'a.json is no SQuAD file, which is JSON with a list "data"'),
        ("[]", 'a.json is no SQuAD file, which is JSON with a list "data"'),
        ('{"data": []}', "a.json holds no questions"),
        ('{"data": [{"title": "x"}]}', 'a.json:1: stands in an article without a list "paragraphs"'),
        ('{"data": [{"paragraphs": [{"context": "x"}]}]}', 'a.json:1: stands in a paragraph without a list "qas"'),
        (squad("Where?"), "a.json:1: must be an object; found str 'Where\\?'"),
        (squad({"answers": []}), "a.json:1: question must be a text that is not empty; found NoneType None"),
    ],
)
def test_files_that_are_no_squad_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_questions(written(tmp_path, "a.json", text))
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_questions(tmp_path / "other.json")
