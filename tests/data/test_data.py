"""Examples: real files, odd files, bad rows, hub data sets and the text CPython ships."""

from __future__ import annotations

import sys
import types

import pytest

from archiver.data.embedded import embedded_sentences, split_sentences
from archiver.data.examples import Example, read_examples
from archiver.errors import DataError

LABELS = {0: "NEGATIVE", 1: "POSITIVE"}
POSITIONS = {"text": 0, "label": 1}


@pytest.fixture
def read(tmp_path):
    def read(name: str, content: str | bytes, columns=None, **options):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_examples(path, columns, **options)

    return read


def problems_of(read, *arguments, **options) -> list[str]:
    with pytest.raises(DataError, match="mistake") as caught:
        read(*arguments, **options)
    return caught.value.problems


def test_sst2(shared) -> None:
    folder = shared / "data" / "sst2"
    dev, train = (read_examples(folder / name, POSITIONS, id2label=LABELS) for name in ("dev.tsv", "train.tsv"))
    assert (len(dev), len(train)) == (872, 6920)
    assert dev[0] == Example("one long string of cliches", None, 0)
    assert {example.label for example in dev} == {0, 1}


def test_stsb_pairs_with_scores(shared) -> None:
    columns = {"text": 0, "text_pair": 1, "label": 2}
    dev = read_examples(shared / "data" / "stsb" / "dev.csv", columns, labels="score")
    assert len(dev) == 1500
    assert dev[1] == Example("A young child is riding a horse.", "A child is riding a horse.", 4.75)
    assert all(isinstance(example.label, float) and 0 <= example.label <= 5 for example in dev)


def test_tsv_has_no_quoting(read) -> None:
    assert read("a.tsv", '"open\t1\n\n   \nit\'s "it"\t0\n', POSITIONS) == [
        Example('"open', None, 1),
        Example('it\'s "it"', None, 0),
    ]


def test_csv_by_rfc_4180(read) -> None:
    content = 'text,extra,label\r\n"a, ""b""\nsecond line",x,POSITIVE\r\n\r\nplain,,0\r\n'
    assert read("a.csv", content, {"text": "text", "label": "label"}, id2label=LABELS) == [
        Example('a, "b"\nsecond line', None, 1),
        Example("plain", None, 0),
    ]


def test_json_lines(read) -> None:
    content = '{"s": "a", "y": "POSITIVE"}\n\n{"y": 0, "s": "b\\nc"}\n'
    found = read("a.jsonl", content, {"text": "s", "label": "y"}, id2label=LABELS)
    assert found == [Example("a", None, 1), Example("b\nc", None, 0)]
    with pytest.raises(DataError, match="JSON lines have names, not positions"):
        read("a.jsonl", content, POSITIONS)


def test_plain_text(read) -> None:
    assert read("a.txt", "one\u2028two\r\n\n three\n", POSITIONS) == [Example("one\u2028two"), Example("three")]


def test_default_columns(read) -> None:
    assert read("a.csv", "label,text\n1,x\n") == [Example("x", None, 1)]
    assert read("a.tsv", "text\ttext_pair\nx\ty\n") == [Example("x", "y", None)]
    assert read("a.jsonl", '{"text": "x"}\n') == [Example("x")]


def test_byte_order_mark(read) -> None:
    assert read("a.csv", b"\xef\xbb\xbftext,label\r\nx,1\r\n") == [Example("x", None, 1)]
    assert read("a.tsv", b"\xef\xbb\xbfx\t1", POSITIONS) == [Example("x", None, 1)]
    with pytest.raises(DataError, match=r"a\.csv is UTF-16: save it as UTF-8"):
        read("a.csv", "text,label\nä,1\n".encode("utf-16"))


