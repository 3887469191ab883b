"""Recordings for calibration, validation and retraining: a table of sound files with what is said, or a label, for each."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from archiver.data.examples import label_parser, raise_mistakes, source_rows
from archiver.data.files import BadRow, Columns
from archiver.errors import DataError
from handlers.errors import BadRequest
from handlers.inputs.media.audio_file import AudioReader, Recording, recording_of


@dataclass(frozen=True)
class RecordingExample:
    """One recording of a list.

    Args:
        name: the file as the list names it. sha256: of its bytes. seconds: how long it is.
        recording: its bytes. transcript: what is said in it. label: the id of its class.
    """

    name: str
    sha256: str
    seconds: float
    recording: Recording = field(repr=False)
    transcript: str | None = None
    label: Any = None


def read_recordings(
    source: Path | str,
    columns: Mapping[str, str | int] | None,
    reader: AudioReader,
    *,
    keys: tuple[str, ...],
    id2label: Mapping[int, str] | None = None,
    multi_label: bool = False,
    check: Callable[[RecordingExample], str | None] = lambda example: None,
) -> list[RecordingExample]:
    """The recordings that a list names.

    Args:
        source: a .tsv, .csv or .jsonl file; paths in it are relative to its folder. columns: as a recipe's `data.columns`.
        reader: decodes each file once, so that a damaged one is found here.
        keys: ("audio", "transcript") or ("audio", "label"): what a row may have, the first is needed.
        id2label: the model's labels. multi_label: several of them, joined by `|`.
        check: what is wrong with an example for the model, None for nothing.
    Returns: the examples, at least one.
    Raises: DataError that lists every bad row with its line.
    """
    if not isinstance(source, Path):
        raise DataError(
            f"{source}: recordings come from a list of files (.tsv, .csv, .jsonl) that names each by its path"
        )
    problems: list[tuple[int, str]] = []
    rows = []
    for row in source_rows(source, Columns(dict(columns or {}), keys)):
        if isinstance(row, BadRow):
            problems.append((row.line, row.problem))
        else:
            rows.append(row)
    parse = label_parser("class", id2label, multi_label, [row.values.get("label") for row in rows])
    examples = []
    for row in rows:
        try:
            example = _example(row.values, source.parent, reader, parse)
            mistake = check(example)
        except (BadRequest, ValueError) as error:
            mistake = str(error)
        if mistake is not None:
            problems.append((row.line, mistake))
        else:
            examples.append(example)
    if problems:
        raise_mistakes(source.name, problems)
    if not examples:
        raise DataError(f"{source.name} holds no recordings: it needs at least one row with a path")
    return examples


def _example(
    values: Mapping[str, Any], folder: Path, reader: AudioReader, parse: Callable[[Any], Any]
) -> RecordingExample:
    """ValueError or BadRequest saying what is wrong with a row."""
    name = values["audio"]
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"audio is {name!r}; a file's path is expected")
    name = name.strip()
    try:
        body = (folder / name).expanduser().read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"{name} cannot be read: {reason}; paths are relative to the list's folder") from error
    recording = recording_of(body, name)
    seconds = len(reader.read(recording)) / reader.rate
    transcript = values.get("transcript")
    if transcript is not None and (not isinstance(transcript, str) or not transcript.strip()):
        raise ValueError(f"transcript of {name} is {transcript!r}; what is said in it is expected")
    raw = values.get("label")
    label = None if raw is None else parse(raw)
    digest = hashlib.sha256(body).hexdigest()
    return RecordingExample(name, digest, seconds, recording, transcript.strip() if transcript else None, label)
