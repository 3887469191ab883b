"""Image files to pixels: formats, EXIF, modes; what is broken is refused with its reason and numbers, at no cost."""

from __future__ import annotations

import base64
import sys
import tracemalloc
import warnings
from io import BytesIO

import numpy as np
import pytest
from image_files import BROKEN, encoded, picture, turned
from PIL import Image, ImageOps

from handlers.errors import BadRequest, UnsoundArchive
from handlers.inputs.media.image_file import ImageReader

READER = ImageReader(1_000_000)


def read(body: bytes) -> Image.Image:
    return READER.read(READER.file(body, "inputs"))


@pytest.mark.parametrize("kind", ["png", "bmp", "gif", "jpeg", "webp"])
def test_formats_are_read_as_pillow_reads_them(kind):
    body = encoded(picture(), kind)
    found = read(body)
    assert found.mode == "RGB" and found.size == (40, 30)
    assert np.array_equal(found, Image.open(BytesIO(body)).convert("RGB"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpeg", "webp", "png"])
def test_exif_orientation(kind, orientation):
    image = picture()
    body = turned(image, orientation, kind, **({"quality": 95} if kind != "png" else {}))
    expected = ImageOps.exif_transpose(Image.open(BytesIO(body))).convert("RGB")
    found = read(body)
    assert found.size == ((30, 40) if orientation > 4 else (40, 30))
    assert np.array_equal(found, expected)


def test_exif_data_that_cannot_be_read_say_nothing():
    body = encoded(picture(), "jpeg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff garbage")
    assert read(body).size == (40, 30)
    strange = turned(picture(), 77)
    assert read(strange).size == (40, 30)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_modes_become_rgb(mode):
    image = picture().convert(mode)
    body = encoded(image, "jpeg" if mode == "CMYK" else "png", **({"quality": 100} if mode == "CMYK" else {}))
    found = read(body)
    assert found.mode == "RGB"
    if mode != "CMYK":
        assert np.array_equal(found, image.convert("RGB"))


def test_a_palette_with_transparent_bytes_is_read_without_a_warning():
    image = picture().convert("P")
    body = encoded(image, "png", transparency=bytes(range(256)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(body).mode == "RGB"


def test_sixteen_bits_of_grey_keep_their_shades():
    grey = (np.arange(64 * 64).reshape(64, 64) * 16).astype(np.uint16)
    found = np.asarray(read(encoded(Image.fromarray(grey))))
    assert np.array_equal(found[..., 0], grey >> 8)


def test_the_first_frame_of_an_animation():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for kind in ("gif", "webp", "png"):
        body = encoded(
            frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "webp" else {})
        )
        assert np.asarray(read(body))[4, 4].tolist() == [255, 0, 0]


def test_base64_and_data_urls():
    body = encoded(picture())
    text = base64.b64encode(body).decode()
    for form in (text, "\n".join([text[:50], text[50:]]), f"data:image/png;base64,{text}"):
        assert READER.file(form, "inputs").body == body
    file = READER.file(body, "inputs")
    assert (file.width, file.height) == (40, 30)
    assert READER.file(file.to_text(), "stored") == file
    assert len(repr(file)) < 100


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (7, r"inputs\[1\] is a number; an image \(PNG, JPEG, WebP, GIF or BMP\) is expected, as a text in base64"),
        ({"url": "x"}, "is an object; an image"),
        ("", "is a file of 0 bytes; an image"),
        ("no base64!", r"is a text that is not base64 \(.*\); send an image"),
        ("data:image/png,abc", r"is a data: URL without ';base64,'; send data:image/png;base64,…"),
        ("https://example.org/cat.png", "is an address, and none is fetched; send an image"),
    ],
)
def test_what_is_no_file(value, message):
    with pytest.raises(BadRequest, match=message):
        READER.file(value, "inputs[1]")


@pytest.mark.parametrize("what", [name for name in BROKEN if name != "a line"])
def test_broken_files_are_refused_with_their_reason(what):
    make, message = BROKEN[what]
    body = make()
    tracemalloc.start()
    with pytest.raises(BadRequest, match=f"inputs {message}"):
        read(body)
    assert tracemalloc.get_traced_memory()[1] < 4_000_000
    tracemalloc.stop()


def test_every_cut_of_a_file_is_refused_or_read():
    for kind in ("png", "jpeg", "webp", "gif", "bmp"):
        body = encoded(picture(), kind)
        for end in range(1, len(body), 37):
            try:
                assert read(body[:end]).size == (40, 30)
            except BadRequest as error:
                assert "inputs" in str(error)


def test_pillow_may_be_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UnsoundArchive, match="this archive needs pillow>=13, which this host's Python cannot import"):
        ImageReader(1, "pillow>=13")
