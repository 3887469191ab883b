"""Multipart bodies that were right, changed in some places: fields, their heads, boundaries, and bytes."""

from __future__ import annotations

import random
from collections.abc import Sequence

BOUNDARY = b"marpress-boundary"
KIND = f"multipart/form-data; boundary={BOUNDARY.decode()}"
VALUES = [b"", b"0", b"-1", b"1e400", b"nan", b"true", b"null", b"json", b"srt", b"de", b"[]", b"\xff\xfe", b"x" * 5000]
VALUES += ["größe 🎬".encode(), b"<|startoftranscript|>", b"word,segment", b"\0", b"--" + BOUNDARY]
NAMES = [b"", b"file", b"model", b"stream", b"response_format", b"temperature", b"other", b"data", b"body", b"url_path"]
NAMES += [b"timestamp_granularities[]", b"prompt[]", "größe".encode(), b"x" * 300, b'a"; b']


def multipart_of(fields: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The body of a form; the field named file is sent as a file."""
    parts = []
    for name, value in fields:
        file = b'; filename="sound.wav"\r\nContent-Type: audio/wav' if name == b"file" else b""
        head = b'Content-Disposition: form-data; name="' + name + b'"' + file
        parts.append(b"--" + BOUNDARY + b"\r\n" + head + b"\r\n\r\n" + value + b"\r\n")
    return b"".join(parts) + b"--" + BOUNDARY + b"--\r\n"


def mutated_form(right: Sequence[tuple[bytes, bytes]], dice: random.Random) -> bytes:
    """The form with one to three places changed; one in twenty stays right."""
    fields, cuts = list(right), dice.choice((0, *[1] * 9, *[2] * 6, *[3] * 4))
    for _ in range(cuts):
        place = dice.randrange(len(fields))
        name, value = fields[place]
        fields[place] = dice.choice(
            (
                (name, dice.choice(VALUES)),
                (name, dice.choice(VALUES)),
                (dice.choice(NAMES), value),
                (name, value[: dice.randrange(len(value) + 1)]),
            )
        )
        if dice.random() < 0.2:
            fields.insert(dice.randrange(len(fields)), (dice.choice(NAMES), dice.choice(VALUES)))
        if dice.random() < 0.1 and len(fields) > 1:
            del fields[dice.randrange(len(fields))]
    body = multipart_of(fields)
    if cuts and dice.random() < 0.2:
        place = dice.randrange(len(body))
        body = dice.choice((body[:place], body[place:], body[:place] + dice.randbytes(8) + body[place:]))
    return body
