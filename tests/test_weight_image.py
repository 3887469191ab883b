"""Packed weights under each runtime: small on disk, bit-exact in the session, refused when they do not fit."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
from built import build, recipe_of

from archiver.export.image import pack_onnx
from archiver.packaging.verify import verify
from handlers.errors import UnsoundArchive
from handlers.packed_weights import encode_all, write_encoded
from handlers.weight_image import PACKED, read_image

WIDE = {"hidden_size": 64, "intermediate_size": 128}
# What a stage leaves → the least number of times the packed weights are smaller than fp32, biases and norms included.
STAGES = {
    "codebook": ({"share": {"method": "codebook", "bits": 4, "targets": ["@layers", "@embeddings"]}}, 3.5),
    "binary": ({"quantize": {"method": "binary", "targets": ["@layers", "@embeddings"]}}, 5.0),
    "grid": (
        {"quantize": {"method": "weight-only", "bits": 4, "group_size": 32, "targets": ["@layers", "@embeddings"]}},
        3.5,
    ),
    "zeros": ({"prune": {"method": "l1", "sparsity": 0.75, "targets": ["@layers", "@embeddings"]}}, 2.2),
    "layers": ({"share": {"method": "layers", "groups": 1}}, 1.3),
    "fixed-point": ({"quantize": {"method": "fixed-point", "format": "q2.5"}}, 2.5),
}  # fmt: skip


# Every codec under torch; those to which the graph's transposed weights matter under the others, whose exports take long.
PAIRS = [
    *(("torch", stage) for stage in STAGES),
    *(("onnxruntime", stage) for stage in ("grid", "binary", "layers")),
    *(("openvino", stage) for stage in ("grid", "codebook")),
]


@pytest.mark.parametrize(("runtime", "stage"), PAIRS)
def test_small_on_disk_and_exact(tiny_model, tmp_path, stage, runtime):
    chosen, times = STAGES[stage]
    recipe = recipe_of(tmp_path, tiny_model(**WIDE), compress=[chosen], serve={"runtime": runtime})
    built = build(recipe, tmp_path / "store")
    size = built.manifest["size"]
    after = built.manifest["stages"][0]["metrics"]["after"]
    found = built.manifest["metrics"]["compressed"]
    assert found["cross_entropy"] == pytest.approx(after["cross_entropy"], abs=1e-4)
    assert verify(built.path) == []
    with zipfile.ZipFile(built.path) as archive:
        # The weights alone: beside them an IR of a tiny model is mostly XML.
        stored = archive.getinfo(PACKED if runtime != "torch" else "model.safetensors").file_size
        assert size["original_bytes"] / stored > times
        names = set(archive.namelist())
        if runtime != "torch":
            assert PACKED in names
            assert "model.bin" not in names
            assert json.loads(archive.read("serving.json"))["session"]["weights"] == PACKED
            assert b"safetensors" in archive.read("requirements.txt")


def test_int8_of_a_codebook_stays_small(tiny_model, tmp_path):
    stages = [
        {"share": {"method": "codebook", "bits": 3, "targets": ["@layers", "@embeddings"]}},
        {"quantize": {"method": "static-int8", "samples": 8}},
    ]
    recipe = recipe_of(tmp_path, tiny_model(**WIDE), compress=stages, serve={"runtime": "onnxruntime"})
    size = build(recipe, tmp_path / "store").manifest["size"]
    recipe = recipe_of(tmp_path, tiny_model(**WIDE), compress=stages[1:], serve={"runtime": "onnxruntime"})
    plain = build(recipe, tmp_path / "plain").manifest["size"]
    assert size["weight_bytes"] < 0.75 * plain["weight_bytes"]


def test_what_does_not_pack_stays_as_it_was(tmp_path):
    import onnx
    from onnx import helper, numpy_helper

    weight = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", 1, ["n", 64])],
        [helper.make_tensor_value_info("y", 1, ["n", 64])],
        [numpy_helper.from_array(weight, "w")],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph), str(path))
    before = path.read_bytes()
    assert not pack_onnx(path, {})
    assert path.read_bytes() == before
    assert not (tmp_path / PACKED).exists()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "describes no image"),
        ({"size": -1, "at": {}}, "describes no image"),
        ({"size": 4000, "at": {"w": [0]}}, "leaves the image"),
        ({"size": 5000, "at": {"w": [1000]}}, "leaves the image"),
        ({"size": 5000, "at": {"w": [-4]}}, "leaves the image"),
        ({"size": 5000, "at": {}}, "has no place"),
        ({"size": 5000, "at": {"w": "0"}}, "has no place"),
    ],
)
def test_an_image_that_does_not_fit_is_refused(tmp_path, image, message):
    more = {} if image is None else {"image": image}
    write_encoded(tmp_path / PACKED, encode_all({"w": np.arange(1024, dtype=np.float32)}), more)
    with pytest.raises(UnsoundArchive, match=message):
        read_image(tmp_path / PACKED)


def test_an_image_by_hand(tmp_path):
    arrays = {"a": np.array([1, 2], np.uint8), "b": np.array([3.0], np.float32)}
    write_encoded(tmp_path / PACKED, encode_all(arrays), {"image": {"size": 12, "at": {"a": [0, 10], "b": [4]}}})
    found = read_image(tmp_path / PACKED)
    assert found.tolist() == [1, 2, 0, 0, *np.array([3.0], np.float32).view(np.uint8).tolist(), 0, 0, 1, 2]
