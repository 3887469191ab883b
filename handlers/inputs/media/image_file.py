"""Image files (PNG, JPEG, WebP, GIF, BMP) as RGB pixels, upright as their EXIF orientation says.

A header is read first, and what it declares is held against what is allowed before any pixel is: 30 000 × 30 000 pixels of
one colour fit into a few kilobytes. Of an animation the first frame is taken.
"""

import base64
import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np

from handlers.errors import BadRequest
from handlers.inputs.media.file_bytes import file_bytes
from handlers.requirements import require

WHAT = "an image (PNG, JPEG, WebP, GIF or BMP)"

# How a file of each format begins, and the class of Pillow that reads it. Image.open would also try formats whose readers
# are many and old, and refuses large images without saying how large they are.
_READERS = {
    "PNG": (b"\x89PNG\r\n\x1a\n", 0, "PIL.PngImagePlugin", "PngImageFile"),
    "JPEG": (b"\xff\xd8\xff", 0, "PIL.JpegImagePlugin", "JpegImageFile"),
    "WebP": (b"WEBP", 8, "PIL.WebPImagePlugin", "WebPImageFile"),
    "GIF": (b"GIF8", 0, "PIL.GifImagePlugin", "GifImageFile"),
    "BMP": (b"BM", 0, "PIL.BmpImagePlugin", "BmpImageFile"),
}
_ORIENTATION = 0x0112  # EXIF's tag; the values 2 to 8 are these transpositions, as Pillow numbers them
_UPRIGHT = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}


@dataclass(frozen=True)
class ImageFile:
    """One input, as `ImageReader.file` has found it: not decoded yet.

    Args:
        body: the file's bytes. width, height: in pixels, as its header says.
        where: its place in the request, for messages.
    """

    body: bytes = field(repr=False)
    width: int
    height: int
    where: str = field(default="the image", compare=False)

    def to_text(self) -> str:
        """Its bytes in base64, as a request in JSON sends them."""
        return base64.b64encode(self.body).decode("ascii")


class ImageReader:
    """Image files to pixels.

    Args:
        max_pixels: most pixels of one image, width × height.
        requirement: the Pillow that is needed, as in requirements.txt.
    Raises: UnsoundArchive where the host has no such Pillow.
    """

    def __init__(self, max_pixels: int, requirement: str = "pillow") -> None:
        self.max_pixels = max_pixels
        self._pillow: Any = require("PIL", requirement)

    def file(self, value: Any, where: str) -> ImageFile:
        """One image of a request, of which the header has been read, and no pixel.

        Args:
            value: the file's bytes, or a text: the same in base64, bare or as a data: URL. where: its place in the request.
        Raises: BadRequest for another kind of value, an empty one, what is no base64 or no image, a damaged header, and
            more pixels than are allowed.
        """
        body = file_bytes(value, where, what=WHAT, media="image/png")
        width, height = self._opened(body, where).size
        return ImageFile(body, width, height, where)

    def read(self, file: ImageFile) -> Any:
        """The image as PIL.Image.Image in RGB, upright.

        Raises: BadRequest for pixels that are damaged or missing.
        """
        image = self._opened(file.body, file.where)
        try:
            return _pixels(image)
        except MemoryError:
            raise
        except Exception as error:  # each reader fails in its own way at what it cannot make sense of
            early = "truncated" in str(error) or "not enough image data" in str(error)
            what = "ends before its last pixel" if early else "is damaged"
            raise BadRequest(
                f"{file.where} {what}: its header declares {file.width} × {file.height} pixels, and they cannot be read of "
                f"its {len(file.body)} bytes ({_shown(error)})"
            ) from error

    def _opened(self, body: bytes, where: str) -> Any:
        kind = next((name for name, (mark, at, _, _) in _READERS.items() if body[at : at + len(mark)] == mark), None)
        if kind is None:
            raise BadRequest(f"{where} is no image that can be read: it begins with {body[:8]!r}; send {WHAT}")
        _, _, module, name = _READERS[kind]
        try:
            with _without_warnings():
                image = getattr(importlib.import_module(module), name)(BytesIO(body))
            width, height = image.size
        except MemoryError:
            raise
        except Exception as error:  # as in `read`
            raise BadRequest(
                f"{where} begins as a {kind} file does, and its header is damaged: {_shown(error)}"
            ) from error  # fmt: skip
        if width * height > self.max_pixels:
            raise BadRequest(
                f"{where} has {width} × {height} = {width * height} pixels; at most {self.max_pixels} are allowed"
            )
        if width < 1 or height < 1:
            raise BadRequest(f"{where} has {width} × {height} pixels; at least one is expected")
        return image


def _pixels(image: Any) -> Any:
    with _without_warnings():
        image.load()
        return _upright(_to_rgb(image), image)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Pillow warns of EXIF data that it cannot read, and of colours that a palette makes transparent: neither matters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _to_rgb(image: Any) -> Any:
    if image.mode.startswith("I;16"):  # Pillow would take 256 for white, and what is above it too
        pillow = importlib.import_module("PIL.Image")
        return pillow.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def _upright(image: Any, source: Any) -> Any:
    """As PIL.ImageOps.exif_transpose turns it; EXIF data that cannot be read say nothing."""
    try:
        orientation = source.getexif().get(_ORIENTATION, 1)
    except Exception:  # a viewer would show the image, too
        return image
    method = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _shown(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
