"""Packed weights under each runtime: small on disk, bit-exact in the session, refused when they do not fit."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from built import build, recipe_of
from onnx import helper, numpy_helper
from sessions import open_session

from archiver.export.graph.weights import pack_onnx, pack_openvino
from archiver.packaging.verify import verify
from archiver.storage.codec_choice import WeightLayout
from archiver.storage.layouts import content_key
from archiver.storage.packing import encode_all, write_encoded
from handlers.errors import UnsoundArchive
from handlers.storage.graph_weights import PACKED, read_graph_weights
from handlers.storage.packed import read_description

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
    measured = [{verb: body | {"measure": True} for verb, body in chosen.items()}]
    layers = {"num_hidden_layers": 2 if stage == "layers" else 1}  # an export takes seconds a layer
    recipe = recipe_of(tmp_path, tiny_model(**WIDE, **layers), compress=measured, serve={"runtime": runtime})
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
    recipe = recipe_of(
        tmp_path, tiny_model(**WIDE, num_hidden_layers=1), compress=stages, serve={"runtime": "onnxruntime"}
    )
    size = build(recipe, tmp_path / "store").manifest["size"]
    recipe = recipe_of(
        tmp_path, tiny_model(**WIDE, num_hidden_layers=1), compress=stages[1:], serve={"runtime": "onnxruntime"}
    )
    plain = build(recipe, tmp_path / "plain").manifest["size"]
    assert size["weight_bytes"] < 0.75 * plain["weight_bytes"]


def write_graph(path: Path, weights: dict[str, np.ndarray]) -> None:
    """y = x · each weight [64, 64] in turn, with tanh between them."""
    names, nodes = list(weights), []
    for at, name in enumerate(names):
        nodes.append(helper.make_node("MatMul", ["x" if at == 0 else f"t{at - 1}", name], [f"m{at}"]))
        nodes.append(helper.make_node("Tanh", [f"m{at}"], ["y" if name == names[-1] else f"t{at}"]))
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 64]) for name in "xy"]
    constants = [numpy_helper.from_array(weight, name) for name, weight in weights.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path.write_bytes(model.SerializeToString(deterministic=True))


def structured() -> dict[str, np.ndarray]:
    """A weight for each codec that the values alone show, transposed ones among them, and noise."""
    draw = np.random.default_rng(0)
    noise = draw.normal(size=(64, 64)).astype(np.float32) / 4
    scales = np.abs(draw.normal(size=(1, 64))).astype(np.float32)
    groups = noise.reshape(-1, 4).copy()
    np.put_along_axis(groups, np.abs(groups).argsort(axis=1)[:, :2], -0.0, axis=1)
    return {
        "palette": draw.normal(size=16).astype(np.float32)[draw.integers(0, 16, (64, 64))],
        "palette a column": np.take_along_axis(noise[:4], draw.integers(0, 4, (64, 64)), axis=0),
        "signs a column": np.sign(noise) * scales,
        "2:4": groups.reshape(64, 64),
        "zeros": np.where(draw.random((64, 64)) < 0.8, np.float32(-0.0), noise),
        "again": draw.normal(size=16).astype(np.float32)[np.arange(4096).reshape(64, 64) % 16],
        "noise": noise,
    }


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.tobytes() == b.tobytes()


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_session_gets_the_very_weights(tmp_path, runtime):
    """The same bits answer from a packed graph as from the graph as it was."""
    x = np.random.default_rng(1).normal(size=(3, 64)).astype(np.float32)
    weights = structured()
    for folder in (tmp_path / "plain", tmp_path / "packed"):
        folder.mkdir()
        write_graph(folder / "model.onnx", weights)
        (folder / "requirements.txt").write_text("safetensors\n")
        if runtime == "openvino":
            openvino = pytest.importorskip("openvino")
            openvino.save_model(
                openvino.convert_model(str(folder / "model.onnx")), folder / "model.xml", compress_to_fp16=False
            )
    packed = tmp_path / "packed"
    model = "model.onnx" if runtime == "onnxruntime" else "model.xml"
    assert pack_onnx(packed / model, {}) if runtime == "onnxruntime" else pack_openvino(packed / model, {})
    codecs = {entry["codec"] for entry in read_description(packed / PACKED)["tensors"].values()}
    assert codecs >= {"palette", "sign", "bitmask", "plain"}
    spec = {"runtime": runtime, "requirement": runtime, "model": model}
    before = open_session(tmp_path / "plain", spec, threads=1).run({"x": x})
    found = open_session(packed, {**spec, "weights": PACKED}, threads=1).run({"x": x})
    assert np.abs(before).max() > 0.01
    assert same_bits(found, before)
    if runtime == "openvino":
        binary = (tmp_path / "plain" / "model.bin").read_bytes()
        assert not (packed / "model.bin").exists()
        # As numbers, since a pruned weight's −0.0 comes back as 0.0.
        assert np.array_equal(read_graph_weights(packed / PACKED).view(np.float32), np.frombuffer(binary, np.float32))
    else:
        image = read_graph_weights(packed / PACKED)
        for item in onnx.load(str(packed / model), load_external_data=False).graph.initializer:
            where = {entry.key: entry.value for entry in item.external_data}
            start = int(where["offset"])
            part = image[start : start + int(where["length"])].view(np.float32).reshape(64, 64)
            assert np.array_equal(part, weights[item.name])


def test_a_hint_reaches_the_transposed_constant(tmp_path):
    """The graph holds Wᵀ under a name of its own: grids are found by content, and save what the values do not show."""
    draw = np.random.default_rng(0)
    scale = (np.abs(draw.normal(size=(64, 2))) + 0.01).astype(np.float32)
    q = draw.integers(-8, 8, (64, 2, 32)).astype(np.float32)
    weight = (q * scale[:, :, None]).reshape(64, 64)
    write_graph(tmp_path / "model.onnx", {"val_3": np.ascontiguousarray(weight.T)})
    assert pack_onnx(tmp_path / "model.onnx", {content_key(weight): WeightLayout(grouping=(scale, None, 4))})
    entry = read_description(tmp_path / PACKED)["tensors"]["val_3"]
    assert (entry["codec"], entry["transposed"]) == ("groups", True)
    assert np.array_equal(read_graph_weights(tmp_path / PACKED).view(np.float32).reshape(64, 64), weight.T)


def test_what_does_not_pack_stays_as_it_was(tmp_path):
    path = tmp_path / "model.onnx"
    write_graph(path, {"w": np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)})
    before = path.read_bytes()
    assert not pack_onnx(path, {})
    assert path.read_bytes() == before
    assert not (tmp_path / PACKED).exists()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "does not describe a graph.s weights"),
        ({"size": -1, "at": {}}, "does not describe a graph.s weights"),
        ({"size": 4000, "at": {"w": [0]}}, "lies outside the graph.s"),
        ({"size": 5000, "at": {"w": [1000]}}, "lies outside the graph.s"),
        ({"size": 5000, "at": {"w": [-4]}}, "lies outside the graph.s"),
        ({"size": 5000, "at": {}}, "has no place"),
        ({"size": 5000, "at": {"w": "0"}}, "has no place"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(tmp_path, image, message):
    more = {} if image is None else {"image": image}
    write_encoded(tmp_path / PACKED, encode_all({"w": np.arange(1024, dtype=np.float32)}), more)
    with pytest.raises(UnsoundArchive, match=message):
        read_graph_weights(tmp_path / PACKED)


def test_graph_weights_by_hand(tmp_path):
    arrays = {"a": np.array([1, 2], np.uint8), "b": np.array([3.0], np.float32)}
    write_encoded(tmp_path / PACKED, encode_all(arrays), {"image": {"size": 12, "at": {"a": [0, 10], "b": [4]}}})
    found = read_graph_weights(tmp_path / PACKED)
    assert found.tolist() == [1, 2, 0, 0, *np.array([3.0], np.float32).view(np.uint8).tolist(), 0, 0, 1, 2]
