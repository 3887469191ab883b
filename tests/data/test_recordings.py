"""Lists of recordings: what they may hold, and every mistake with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from audio_models import sounds
from hearing import wav

from archiver.data.audio import read_recordings
from archiver.errors import DataError
from handlers.inputs.media.audio_file import AudioReader

READER = AudioReader(16_000, 2.0)
SPOKEN, LABELLED = ("audio", "transcript"), ("audio", "label")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """a.wav (0.5 s), deep/b.wav (1 s), long.wav (3 s), cut.wav (half a file), none.wav (0 bytes)."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.wav").write_bytes(wav(sounds(8_000)[0]))
    (tmp_path / "deep/b.wav").write_bytes(wav(sounds(16_000)[0]))
    (tmp_path / "long.wav").write_bytes(wav(sounds(48_000)[0]))
    (tmp_path / "cut.wav").write_bytes(wav(sounds(8_000)[0])[:16_000])
    (tmp_path / "none.wav").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("name", "text", "columns"),
    [
        ("list.tsv", "a.wav\tone two\ndeep/b.wav\tthree\n", {"audio": 0, "transcript": 1}),
        ("list.tsv", "audio\ttranscript\na.wav\tone two\ndeep/b.wav\tthree\n", None),
        ("list.csv", 'said,file\n"one two",a.wav\nthree,deep/b.wav\n', {"audio": "file", "transcript": "said"}),
        (
            "list.jsonl",
            "\n".join(
                json.dumps({"audio": path, "transcript": said})
                for path, said in (("a.wav", "one two"), ("deep/b.wav", " three "))
            ),
            None,
        ),
    ],
)
def test_lists(folder, name, text, columns):
    (folder / name).write_text(text)
    found = read_recordings(folder / name, columns, READER, keys=SPOKEN)
    assert [(item.name, item.transcript, item.seconds) for item in found] == [
        ("a.wav", "one two", 0.5),
        ("deep/b.wav", "three", 1.0),
    ]
    assert found[0].recording.body == (folder / "a.wav").read_bytes()
    assert len({item.sha256 for item in found}) == 2
    assert "RIFF" not in repr(found)  # what is hashed and printed of it is no sound


def test_labels(folder):
    (folder / "list.tsv").write_text("audio\tlabel\na.wav\tdog\ndeep/b.wav\t0\n")
    found = read_recordings(folder / "list.tsv", None, READER, keys=LABELLED, id2label={0: "cat", 1: "dog"})
    assert [item.label for item in found] == [1, 0]
    (folder / "list.tsv").write_text("audio\na.wav\n")
    assert read_recordings(folder / "list.tsv", None, READER, keys=LABELLED)[0].label is None


def test_every_mistake_is_listed_with_its_line(folder):
    bad = ["nowhere.wav\ttwo", "cut.wav\tthree", "none.wav\tfour", "long.wav\tfive"]
    rows = ["a.wav\tone", *bad, "a.wav\t ", "deep\tsix", "\tseven", "a.wav"]
    (folder / "list.tsv").write_text("audio\ttranscript\n" + "\n".join(rows) + "\n")
    with pytest.raises(DataError, match=r"list\.tsv has 8 mistakes: correct or remove the rows") as caught:
        read_recordings(folder / "list.tsv", None, READER, keys=SPOKEN)
    expected = [
        "list.tsv:3: nowhere.wav cannot be read: No such file or directory; paths are relative to the list's folder",
        "list.tsv:4: cut.wav is damaged or cut off: its header declares 32000 bytes of samples",
        "list.tsv:5: none.wav is a file of 0 bytes; a sound file (wav, flac, mp3 or ogg (Vorbis, Opus)) is expected",
        "list.tsv:6: long.wav holds 3.0 seconds of sound; at most 2 are allowed",
        "list.tsv:7: transcript of a.wav is ' '; what is said in it is expected",
        "list.tsv:8: deep cannot be read: Is a directory",
        "list.tsv:9: audio is ''; a file's path is expected",
        "list.tsv:10: has 1 columns, the first row has 2",
    ]
    assert len(caught.value.problems) == len(expected)
    for problem, beginning in zip(caught.value.problems, expected, strict=True):
        assert problem.startswith(beginning)


def test_a_label_that_the_model_has_not(folder):
    (folder / "list.tsv").write_text("a.wav\tcow\n")
    with pytest.raises(DataError, match="has 1 mistake") as caught:
        read_recordings(
            folder / "list.tsv", {"audio": 0, "label": 1}, READER, keys=LABELLED, id2label={0: "cat", 1: "dog"}
        )
    assert caught.value.problems == ["list.tsv:1: label 'cow' is not in cat, dog, nor an id from 0 to 1"]


def test_no_list(folder):
    (folder / "empty.tsv").write_text("audio\ttranscript\n")
    with pytest.raises(DataError, match=r"empty\.tsv holds no recordings"):
        read_recordings(folder / "empty.tsv", None, READER, keys=SPOKEN)
    with pytest.raises(DataError, match="recordings come from a list of files"):
        read_recordings("hub://org/name:test", None, READER, keys=SPOKEN)


def test_real_transcripts(shared):
    folder = shared / "data/librivox"
    found = read_recordings(
        folder / "transcripts.tsv", {"audio": 0, "transcript": 1}, AudioReader(16_000, 60.0), keys=SPOKEN
    )
    assert sum(len((item.transcript or "").split()) for item in found) == 58
    assert round(sum(item.seconds for item in found), 1) == 23.4
