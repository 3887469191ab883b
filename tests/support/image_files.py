"""Image files of many kinds, and broken ones, made here."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image


def picture(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    """A smooth picture with noise, of which no side or corner is like another."""
    random = np.random.default_rng(seed)
    across, down = np.linspace(0, 1, width), np.linspace(0, 1, height)[:, None]
    red, green, blue = across + 0 * down, down + 0 * across, across * down
    noise = random.normal(0, 0.03, (height, width, 3))
    values = np.stack([red, green, blue], -1) + noise
    return Image.fromarray((values.clip(0, 1) * 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "png", **options: Any) -> bytes:
    """The file of an image."""
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(image: Image.Image, orientation: int, kind: str = "jpeg", **options: Any) -> bytes:
    """A file whose EXIF data say how it is to be turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, kind, exif=exif, **options)


def huge_png(width: int, height: int, chunks: bytes = b"") -> bytes:
    """A PNG whose header declares a size, with almost nothing behind it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + chunks
        + _chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + _chunk(b"IEND", b"")
    )


def black_png(side: int) -> bytes:
    """A PNG of side × side black pixels, whole, and a thousandth of them in bytes."""
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * ((side // 8 + 1) * side), 9)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _corrupt(body: bytes) -> bytes:
    middle = len(body) // 2
    return body[:middle] + bytes(255 - value for value in body[middle : middle + 40]) + body[middle + 40 :]


_HEADER = "file does, and its header is damaged"

# What is wrong → (the file, what the answer says of it).
BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "0 bytes": (lambda: b"", "is (a file of 0 bytes|empty)"),
    "no image": (lambda: b"%PDF-1.7 whatever it holds", r"is no image that can be read: it begins with b'%PDF-1\.7'"),
    "tiff": (lambda: encoded(picture(), "tiff"), "is no image that can be read: it begins with b'II"),
    "corrupt png": (lambda: _corrupt(encoded(picture())), "is damaged: its header declares 40 × 30 pixels"),
    "truncated png": (lambda: encoded(picture())[:900], "ends before its last pixel: its header declares 40 × 30"),
    "truncated jpeg": (lambda: encoded(picture(), "jpeg")[:700], "ends before its last pixel"),
    "truncated webp": (lambda: encoded(picture(), "webp", lossless=True)[:500], f"begins as a WebP {_HEADER}"),
    "png header": (lambda: encoded(picture())[:20], f"begins as a PNG {_HEADER}"),
    "jpeg header": (lambda: encoded(picture(), "jpeg")[:40], f"begins as a JPEG {_HEADER}"),
    "30 000 × 30 000": (lambda: huge_png(30_000, 30_000), r"has 30000 × 30000 = 900000000 pixels; at most \d+ are"),
    "a header that lies": (
        lambda: huge_png(1_000, 1_000),
        "ends before its last pixel: its header declares 1000 × 1000",
    ),
    "20 000 × 20 000 whole": (lambda: black_png(20_000), r"has 20000 × 20000 = 400000000 pixels"),
    "a line": (lambda: encoded(Image.new("RGB", (1, 60_000))), "its shorter side made"),
}
