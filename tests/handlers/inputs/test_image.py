"""Images as a kind of input: what a request may send, and arrays by hand."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from image_files import BROKEN, encoded, picture
from PIL import Image as Pillow

from handlers.errors import BadRequest
from handlers.inputs.media.image import Image, Preprocessing

PLAIN = Preprocessing(4, 6, None, None, 2, (1.0, 2.0, 3.0), (0.0, 10.0, -1.0))


def images(max_pixels: int = 1_000_000, **changes: object) -> Image:
    made = Preprocessing(32, 32, None, (32, 32), 2, (1 / 127.5,) * 3, (-1.0,) * 3)
    return Image(dataclasses.replace(made, **changes), max_pixels)


def test_values_by_hand():
    image = Pillow.new("RGB", (6, 4), (10, 20, 30))
    image.putpixel((5, 0), (1, 2, 3))
    found = PLAIN.values([PLAIN.pixels(image)], 2)
    assert found.shape == (2, 3, 4, 6) and found.dtype == np.float32
    assert found[0, :, 0, 5].tolist() == [1.0, 14.0, 8.0]
    assert found[0, :, 3, 5].tolist() == [10.0, 50.0, 89.0]
    assert not found[1].any()
    reverse = dataclasses.replace(PLAIN, reverse=True)
    assert reverse.values([reverse.pixels(image)], 1)[0, :, 0, 5].tolist() == [3.0, 14.0, 2.0]


@pytest.mark.parametrize(
    ("size", "expected"), [((100, 50), (64, 32)), ((50, 100), (32, 64)), ((33, 33), (32, 32)), ((7, 5), (44, 32))]
)
def test_the_shorter_side(size, expected):
    assert images(shortest_edge=32, resize_to=None).preprocessing.resized(*size) == expected


def test_a_small_image_gets_black_around_it_and_a_large_one_loses_its_rim():
    white = Pillow.new("RGB", (2, 7), (255, 255, 255))
    found = PLAIN.pixels(white)[..., 0]
    assert found.shape == (4, 6)
    assert found.tolist() == [[0, 0, 255, 255, 0, 0]] * 4


def test_settings_travel_as_json():
    made = images(shortest_edge=40, resize_to=None).preprocessing
    assert Preprocessing.from_json(json.loads(json.dumps(made.to_json()))) == made
    assert Preprocessing.from_json(json.loads(json.dumps(images().preprocessing.to_json()))) == images().preprocessing


def test_images_of_different_sizes_share_a_batch():
    inputs = images()
    values = [
        inputs.decode(encoded(picture(*size), kind), "inputs")
        for size in ((40, 30), (300, 20), (1, 1))
        for kind in ("png", "webp")
    ]
    items = inputs.encode(values, {})
    assert {item.shape for item in items} == {(32, 32, 3)} and {inputs.size(item) for item in items} == {1}
    arrays = inputs.collate(items, 1, 8)
    assert arrays["pixel_values"].shape == (8, 3, 32, 32)
    alone = inputs.collate(items[3:4], 1, 1)["pixel_values"][0]
    assert np.array_equal(arrays["pixel_values"][3], alone)


def test_a_stored_example_is_the_same_image():
    inputs = images()
    value = inputs.decode(encoded(picture()), "inputs")
    assert inputs.from_stored(json.loads(json.dumps(inputs.to_stored(value)))) == value


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_is_refused(what):
    make, message = BROKEN[what]
    inputs = images(shortest_edge=32, resize_to=None)
    with pytest.raises(BadRequest, match=rf"inputs\[2\] .*{message}"):
        inputs.encode([inputs.decode(make(), "inputs[2]")], {})


def test_large_images_are_refused_with_the_numbers():
    inputs = images(max_pixels=1_000)
    with pytest.raises(BadRequest, match="inputs has 40 × 30 = 1200 pixels; at most 1000 are allowed"):
        inputs.decode(encoded(picture()), "inputs")
    values = [inputs.decode(encoded(picture(30, 30)), f"inputs[{index}]") for index in range(5)]
    with pytest.raises(BadRequest, match="the 5 images have 4500 pixels together; at most 4000 are allowed"):
        inputs.check_together(values)
    assert len(inputs.encode(values, {})) == 5  # the bound is a request's, not a build's


def test_a_long_line_is_not_made_as_high_as_the_model_wants():
    inputs = images(shortest_edge=32, resize_to=None)
    body = encoded(Pillow.new("RGB", (2_000, 1)))
    reason = r"2000 × 1 pixels: its shorter side made 32 pixels, it would have 64000 × 32, and at most 1000000 pixels"
    with pytest.raises(BadRequest, match=reason):
        inputs.decode(body, "inputs[0]")
