"""Queries with their texts: read from rows and from lists, every mistake with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from archiver.data.examples import read_examples
from archiver.data.text.ranking import RankingExample, read_ranking
from archiver.errors import DataError

CATS = RankingExample("cats", ("the cat sat", "a dog ran"), (1.0, 0.0))


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_rows_of_one_query_belong_together(tmp_path: Path) -> None:
    """Wherever they stand; with a header, by other names, by position."""
    rows = [("cats", "the cat sat", "1"), ("dogs", "the cat sat", "0.5"), ("cats", "a dog ran", "0")]
    found = [CATS, RankingExample("dogs", ("the cat sat",), (0.5,))]
    body = "".join("\t".join(row) + "\n" for row in rows)
    assert read_ranking(write(tmp_path / "a.tsv", "query\ttext\tlabel\n" + body)) == found
    assert read_ranking(write(tmp_path / "b.tsv", body), {"query": 0, "text": 1, "label": 2}) == found
    named = "q,passage,grade\n" + body.replace("\t", ",")
    assert read_ranking(write(tmp_path / "c.csv", named), {"query": "q", "text": "passage", "label": "grade"}) == found
    lines = "".join(json.dumps(dict(zip(("query", "text", "label"), row, strict=True))) + "\n" for row in rows)
    assert read_ranking(write(tmp_path / "d.jsonl", lines)) == found


def test_lists_and_rows_without_labels(tmp_path: Path) -> None:
    lists = write(
        tmp_path / "a.jsonl", json.dumps({"query": "cats", "texts": ["the cat sat", "a dog ran"], "labels": [1, 0]})
    )
    assert read_ranking(lists) == [CATS]
    assert read_ranking(lists, {"query": "query", "text": "texts", "label": "labels"}) == [CATS]
    assert read_ranking(lists, {"query": "query", "text": "texts"})[0].labels is None
    assert read_ranking(write(tmp_path / "b.tsv", "query\ttext\ncats\ta\ncats\tb\n")) == [
        RankingExample("cats", ("a", "b"))
    ]


def test_every_mistake_with_its_line(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.tsv",
        "query\ttext\tlabel\ncats\tone\t1\n\ttwo\t0\ncats\t \t0\ncats\tone\t0\ncats\tthree\tyes\ncats\tfour\t-1\ncats\n",
    )
    with pytest.raises(DataError, match=r"a\.tsv has 6 mistakes") as caught:
        read_ranking(file)
    assert [line.split(" ", 1)[0] for line in caught.value.problems] == [f"a.tsv:{n}:" for n in (3, 4, 5, 6, 7, 8)]
    text = str(caught.value)
    for said in (
        "query is empty",
        "text is empty",
        "under its query already",
        "label 'yes'",
        "label '-1'",
        "1 columns",
    ):
        assert said in text


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"query": "q", "texts": []}, "one text or more"),
        ({"query": "q", "texts": "a"}, "one text or more"),
        ({"query": "q", "texts": ["a", 1]}, r"texts\[1\] must be a string"),
        ({"query": "q", "texts": ["a", "b"], "labels": [1]}, "list of 2 numbers, one a text; found 1"),
        ({"query": "q", "texts": ["a"], "labels": 1}, "list of 1 numbers"),
        ({"query": "q", "texts": ["a"], "text": "b"}, "both text and texts"),
        ({"query": "q", "texts": ["a", "b"], "labels": [1, None]}, "has no label, other texts of its query have one"),
        ({"query": "q"}, "has no text: it needs"),
        ({"texts": ["a"]}, "has no value for 'query'"),
    ],
)
def test_mistakes_of_lists(tmp_path: Path, record: dict[str, object], said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_ranking(write(tmp_path / "a.jsonl", json.dumps(record)))


def test_sentences_that_python_ships_ask_for_each_other() -> None:
    found = read_ranking("embedded:cpython:validation")
    assert len(found) == 150
    assert {(len(example.texts), example.labels) for example in found} == {(7, None)}


def test_candidate_labels_are_any_names_and_those_of_pairs_the_models(tmp_path: Path) -> None:
    texts = write(tmp_path / "a.tsv", "text\tlabel\nthe match ended\tsports\n3 of 4\t7\n")
    assert [example.label for example in read_examples(texts, labels="name", id2label={0: "entailment"})] == [
        "sports",
        "7",
    ]
    pairs = write(tmp_path / "b.tsv", "text\ttext_pair\tlabel\na\tb\tentailment\n")
    labels = {0: "contradiction", 1: "entailment"}
    assert read_examples(pairs, labels="name", id2label=labels)[0].label == 1
    with pytest.raises(DataError, match=r"a\.jsonl:1: label 3 must be a name"):
        read_examples(write(tmp_path / "a.jsonl", '{"text": "a", "label": 3}'), labels="name", id2label=labels)
