"""KServe's InferenceRESTClient, in both protocols."""

import asyncio
import json
import sys

from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

given = json.load(sys.stdin)
texts = given["texts"]
headers = {"Authorization": f"Bearer {given['key']}"}


async def main() -> None:
    first = InferenceRESTClient(RESTConfig(protocol="v1"))
    found = await first.infer(
        given["url"], {"instances": texts, "parameters": {"top_k": 2}}, headers=headers, model_name="films"
    )
    assert found["predictions"] == given["films"], found
    second = InferenceRESTClient(RESTConfig(protocol="v2"))
    request = InferRequest(model_name="vectors", infer_inputs=[InferInput("text", [len(texts)], "BYTES", data=texts)])
    answer = await second.infer(given["url"], request, headers=headers, model_name="vectors")
    (output,) = answer.outputs
    flat = [number for one in given["vectors"] for number in one]
    assert max(abs(a - b) for a, b in zip(output.data, flat, strict=True)) < 1e-5
    assert list(output.shape) == [len(texts), len(given["vectors"][0])]


asyncio.run(main())
print("done")
