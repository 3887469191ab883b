"""A transcript's segments as subtitles, SubRip (srt) and WebVTT (vtt).

Source: WebVTT, W3C; SubRip, which has no standard, as OpenAI's whisper writes it.
"""

from collections.abc import Mapping, Sequence
from typing import Any


def srt(chunks: Sequence[Mapping[str, Any]]) -> str:
    """SubRip: numbered cues; an arrow within a text would begin a cue, and loses a dash.

    Args:
        chunks: {"text", "timestamp": [start, end]} each, in seconds. Those without text are left out.
    """
    cues = [(*_times(chunk, ","), text.replace("-->", "->")) for chunk in chunks if (text := _line(chunk))]
    return "\n".join(f"{number}\n{start} --> {end}\n{text}\n" for number, (start, end, text) in enumerate(cues, 1))


def vtt(chunks: Sequence[Mapping[str, Any]]) -> str:
    """WebVTT, in whose texts &, < and > are written as references.

    Args:
        chunks: as `srt` has them.
    """
    cues = [(*_times(chunk, "."), _escaped(text)) for chunk in chunks if (text := _line(chunk))]
    return "WEBVTT\n" + "".join(f"\n{start} --> {end}\n{text}\n" for start, end, text in cues)


def _line(chunk: Mapping[str, Any]) -> str:
    """The text on one line: an empty one would end its cue."""
    return " ".join(chunk["text"].split())


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _times(chunk: Mapping[str, Any], point: str) -> tuple[str, str]:
    """Begin and end as hours:minutes:seconds; a cue lasts a millisecond at least, which WebVTT wants."""
    start, end = (round(seconds * 1000) for seconds in chunk["timestamp"])
    return _clock(start, point), _clock(max(end, start + 1), point)


def _clock(milliseconds: int, point: str) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{point}{rest:03}"
