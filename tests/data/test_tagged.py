"""Tagged sentences are read from CoNLL, JSON lines and texts; every mistake is told with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from archiver.data.text.tagged import Tagged, read_tagged
from archiver.errors import DataError

LABELS = {0: "O", 1: "B-PER", 2: "I-PER"}
ANNA = Tagged("Anna Smith lives", ((0, 4), (5, 10), (11, 16)), (1, 2, 0))


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(text.encode("utf-8"))
    return path


@pytest.mark.parametrize(
    ("name", "text", "columns"),
    [
        ("a.conll", "Anna\tB-PER\nSmith\tI-PER\nlives\tO\n\nlives\tO\n", {}),
        ("a.bio", "\n\nAnna B-PER\r\nSmith I-PER\r\nlives O\r\n \r\n\r\nlives O", {}),
        ("a.iob", "-DOCSTART- X O\n\nAnna N B-PER\nSmith N I-PER\nlives V O\n\nlives V O\n", {}),  # the last column
        ("a.tsv", "B-PER\tN\tAnna\nI-PER\tN\tSmith\nO\tV\tlives\n\nO\tV\tlives\n", {"tokens": 2, "tags": 0}),
        (
            "a.jsonl",
            '{"tokens": ["Anna", "Smith", "lives"], "tags": ["B-PER", 2, "O"]}\n{"tokens": ["lives"], "tags": [0]}\n',
            {},
        ),
        (
            "a.jsonl",
            '{"w": ["Anna", "Smith", "lives"], "ner": [1, 2, 0]}\n{"w": ["lives"], "ner": [0]}\n',
            {"tokens": "w", "tags": "ner"},
        ),
    ],
)
def test_sentences_are_read(tmp_path: Path, name: str, text: str, columns: dict[str, str | int]) -> None:
    found = read_tagged(written(tmp_path, name, text), columns, id2label=LABELS)
    assert found == [ANNA, Tagged("lives", ((0, 5),), (0,))]
    assert [ANNA.text[start:end] for start, end in ANNA.words] == ["Anna", "Smith", "lives"]


def test_texts_have_no_tags(tmp_path: Path) -> None:
    (alone,) = read_tagged(written(tmp_path, "a.txt", "Anna  Smith lives\n\n"), id2label=LABELS)
    assert alone == Tagged(ANNA.text, ANNA.words, None)
    found = read_tagged("embedded:cpython:validation", id2label=LABELS)
    assert len(found) > 100 and all(item.tags is None for item in found)
    with pytest.raises(DataError, match=r"embedded:other:train is not embedded; allowed: embedded:cpython:train"):
        read_tagged("embedded:other:train", id2label=LABELS)


def test_every_mistake_is_told_with_its_line(tmp_path: Path) -> None:
    text = "Anna\tB-PER\nSmith\tI-ORG\n\nlives\nin\tO\tX\n\t\u200b\tO\nBern\tB-LOC\n"
    with pytest.raises(DataError) as caught:
        read_tagged(written(tmp_path, "a.conll", text), id2label=LABELS)
    assert str(caught.value).splitlines() == [
        "a.conll has 5 mistakes: correct or remove the rows",
        "  a.conll:2: the tag str 'I-ORG' is none of the model's labels: O, B-PER, I-PER",
        "  a.conll:4: has 1 columns, the first line has 2",
        "  a.conll:5: has 3 columns, the first line has 2",
        "  a.conll:6: has 3 columns, the first line has 2",
        "  a.conll:7: the tag str 'B-LOC' is none of the model's labels: O, B-PER, I-PER",
    ]
    rows = [
        {"tokens": "Anna", "tags": ["O"]},
        {"tokens": ["Anna", ""], "tags": ["O", "O"]},
        {"tokens": ["Anna"], "tags": ["O", "O"]},
        {"tokens": ["Anna"], "tags": [True]},
        {"tokens": ["Anna"], "tags": [3]},
        {"tags": ["O"]},
    ]
    lines = "\n".join(map(json.dumps, rows)) + "\nno json\n"
    with pytest.raises(DataError) as caught:
        read_tagged(written(tmp_path, "a.jsonl", lines), id2label=LABELS)
    assert [problem.partition(": ")[0] for problem in caught.value.problems] == [f"a.jsonl:{n}" for n in range(1, 8)]


@pytest.mark.parametrize(
    ("name", "text", "columns", "message"),
    [
        ("a.conll", "", {}, "a.conll holds no sentences"),
        ("a.conll", "Anna\nSmith\n", {}, "a.conll:1: has 1 columns; at least 2 are needed"),
        ("a.conll", "Anna\tO\n", {"tags": 4}, "a.conll:1: has 2 columns; at least 5 are needed"),
        ("a.conll", "Anna\tO\n", {"tokens": "word"}, "CoNLL files have positions, not names"),
        ("a.csv", "Anna,O\n", {}, r"a.csv has the suffix '.csv'; allowed: .conll, "),
    ],
)
def test_files_that_are_none_are_refused(
    tmp_path: Path, name: str, text: str, columns: dict[str, str | int], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_tagged(written(tmp_path, name, text), columns, id2label=LABELS)
