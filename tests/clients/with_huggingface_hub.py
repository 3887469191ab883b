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

# Held to a grammar, in both of its forms.
schema = {
    "type": "object",
    "properties": {"stars": {"type": "integer", "minimum": 0, "maximum": 5}},
    "required": ["stars"],
    "additionalProperties": False,
}
grammar = {"type": "json", "value": schema}
held = writer.text_generation(texts[0], max_new_tokens=40, grammar=grammar, return_full_text=False)
assert 0 <= json.loads(held)["stars"] <= 5, held
wanted = {"type": "json_schema", "json_schema": {"name": "stars", "schema": schema, "strict": True}}
told = chat.chat_completion(messages, max_tokens=40, response_format=wanted).choices[0].message.content
assert 0 <= json.loads(told)["stars"] <= 5, told
tools = [{"type": "function", "function": {"name": "rate", "description": "a film", "parameters": schema}}]
called = chat.chat_completion(messages, max_tokens=60, tools=tools, tool_choice="required").choices[0].message
assert called.tool_calls[0].function.name == "rate", called
assert 0 <= json.loads(called.tool_calls[0].function.arguments)["stars"] <= 5, called

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
