"""Other people's forms over the wire: their paths reach the handler, and their answers are those of Hugging Face's form."""

from __future__ import annotations

import base64
import json
import struct

import numpy as np
import pytest
from live_client import Grpc, Rest

from archiver.torchserve.server import TorchServe

TEXTS = ["a dull film", "not one funny scene, größe 🎬"]


@pytest.fixture
def vectors(server: TorchServe) -> list[list[float]]:
    with Rest(server) as rest:
        found: list[list[float]] = rest.post("vectors", {"inputs": TEXTS}).value
    return found


def test_openai_s_embeddings_below_the_version(server: TorchServe, vectors: list[list[float]]) -> None:
    with Rest(server) as rest:
        reply = rest.post("vectors/v1/embeddings", {"input": TEXTS, "model": "any"})
        packed = rest.post("vectors/v1/v1/embeddings", {"input": TEXTS[0], "encoding_format": "base64"})
        wrong = rest.post("vectors/v1/embeddings", {"input": 5})
        broken = rest.post("vectors/v1/embeddings", b'{"input": ')
        missing = rest.post("vectors/v1/chat/completions", {"messages": []})
        models = rest.get("/predictions/vectors/v1/models")
    assert reply.status == 200, reply.body
    np.testing.assert_allclose([one["embedding"] for one in reply.value["data"]], vectors, atol=1e-5)
    assert reply.value["model"] == "vectors" and reply.value["usage"]["prompt_tokens"] > 8
    number = np.frombuffer(base64.b64decode(packed.value["data"][0]["embedding"]), "<f4")
    np.testing.assert_allclose(number, vectors[0], atol=1e-5)
    assert (wrong.status, missing.status, broken.status) == (400, 404, 400)
    for error in (wrong, missing, broken):
        assert error.value["error"]["type"] == "invalid_request_error"
    assert "this model has 'models', 'embeddings'" in missing.message
    assert (models.status, models.value["data"][0]["id"]) == (200, "vectors"), models.body


def test_kserve_v1(server: TorchServe, vectors: list[list[float]]) -> None:
    with Rest(server) as rest, Grpc(server) as grpc:
        films = rest.post("films", {"inputs": TEXTS, "parameters": {"top_k": 2}}).value
        reply = rest.post("/v1/models/films:predict", {"instances": TEXTS, "parameters": {"top_k": 2}})
        vector = grpc.predict("vectors", {"instances": TEXTS}).value["predictions"]
        wrong = rest.post("/v1/models/films:predict", {"instances": ["a", 5]})
    assert reply.status == 200 and reply.value == {"predictions": films}
    np.testing.assert_allclose(vector, vectors, atol=1e-5)
    assert wrong.status == 400 and wrong.value["error"].startswith("instances[1] is a number")


def test_kserve_v2_as_json_and_as_binary_tensors(server: TorchServe, vectors: list[list[float]]) -> None:
    data = b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in TEXTS)
    tensor = {"name": "text", "datatype": "BYTES", "shape": [2]}
    head = json.dumps({"id": "1", "inputs": [tensor | {"parameters": {"binary_data_size": len(data)}}]}).encode()
    sent = {"Inference-Header-Content-Length": str(len(head))}
    with Rest(server) as rest:
        plain = rest.post("/v2/models/vectors/infer", {"inputs": [tensor | {"data": TEXTS}]})
        binary = rest.post("/v2/models/vectors/infer", head + data, "application/octet-stream", sent)
        films = rest.post("/v2/models/films/infer", {"inputs": [tensor | {"data": TEXTS}]})
        expected = rest.post("films", {"inputs": TEXTS}).value
        wrong = rest.post("/v2/models/vectors/infer", head + data[:-1], "application/octet-stream", sent)
    for reply in (plain, binary):
        assert reply.status == 200, reply.body
        (output,) = reply.value["outputs"]
        assert (output["datatype"], output["shape"]) == ("FP32", [2, len(vectors[0])])
        np.testing.assert_allclose(np.reshape(output["data"], output["shape"]), vectors, atol=1e-5)
    assert binary.value["id"] == "1"
    assert [json.loads(one) for one in films.value["outputs"][0]["data"]] == expected
    assert wrong.status == 400 and "bytes are left in the body" in wrong.value["error"]
