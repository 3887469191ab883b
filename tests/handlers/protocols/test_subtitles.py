"""Subtitles written out by hand: times, empty texts, arrows within a text."""

from __future__ import annotations

from typing import Any

import pytest

from handlers.protocols.openai.subtitles import srt, vtt


def chunk(text: str, start: float, end: float) -> dict[str, Any]:
    return {"text": text, "timestamp": [start, end]}


TWO = [chunk(" And so, my fellow Americans,", 0.0, 3.42), chunk(" ask <not>\n & what", 3.42, 11.0)]


def test_subrip() -> None:
    assert srt(TWO) == (
        "1\n00:00:00,000 --> 00:00:03,420\nAnd so, my fellow Americans,\n\n"
        "2\n00:00:03,420 --> 00:00:11,000\nask <not> & what\n"
    )


def test_webvtt() -> None:
    assert vtt(TWO) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:03.420\nAnd so, my fellow Americans,\n\n"
        "00:00:03.420 --> 00:00:11.000\nask &lt;not&gt; &amp; what\n"
    )


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0.0004, 0.9996, "00:00:00,000 --> 00:00:01,000"),
        (59.9995, 60.0, "00:01:00,000 --> 00:01:00,001"),  # a cue lasts at least a millisecond
        (3599.999, 3600.0, "00:59:59,999 --> 01:00:00,000"),
        (7325.08, 360_000.5, "02:02:05,080 --> 100:00:00,500"),
        (1.1, 1.1, "00:00:01,100 --> 00:00:01,101"),
    ],
)
def test_times_are_rounded_to_milliseconds_and_carried(start, end, expected) -> None:
    assert srt([chunk("a", start, end)]) == f"1\n{expected}\na\n"
    assert expected.replace(",", ".") in vtt([chunk("a", start, end)])


def test_an_arrow_within_a_text_begins_no_cue() -> None:
    arrow = [chunk("1 --> 2", 0, 1)]
    assert srt(arrow) == "1\n00:00:00,000 --> 00:00:01,000\n1 -> 2\n"
    assert vtt(arrow).endswith("\n1 --&gt; 2\n") and vtt(arrow).count("-->") == 1


def test_what_has_no_text_is_left_out_and_not_counted() -> None:
    found = [chunk("", 0, 1), chunk(" \n", 1, 2), chunk("a", 2, 3)]
    assert srt(found) == "1\n00:00:02,000 --> 00:00:03,000\na\n"
    assert srt(found[:2]) == "" and vtt(found[:2]) == "WEBVTT\n"
