"""Text and times of CTC models: what transformers' tokenizer and pipeline make of the same frames."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handlers.tasks.speech.ctc import Alphabet, Piece, Spoken, frames_of, joined, pieces

TOKENS = ["<pad>", "<s>", "</s>", "<unk>", "|", "E", "T", "A", "'", ".", "QU"]
WAV2VEC2 = ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2))


def tokenizer(folder: Path, **settings: Any) -> Any:
    from transformers import Wav2Vec2CTCTokenizer

    (folder / "vocab.json").write_text(json.dumps({token: place for place, token in enumerate(TOKENS)}))
    return Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), **settings)


SETTINGS = [{}, {"do_lower_case": True}, {"word_delimiter_token": "A"}, {"replace_word_delimiter_char": "_"}]


@pytest.mark.parametrize("settings", SETTINGS)
def test_text_and_times_equal_transformers(tmp_path, settings):
    theirs = tokenizer(tmp_path, **settings)
    ours = Alphabet(
        tuple(TOKENS),
        "<pad>",
        settings.get("word_delimiter_token", "|"),
        settings.get("replace_word_delimiter_char", " "),
        settings.get("do_lower_case", False),
    )
    random = np.random.default_rng(0)
    weights = np.array([6, 0.2, 0.2, 0.2, 3, 2, 2, 2, 1, 1, 1])
    for frames in (0, 1, 2, 5, 40, 200):
        for _ in range(20):
            ids = np.repeat(random.choice(len(TOKENS), frames, p=weights / weights.sum()), random.integers(1, 3))
            expected = theirs.decode(ids, skip_special_tokens=False, output_char_offsets=True, output_word_offsets=True)
            spoken = ours.spoken(ids)
            assert ours.text(spoken) == expected.text
            assert spoken == [Spoken(o["char"], o["start_offset"], o["end_offset"]) for o in expected.char_offsets]
            words = [Spoken(o["word"], o["start_offset"], o["end_offset"]) for o in expected.word_offsets]
            assert ours.words(spoken) == words


def test_punctuation_is_cleaned_as_transformers_cleans_it(tmp_path):
    theirs = tokenizer(tmp_path, clean_up_tokenization_spaces=True)
    ids = [5, 4, 9, 6, 4, 8, 4, 7]
    expected = theirs.decode(ids, clean_up_tokenization_spaces=True)
    assert Alphabet(tuple(TOKENS), "<pad>", clean=True).text(Alphabet(tuple(TOKENS), "<pad>").spoken(ids)) == expected


def test_a_repeat_needs_a_blank_between():
    alphabet = Alphabet(("_", "A", "B"), "_", None)
    assert alphabet.spoken([1, 1, 0, 1, 2, 2, 0, 0]) == [Spoken("A", 0, 2), Spoken("A", 3, 4), Spoken("B", 4, 6)]
    assert alphabet.text(alphabet.spoken([1, 1, 0, 1, 2, 2, 0, 0])) == "AAB"
    assert alphabet.text(alphabet.spoken([0, 0])) == ""


def test_a_transcript_as_ids():
    alphabet = Alphabet(tuple(TOKENS), "<pad>")
    assert alphabet.ids_of("TEA QUA") == [6, 5, 7, 4, 10, 7]
    assert alphabet.ids_of("TÉ") == [6, None]


def test_settings_of_an_archive():
    settings = {"tokens": ["_", "A"], "blank": "_", "delimiter": None, "space": " ", "lower": True, "clean": False}
    assert Alphabet.of(settings).text(Alphabet.of(settings).spoken([1, 0, 1])) == "aa"


def test_pieces_by_hand():
    assert list(pieces(10, 10, 2, 2)) == [Piece(0, 10, 0, 0)]
    assert list(pieces(11, 10, 2, 2)) == [Piece(0, 10, 0, 2), Piece(6, 11, 2, 0)]
    assert list(pieces(23, 10, 1, 2)) == [Piece(0, 10, 0, 2), Piece(7, 17, 1, 2), Piece(14, 23, 1, 0)]
    # Without overlap the rest may be too short to stand alone: the last piece takes it along.
    assert list(pieces(21, 10, 0, 0, shortest=3)) == [Piece(0, 10, 0, 0), Piece(10, 21, 0, 0)]


@pytest.mark.parametrize("seconds", [0.5, 3.0, 7.9, 8.0, 8.1, 30.0, 61.7])
@pytest.mark.parametrize(("chunk", "stride"), [(8, 8 / 6), (4, 1), (5, 0)])
def test_pieces_and_what_is_kept_of_them_equal_transformers(seconds, chunk, stride):
    from transformers.pipelines.automatic_speech_recognition import chunk_iter, rescale_stride

    class Extractor:
        sampling_rate = 16_000

        def __call__(self, samples: np.ndarray, **_: Any) -> dict[str, Any]:
            return {"size": len(samples)}

    ratio = 320
    total = round(seconds * 16_000)
    size, side = (round(value * 16_000 / ratio) * ratio for value in (chunk, stride))
    theirs = list(chunk_iter(np.zeros(total), Extractor(), size, side, side))
    ours = list(pieces(total, size, side, side))
    assert [piece.end - piece.start for piece in ours] == [item["size"] for item in theirs]
    for piece, item in zip(ours, theirs, strict=True):
        ids = np.arange(frames_of(piece.end - piece.start, WAV2VEC2))
        frames, left, right = rescale_stride([item["stride"]], 1 / ratio)[0]
        np.testing.assert_array_equal(piece.kept(ids, ratio), ids[left : frames - right])


def test_the_own_parts_of_pieces_cover_a_recording_once():
    places = np.arange(100_000)
    kept = [places[p.start + p.left : p.end - p.right] for p in pieces(100_000, 9_000, 1_500, 1_000)]
    np.testing.assert_array_equal(np.concatenate(kept), places)


def test_frames_of_wav2vec2():
    assert [frames_of(samples, WAV2VEC2) for samples in (400, 719, 720, 16_000)] == [1, 1, 2, 49]


def test_parts_with_silence_between():
    def frames(*ids: int) -> np.ndarray:
        return np.eye(4, dtype=np.float32)[list(ids)] * 5

    def said(*parts: tuple[int, np.ndarray], delimiter: int | None = 3) -> list[int]:
        return [int(place) for place in joined(parts, 0, delimiter).argmax(axis=1)]

    assert said((1, frames(1, 2)), (6, frames(1))) == [0, 1, 2, 0, 3, 0, 1]  # words end where there is silence
    assert said((0, frames(1, 3)), (5, frames(2))) == [1, 3, 0, 0, 0, 2]  # … once
    assert said((0, frames(1)), (4, frames(3, 2))) == [1, 0, 0, 0, 3, 2]
    assert said((0, frames(1)), (1, frames(2))) == [1, 2]  # pieces of one part
    assert said((2, frames(1)), (4, frames())) == [0, 0, 1, 0]
    assert said((0, frames(1)), (3, frames(2)), delimiter=None) == [1, 0, 0, 2]