def test_every_bad_row_is_listed(read) -> None:
    content = b"good\t1\n\t1\nlonely\nb\xffd\t0\nx\t7\ny\tPOSITIV\nz\t\n  \t0\ta\nlast\tNEGATIVE\n"
    assert problems_of(read, "dev.tsv", content, POSITIONS, id2label=LABELS) == [
        "dev.tsv:2: text is empty",
        "dev.tsv:3: has 1 columns, the first row has 2",
        "dev.tsv:4: is not UTF-8: save the file as UTF-8",
        "dev.tsv:5: label '7' is not in NEGATIVE, POSITIVE, nor an id from 0 to 1",
        "dev.tsv:6: label 'POSITIV' is not in NEGATIVE, POSITIVE, nor an id from 0 to 1",
        "dev.tsv:7: label '' is not in NEGATIVE, POSITIVE, nor an id from 0 to 1",
        "dev.tsv:8: has 3 columns, the first row has 2",
    ]


def test_only_the_first_twenty_bad_rows(read) -> None:
    found = problems_of(read, "a.tsv", "x\t1\n" + "\t1\n" * 45, POSITIONS)
    assert (len(found), found[0], found[-1]) == (21, "a.tsv:2: text is empty", "and 25 more")


def test_bad_csv(read) -> None:
    found = problems_of(read, "a.csv", b'text,label\n"a"b,0\nok,1\nb\xe9d,1\n"never closed,1\nend,0\n')
    assert found == [
        "a.csv:2: is not CSV: ',' expected after '\"'",
        "a.csv:4: is not UTF-8: save the file as UTF-8",
        "a.csv:5: is not CSV: a quote that opens here is never closed",
    ]
    assert "field larger than field limit" in problems_of(read, "b.csv", "text\n" + "x" * 200_000)[0]


def test_bad_json_lines(read) -> None:
    deep = "[" * 100_000
    content = f'{{"text": 3}}\n[1]\n{{bad\n{{"label": 1}}\n{{"text": "x", "label": true}}\n{deep}\n{{"text": null}}\n'
    assert [line[:48] for line in problems_of(read, "a.jsonl", content, id2label=LABELS)] == [
        "a.jsonl:1: text must be a string; found int 3",
        "a.jsonl:2: must be a JSON object; found list",
        "a.jsonl:3: is not JSON: Expecting property name ",
        "a.jsonl:4: has no value for 'text'; its columns ",
        "a.jsonl:5: label True is not in NEGATIVE, POSITI",
        "a.jsonl:6: is not JSON: maximum recursion depth ",
        "a.jsonl:7: has no value for 'text'; its columns ",
    ]


def test_columns_that_are_not_there(read) -> None:
    with pytest.raises(
        DataError, match=r"(?s)the columns 'txt', 'label', 'label'.*no column is named 'text'.*more than"
    ):
        read("a.csv", "txt,label,label\nx,1,2\n", {"text": "text", "label": "label"})
    with pytest.raises(DataError, match=r"a.csv:1: has 2 columns; data.columns {'label': 4} must be from 0 to 1"):
        read("a.csv", "x,1\n", {"text": 0, "label": 4})


@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff", "text,label\n"])
def test_empty_files(read, content) -> None:
    with pytest.raises(DataError, match=r"a.csv holds no examples: it needs at least one row"):
        read("a.csv", content)


def test_files_that_cannot_be_read(tmp_path) -> None:
    with pytest.raises(DataError, match=r"gone.tsv cannot be read: No such file or directory"):
        read_examples(tmp_path / "gone.tsv", POSITIONS)
    with pytest.raises(DataError, match=r"x.xlsx has the suffix '.xlsx'; allowed: .tsv, .csv, .jsonl, .ndjson, .txt"):
        read_examples(tmp_path / "x.xlsx")


def test_limit_stops_before_later_rows(read) -> None:
    assert len(read("a.tsv", "x\t1\ny\t0\n\t\n", POSITIONS, limit=2)) == 2


def test_several_labels(read) -> None:
    content = "a\tPOSITIVE|NEGATIVE\nb\t1\nc\t\n"
    found = read("a.tsv", content, POSITIONS, id2label=LABELS)
    assert [example.label for example in found] == [(0, 1), (1,), ()]
    assert read("a.tsv", "b\t1\n", POSITIONS, id2label=LABELS, multi_label=True)[0].label == (1,)
    assert len(problems_of(read, "a.tsv", content, POSITIONS, id2label=LABELS, multi_label=False)) == 2
    assert read("a.jsonl", '{"text": "x", "label": ["POSITIVE", 0]}\n', id2label=LABELS)[0].label == (0, 1)
    assert read("a.tsv", "a\tx|y\n", POSITIONS, id2label={0: "x|y", 1: "z"})[0].label == 0


