"""Triton's HTTP client: named tensors as JSON and as bytes."""

import json
import sys
from urllib.parse import urlsplit

import numpy as np
import tritonclient.http as triton

given = json.load(sys.stdin)
texts = given["texts"]
client = triton.InferenceServerClient(urlsplit(given["url"]).netloc)


def headers() -> dict[str, str]:
    """Anew for each call: the client adds to what it is given."""
    return {"Authorization": f"Bearer {given['key']}"}


for binary in (True, False):
    sent = triton.InferInput("text", [len(texts)], "BYTES")
    sent.set_data_from_numpy(np.array(texts, dtype=object), binary_data=binary)
    found = client.infer("vectors", [sent], headers=headers(), request_id="7")
    assert np.abs(found.as_numpy("output") - np.array(given["vectors"])).max() < 1e-5
    assert found.get_response()["id"] == "7"
    told = client.infer("films", [sent], headers=headers(), parameters={"top_k": 2}).as_numpy("output")
    assert [json.loads(one) for one in told] == given["films"], told
    written = client.infer(
        "writer", [sent], headers=headers(), parameters={"max_new_tokens": 6, "return_full_text": False}
    ).as_numpy("output")
    assert [json.loads(one)[0]["generated_text"] for one in written] == given["written"], written
try:
    sent = triton.InferInput("text", [1], "FP32")
    sent.set_data_from_numpy(np.zeros(1, np.float32))
    client.infer("films", [sent], headers=headers())
except triton.InferenceServerException as error:
    assert "number" in error.message(), error
else:
    raise AssertionError("a number is no text")
print("done")
