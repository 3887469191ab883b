"""Windows, segments and words of transcripts by hand, and their times against transformers' functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from handlers.tasks.speech.alignment import token_times, warped
from handlers.tasks.speech.transcript import Chunk, Transcript, Window

TEXT, TIME = 1000, 1000  # tokens below are letters, from here on times
RATE = 100  # samples a second, so that numbers are short


def transcript(seconds: float, **more: Any) -> Transcript:
    def decode(ids: Any) -> str:
        return bytes(ids).decode("utf-8", "replace")

    samples = np.zeros(round(seconds * RATE), np.float32)
    return Transcript(samples, RATE, 30 * RATE, TIME, TEXT, decode, times=True, **more)


def tokens(*parts: str | float) -> list[int]:
    """Texts as their bytes, numbers as times."""
    found: list[int] = []
    for part in parts:
        found += list(part.encode()) if isinstance(part, str) else [TIME + round(part / 0.02)]
    return found


def test_complete_segments_are_kept_and_the_rest_is_heard_again() -> None:
    work = transcript(50.0)
    work.take(tokens(0.0, " one", 4.0, 4.0, " two", 9.5, 9.5, " and"))
    assert work.chunks == [Chunk(" one", 0.0, 4.0), Chunk(" two", 4.0, 9.5)]
    assert work.at == 950 and not work.done
    work.take(tokens(0.0, " and three", 28.0))
    assert work.chunks[-1] == Chunk(" and three", 9.5, 37.5)
    assert work.at == 3950  # one time alone at the end: nothing is said behind it
    work.take(tokens(1.0, " four", 2.0, 2.5, " five", 6.0))
    assert work.chunks[-2:] == [Chunk(" four", 40.5, 41.5), Chunk(" five", 42.0, 45.5)]
    assert work.done and work.text == "one two and three four five"


@pytest.mark.parametrize("ids", [tokens(), tokens(0.0), tokens(0.0, 0.0), tokens(" text"), tokens(0.0, 0.0, " a")])
def test_whatever_is_written_a_window_is_left_behind(ids) -> None:
    work = transcript(45.0)
    for _ in range(10):
        work.take(ids)
        if work.done:
            break
    assert work.done
    times = [when for chunk in work.chunks for when in (chunk.start, chunk.end)]
    assert times == sorted(times)


def test_words_begin_at_blanks_and_take_their_punctuation_along() -> None:
    work = transcript(10.0, words=True, language="en")
    text = ' Say "yes", too.'
    assert [text[places[0] : places[-1] + 1] for places in work._words(list(text.encode()))] == [
        " Say",
        ' "yes",',
        " too.",
    ]
    work.language = "ja"
    letters = "日本。".encode()
    assert [bytes(letters[place] for place in places).decode() for places in work._words(list(letters))] == [
        "日",
        "本。",
    ]


def test_words_have_the_times_of_their_tokens() -> None:
    work = transcript(10.0, words=True, language="en")
    ids = tokens(0.0, " ab", " c", 4.0)
    attention = np.full((1, len(ids), 500), 1e-4)
    for place in range(len(ids)):
        attention[0, place, 40 * place : 40 * place + 40] = 1.0
    work.take(ids, Window(attention))
    assert [chunk.text for chunk in work.chunks] == [" ab", " c"]
    assert work.chunks[0].start == pytest.approx(0.8, abs=0.05)
    assert work.chunks[0].end == pytest.approx(work.chunks[1].start, abs=0.05)


def test_the_way_through_a_matrix_is_transformers() -> None:
    from transformers.models.whisper.generation_whisper import _dynamic_time_warping

    for seed, shape in enumerate([(1, 1), (1, 9), (7, 1), (12, 40), (40, 12)]):
        cost = np.random.default_rng(seed).normal(size=shape)
        for ours, theirs in zip(warped(cost), _dynamic_time_warping(cost), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_times_of_tokens_are_transformers() -> None:
    from transformers.models.whisper.generation_whisper import _dynamic_time_warping, _median_filter

    attention = np.random.default_rng(0).random((3, 9, 120)).astype(np.float64)
    weights = torch.from_numpy(attention[:, :, :80])
    weights = (weights - weights.mean(-2, keepdim=True)) / weights.std(-2, keepdim=True, unbiased=False)
    matrix = _median_filter(weights[None], 7)[0].mean(0)
    rows, columns = _dynamic_time_warping(-matrix.numpy())
    expected = columns[np.pad(np.diff(rows), (1, 0), constant_values=1).astype(bool)] * 0.02
    np.testing.assert_allclose(token_times(attention, 80), expected)


def test_grouping_of_words_is_transformers() -> None:
    from transformers.models.whisper.tokenization_whisper import _combine_tokens_into_words

    class Letters:
        eos_token_id = 10_000

        def decode(self, ids: list[int], **_: Any) -> str:
            return bytes(ids).decode("utf-8", "replace")

    work = transcript(10.0, words=True)
    for language, code in (("english", "en"), ("japanese", "ja")):
        work.language = code
        for text in (" Hello, world!", ' He said: "no". (Yes)', " naïve café", "日本語です。", " a-b's  c ..."):
            ids = list(text.encode())
            expected = _combine_tokens_into_words(Letters(), ids, language)[2]
            assert work._words(ids) == [list(places) for places in expected]