def test_a_labels_name_comes_before_its_id(read) -> None:
    stars = {0: "1", 1: "2", 2: "3"}
    assert [e.label for e in read("a.tsv", "a\t1\nb\t3\nc\t0\n", POSITIONS, id2label=stars)] == [0, 2, 0]
    assert read("a.tsv", "a\t1.0\n", POSITIONS, id2label=LABELS)[0].label == 1
    assert "names need the model's id2label" in problems_of(read, "a.tsv", "a\tgood\n", POSITIONS)[0]
    for odd in ("-1", "1e0", "nan", "٣", "0x1", "1.5"):
        assert "is not in NEGATIVE" in problems_of(read, "a.tsv", f"a\t{odd}\n", POSITIONS, id2label=LABELS)[0]


def test_scores(read) -> None:
    assert read("a.tsv", "a\t0.25\n", POSITIONS, id2label={0: "LABEL_0"})[0].label == 0.25
    assert "must be a finite number" in problems_of(read, "a.tsv", "a\tnan\n", POSITIONS, labels="score")[0]


def test_hub_without_datasets(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="hub://glue/sst2:train needs the package datasets: pip install datasets"):
        read_examples("hub://glue/sst2:train", {"text": "sentence"})
    with pytest.raises(DataError, match="has names, not positions"):
        read_examples("hub://glue/sst2:train", POSITIONS)


def test_hub_with_datasets(monkeypatch) -> None:
    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        if name == "glue/sst2":
            raise FileNotFoundError("no such data set")
        if name == "bad":
            raise ValueError("unknown split")
        return [{"sentence": "a", "label": 1}, {"sentence": "b", "label": 0}, {"sentence": "", "label": 0}]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    columns = {"text": "sentence", "label": "label"}
    found = read_examples("hub://glue/sst2:train", columns, id2label=LABELS, limit=2)
    assert [example.label for example in found] == [1, 0]
    with pytest.raises(DataError, match=r"(?s)1 mistake.*hub://org/glue/sst2:train\[:3\]:3: text is empty"):
        read_examples("hub://org/glue/sst2:train[:3]", columns)
    with pytest.raises(DataError, match="hub://bad:x cannot be read: unknown split; check its name"):
        read_examples("hub://bad:x", columns)
    assert asked == [
        ("glue/sst2", None, "train"),
        ("glue", "sst2", "train"),
        ("org/glue", "sst2", "train[:3]"),
        ("bad", None, "x"),
    ]


def test_embedded_text() -> None:
    train, validation = embedded_sentences("train"), embedded_sentences("validation")
    assert min(len(train), len(validation)) >= 1000
    assert not set(train) & set(validation)
    assert len(set(train)) == len(train)
    assert all(3 <= len(sentence.split()) <= 60 for sentence in train + validation)
    assert embedded_sentences("train") == train
    found = read_examples("embedded:cpython:train", labels="score", limit=300)
    assert [example.text for example in found] == train[:300]
    for source in ("embedded:cpython:test", "embedded:cpython", "embedded:perl:train"):
        with pytest.raises(DataError, match="allowed: "):
            read_examples(source, labels="score")


def test_sentences_are_prose() -> None:
    text = """Heading
*******

The first sentence stands here, over
two lines.  A sentence with a "quoted word" follows here (see below)!

   >>> code = f(x)
   The result of x == 3 is True.

- One bullet in a list of ``items`` is kept.
* object.method(self, name=None)

lower case begins this one.  Too short.
"""
    assert split_sentences(text) == [
        "The first sentence stands here, over two lines.",
        'A sentence with a "quoted word" follows here (see below)!',
        "One bullet in a list of items is kept.",
    ]
