"""Storage codecs: which one is taken, what it takes by hand, bit-exact return, and files that are not what they say."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from archiver.storage.codec_choice import WeightLayout, encode
from archiver.storage.packing import encoded_bytes, write_packed
from handlers.errors import UnsoundArchive
from handlers.storage.bit_packing import pack, packed_size, unpack, width_of
from handlers.storage.packed import load_packed, read_description

ROWS, COLUMNS = 32, 64
DRAW = np.random.default_rng(0)
NOISE = DRAW.normal(size=(ROWS, COLUMNS)).astype(np.float32)


def zeros(share: float) -> np.ndarray:
    array = NOISE.copy().reshape(-1)
    array[DRAW.permutation(array.size)[: round(share * array.size)]] = 0
    return array.reshape(NOISE.shape)


def two_of_four() -> np.ndarray:
    groups = np.abs(NOISE).reshape(-1, 4)
    array = NOISE.reshape(-1, 4).copy()
    np.put_along_axis(array, groups.argsort(axis=1)[:, :2], 0.0, axis=1)
    return array.reshape(NOISE.shape)


def values(count: int) -> np.ndarray:
    return DRAW.normal(size=count).astype(np.float32)[DRAW.integers(0, count, NOISE.shape)]


def signs(rows: int) -> np.ndarray:
    scale = np.abs(DRAW.normal(size=(rows, 1))).astype(np.float32) + np.float32(0.1)
    return np.where(NOISE >= 0, scale, -scale).astype(np.float32)


def grid(bits: int, groups: int, zero: bool) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, int]]:
    scale = (np.abs(DRAW.normal(size=(ROWS, groups))) + 0.01).astype(np.float32)
    low, high = (0, 2**bits) if zero else (-(2 ** (bits - 1)), 2 ** (bits - 1))
    q = DRAW.integers(low, high, (ROWS, groups, COLUMNS // groups)).astype(np.float32)
    z = DRAW.integers(0, 2**bits, (ROWS, groups)).astype(np.float32) if zero else np.zeros((ROWS, groups), np.float32)
    array = ((q - z[:, :, None]) * scale[:, :, None]).astype(np.float32)
    return array.reshape(ROWS, COLUMNS), (scale, z, bits)


FP32 = 4 * ROWS * COLUMNS
# Name → (array, codec, bytes by hand). 2048 values: 256 bytes are a bit a value.
CASES: dict[str, tuple[np.ndarray, str, int]] = {
    "noise": (NOISE, "plain", FP32),
    "half of it zero": (zeros(0.5), "bitmask", 256 + FP32 // 2),
    "2:4": (two_of_four(), "n:m", FP32 // 2 + 1024 * 2 // 8),
    "16 values": (values(16), "palette", 1024 + 16 * 4),
    "5 values": (values(5), "palette", 3 * 256 + 5 * 4),
    "two values": (signs(1), "sign", 256 + 4 + 2),
    "a sign and a scale a row": (signs(ROWS), "sign", 256 + ROWS * 4 + 2),
    "bfloat16": ((NOISE.view(np.uint32) & 0xFFFF0000).view(np.float32), "half", FP32 // 2),
    "float16": (NOISE.astype(np.float16).astype(np.float32), "half", FP32 // 2),
    "int8 of 4 values a row": (
        (np.arange(ROWS)[:, None] + DRAW.integers(0, 4, NOISE.shape)).astype(np.int8), "palette", 512 + ROWS * 4
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bytes_by_hand_and_back_bit_for_bit(tmp_path, name):
    array, codec, size = CASES[name]
    found = encode(array)
    assert found.entry["codec"] == codec
    assert found.nbytes == size
    assert encoded_bytes(array) == size
    write_packed(tmp_path / "w", {"w": array, "other": np.arange(3)})
    back = load_packed(tmp_path / "w")
    assert back["w"].dtype == array.dtype
    assert np.array_equal(back["w"], array)
    assert back["other"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("noise", "2:4")])
def test_a_transposed_weight_is_as_small(tmp_path, name):
    array, _, size = CASES[name]
    turned = np.ascontiguousarray(array.T)
    write_packed(tmp_path / "w", {"w": turned})
    assert np.array_equal(load_packed(tmp_path / "w")["w"], turned)
    assert encoded_bytes(turned) <= size * 1.02


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_grids_in_groups(tmp_path, bits, zero, turned):
    array, grouping = grid(bits, 4, zero)
    array = np.ascontiguousarray(array.T) if turned else array
    layout = WeightLayout(grouping=grouping)
    # q at its bits; scales of 4 groups a row; zero points as bytes at most.
    assert encode(array, layout).nbytes <= bits * 256 + ROWS * 4 * 4 + (ROWS * 4 if zero else 0) + 2**bits + 16
    write_packed(tmp_path / "w", {"w": array}, {"w": layout})
    assert np.array_equal(load_packed(tmp_path / "w")["w"], array)


def test_a_grid_that_is_not_the_weights_is_not_believed(tmp_path):
    array, grouping = grid(4, 4, False)
    array[3, 5] += np.float32(1e-4)
    write_packed(tmp_path / "w", {"w": array}, {"w": WeightLayout(grouping=grouping)})
    assert np.array_equal(load_packed(tmp_path / "w")["w"], array)


def test_factors(tmp_path):
    u, v = (DRAW.normal(size=(size, 4)).astype(np.float32) for size in (ROWS, COLUMNS))
    product = (u.astype(np.float64) @ v.astype(np.float64).T).astype(np.float32)
    layout = WeightLayout(factors=(u, v))
    found = encode(product, layout)
    assert found.entry["codec"] == "factors"
    assert found.nbytes == 4 * 4 * (ROWS + COLUMNS)
    write_packed(tmp_path / "w", {"w": product}, {"w": layout})
    assert np.array_equal(load_packed(tmp_path / "w")["w"], product)
    assert encode(NOISE, layout).entry["codec"] == "plain"


def test_codecs_nest(tmp_path):
    """Zeros by a mask, the rest by a codebook: 256 bytes of mask, 3 bits for each of about 512 values."""
    array = np.where(zeros(0.75) != 0, values(8), 0).astype(np.float32)
    found = encode(array)
    assert found.entry["codec"] == "bitmask"
    assert found.entry["parts"]["values"]["codec"] == "palette"
    assert found.nbytes < 256 + 512 * 3 / 8 + 8 * 4 + 40
    write_packed(tmp_path / "w", {"w": array})
    assert np.array_equal(load_packed(tmp_path / "w")["w"], array)


def test_one_tensor_under_two_names_lies_there_once(tmp_path):
    write_packed(tmp_path / "w", {"a": NOISE, "b": NOISE.copy(), "c": NOISE + 1})
    assert len(load_file(tmp_path / "w")) == 2
    assert read_description(tmp_path / "w")["tensors"]["b"] == {"codec": "alias", "of": "a"}
    back = load_packed(tmp_path / "w")
    assert np.array_equal(back["a"], back["b"])


def test_the_same_tensors_give_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        write_packed(tmp_path / name, {"a": values(16) * 0 + 1, "b": two_of_four()})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("array", [
    np.zeros((64, 64), np.float32), np.zeros((0, 5), np.float32), np.float32(3.0), np.full((40, 40), np.nan, np.float32),
    np.full((40, 40), -0.0, np.float32), np.arange(5000), np.ones(5000, np.bool_), np.full(5000, 7, np.int8),
], ids=range(8))  # fmt: skip
def test_odd_tensors(tmp_path, array):
    write_packed(tmp_path / "w", {"w": np.asarray(array)})
    back = load_packed(tmp_path / "w")["w"]
    assert np.array_equal(back.reshape(np.shape(array)), array, equal_nan=back.dtype.kind == "f")


@pytest.mark.parametrize("bits", range(9))
def test_packing_bits(bits):
    data = DRAW.integers(0, 2**bits, 1003).astype(np.uint8)
    packed = pack(data, bits)
    assert packed.size == packed_size(bits, 1003) <= -(-1003 * bits // 8) + 2
    assert np.array_equal(unpack(packed, bits, 1003), data)
    assert [width_of(count) for count in (1, 2, 3, 4, 5, 16, 17, 256)] == [0, 1, 2, 2, 3, 4, 5, 8]


def broken(change: Any, tmp_path: Any) -> None:
    """A sound file of a 4-bit palette, its description changed."""
    path = tmp_path / "w"
    write_packed(path, {"w": values(16)})
    description = read_description(path)
    change(description)
    save_file(load_file(path), path, metadata={"marpress": json.dumps(description)})
    load_packed(path)


CHANGES = {
    "unknown codec 'zip'": lambda d: d["tensors"]["w"].update(codec="zip"),
    "describe no tensor": lambda d: d["tensors"]["w"].update(shape=[-1]),
    "format version 9": lambda d: d.update(version=9),
    "bits is 99": lambda d: d["tensors"]["w"].update(bits=99),
    "do not go with": lambda d: d["tensors"]["w"].update(bits=3),
    "are expected": lambda d: d["tensors"]["w"].update(shape=[ROWS, COLUMNS + 8]),
    "is missing": lambda d: d["tensors"].update(x={"codec": "plain", "dtype": "int8", "shape": [1]}),
    "which is not stored": lambda d: d["tensors"].update(x={"codec": "alias", "of": "y"}),
    "needs the part": lambda d: d["tensors"]["w"].update(parts={}),
    "malformed": lambda d: d["tensors"].update(w=[]),
    "unknown codec \\[\\]": lambda d: d["tensors"]["w"].update(codec=[]),
    "dtype {} and shape": lambda d: d["tensors"]["w"].update(dtype={}),
    "describes no tensors": lambda d: d.update(tensors=3),
}


@pytest.mark.parametrize("message", CHANGES)
def test_what_a_file_claims_is_checked(tmp_path, message):
    with pytest.raises(UnsoundArchive, match=message):
        broken(CHANGES[message], tmp_path)


def test_a_shape_that_no_memory_holds_is_refused(tmp_path):
    """Zeros take no bits, so nothing in the file is too short for any shape."""
    path = tmp_path / "w"
    write_packed(path, {"w": np.zeros((64, 64), np.float32)})
    description = read_description(path)
    description["tensors"]["w"]["shape"] = [2**30, 2**30]
    save_file(load_file(path), path, metadata={"marpress": json.dumps(description)})
    with pytest.raises(UnsoundArchive, match="cannot be made here"):
        load_packed(path)


def test_an_index_beyond_the_table_is_refused(tmp_path):
    path = tmp_path / "w"
    write_packed(path, {"w": values(13)})
    stored = load_file(path)
    stored["w::indices"] = np.full_like(stored["w::indices"], 255)
    save_file(stored, path, metadata={"marpress": json.dumps(read_description(path))})
    with pytest.raises(UnsoundArchive, match="an index of 15 where there are 13"):
        load_packed(path)


@pytest.mark.parametrize("content", [b"", b"no safetensors at all", b"\x08\0\0\0\0\0\0\0{}      "])
def test_other_files_are_no_packed_weights(tmp_path, content):
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(UnsoundArchive, match="cannot be read as packed weights"):
        load_packed(tmp_path / "w")
