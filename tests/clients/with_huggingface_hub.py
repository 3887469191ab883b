"""huggingface_hub's InferenceClient, whose model is the address of a served archive."""

import base64
import json
import sys

from huggingface_hub import InferenceClient

given = json.load(sys.stdin)
texts = given["texts"]


def client(name: str) -> InferenceClient:
    return InferenceClient(model=f"{given['url']}/predictions/{name}", token=given["key"])


writer = client("writer")
written = writer.text_generation(texts[0], max_new_tokens=6, do_sample=False, return_full_text=False)
assert written == given["written"][0], written
pieces = list(writer.text_generation(texts[0], max_new_tokens=6, do_sample=False, return_full_text=False, stream=True))
assert "".join(pieces) == given["written"][0], pieces

chat = InferenceClient(base_url=f"{given['url']}/predictions/writer/v1", api_key=given["key"])
messages = [{"role": "user", "content": texts[0]}]
found = chat.chat_completion(messages, max_tokens=6, temperature=0)
assert found.choices[0].message.content == given["chat"], found
streamed = chat.chat_completion(messages, max_tokens=6, temperature=0, stream=True)
assert "".join(one.choices[0].delta.content or "" for one in streamed) == given["chat"]

vector = client("vectors").feature_extraction(texts[0])
assert abs(vector.reshape(-1) - given["vectors"][0]).max() < 1e-5, vector
few = client("vectors").feature_extraction(texts[0], dimensions=3)
assert abs(few.reshape(-1) - given["few"][0]).max() < 1e-5, few
labels = client("films").text_classification(texts[0], top_k=2)
assert {one.label: round(one.score, 5) for one in labels} == {
    one["label"]: round(one["score"], 5) for one in given["films"][0]
}
sound = base64.b64decode(given["sound"])
assert client("hears").automatic_speech_recognition(sound).text == given["heard"]["text"]
assert client("letters").automatic_speech_recognition(sound).text == given["letters"]["text"]
print("done")
