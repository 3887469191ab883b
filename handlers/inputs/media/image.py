"""Images as a kind of input: resized, cropped and normalised as the model knows them, with Pillow and numpy alone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from handlers.errors import BadRequest
from handlers.inputs.base import Input
from handlers.inputs.media.image_file import ImageFile, ImageReader
from handlers.requirements import required

_REQUEST_IMAGES = 4  # of the largest size: what one request may ask to be decoded, in pixels
_ALWAYS = 1_000_000  # pixels that resizing may make where images are bounded to fewer: small ones are made larger


@dataclass(frozen=True)
class Preprocessing:
    """From an RGB image to pixel_values; serving.json holds it as `image`.

    Args:
        height, width: of the result.
        shortest_edge: the image is first resized so that its shorter side has this length; None: to `resize_to`.
        resize_to: [height, width] that it is resized to; None with no shortest_edge: it is not resized.
        resample: Pillow's number of the filter.
        factor, offset: [3] for red, green and blue: value = pixel · factor + offset, of pixels from 0 to 255.
        reverse: blue comes first.
    """

    height: int
    width: int
    shortest_edge: int | None
    resize_to: tuple[int, int] | None
    resample: int
    factor: tuple[float, ...]
    offset: tuple[float, ...]
    reverse: bool = False

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Preprocessing":
        """What `to_json` gave, also after it was written and read."""
        lists = {name: tuple(value) for name, value in stored.items() if isinstance(value, list)}
        return cls(**{**stored, **lists})

    def to_json(self) -> dict[str, Any]:
        """JSON-able."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of an image of this size after it was resized."""
        if self.shortest_edge is not None:
            short, long = min(width, height), max(width, height)
            new_long = int(self.shortest_edge * long / short)
            return (self.shortest_edge, new_long) if width <= height else (new_long, self.shortest_edge)
        if self.resize_to is not None:
            return self.resize_to[1], self.resize_to[0]
        return width, height

    def pixels(self, image: Any) -> np.ndarray:
        """[height, width, 3] uint8 of a PIL image in RGB: resized, then the middle of it, with black around a small one."""
        size = self.resized(*image.size)
        # Also where the size stays: Pillow then copies.
        array = np.asarray(image.resize(size, resample=self.resample) if self._resizes else image)
        return _middle(array, self.height, self.width)

    def values(self, items: Sequence[np.ndarray], rows: int) -> np.ndarray:
        """[rows, 3, height, width] float32 of [n] arrays as `pixels` gives them; rows beyond n are zeros."""
        found = np.zeros((rows, 3, self.height, self.width), np.float32)
        factor, offset = (np.array(each, np.float32)[:, None, None] for each in (self.factor, self.offset))
        for row, item in enumerate(items):
            channels = item[..., ::-1] if self.reverse else item
            np.multiply(channels.transpose(2, 0, 1), factor, out=found[row])
            found[row] += offset
        return found

    @property
    def _resizes(self) -> bool:
        return self.shortest_edge is not None or self.resize_to is not None


class Image(Input[ImageFile, np.ndarray]):
    """Image files as a kind of input; each fills one row of the model's array, whatever its size was.

    Args:
        preprocessing: how pixels become the model's input.
        max_pixels: most pixels of one image as it is sent, and of what resizing makes of it.
        requirement: the Pillow that is needed, as in requirements.txt.
    """

    allowed: ClassVar[str] = (
        "send an image (PNG, JPEG, WebP, GIF or BMP) as the body, or in JSON as base64: "
        '{"inputs": "iVBORw0…"}, {"inputs": ["…", …]}'
    )
    max_bytes: ClassVar[int] = 32 << 20

    def __init__(self, preprocessing: Preprocessing, max_pixels: int, requirement: str = "pillow") -> None:
        self.preprocessing = preprocessing
        self.max_pixels = max_pixels
        self.reader = ImageReader(max_pixels, requirement)

    @classmethod
    def open(cls, folder: Path, serving: Mapping[str, Any]) -> "Image":
        """The images of an extracted archive: `image` and `max_pixels` of its serving.json."""
        preprocessing = Preprocessing.from_json(serving["image"])
        return cls(preprocessing, serving["max_pixels"], required(folder, "pillow"))

    def decode(self, value: Any, where: str) -> ImageFile:
        file = self.reader.file(value, where)
        self._check_resized(file)
        return file

    def check_together(self, values: Sequence[ImageFile]) -> None:
        together, most = sum(value.width * value.height for value in values), _REQUEST_IMAGES * self.max_pixels
        if together > most:
            raise BadRequest(f"the {len(values)} images have {together} pixels together; at most {most} are allowed")

    def encode(self, values: Sequence[ImageFile], parameters: Mapping[str, Any]) -> list[np.ndarray]:
        """[n] arrays [height, width, 3] uint8: one image after another, so that one alone lies decoded in memory."""
        return [self.preprocessing.pixels(self.reader.read(value)) for value in values]

    def size(self, item: np.ndarray) -> int:
        return 1

    def collate(self, items: Sequence[np.ndarray], size: int, rows: int) -> dict[str, np.ndarray]:
        return {"pixel_values": self.preprocessing.values(items, rows)}

    def to_stored(self, value: ImageFile) -> Any:
        return value.to_text()

    def from_stored(self, stored: Any) -> ImageFile:
        return self.reader.file(stored, "the stored image")

    def _check_resized(self, value: ImageFile) -> None:
        """A line of pixels as high as the model wants it would be millions of pixels long. Turned, it is as large."""
        width, height = self.preprocessing.resized(value.width, value.height)
        if width * height > max(self.max_pixels, _ALWAYS):
            raise BadRequest(
                f"{value.where} has {value.width} × {value.height} pixels: its shorter side made "
                f"{self.preprocessing.shortest_edge} pixels, it would have {width} × {height}, and at most "
                f"{max(self.max_pixels, _ALWAYS)} pixels are allowed; send a part that is less long"
            )


def _middle(array: np.ndarray, height: int, width: int) -> np.ndarray:
    """[height, width, 3] around the middle of [h, w, 3], with zeros where it is too small."""
    found_height, found_width = array.shape[:2]
    if (found_height, found_width) == (height, width):
        return array
    top, left = (found_height - height) // 2, (found_width - width) // 2
    if top >= 0 and left >= 0:
        return np.ascontiguousarray(array[top : top + height, left : left + width])
    tall, wide = max(height, found_height), max(width, found_width)
    above, beside = math.ceil((tall - found_height) / 2), math.ceil((wide - found_width) / 2)
    whole = np.zeros((tall, wide, 3), np.uint8)
    whole[above : above + found_height, beside : beside + found_width] = array
    top, left = top + above, left + beside
    return whole[max(0, top) : top + height, max(0, left) : left + width]
