"""The openai package: completions, chats, streams, embeddings, models and errors, with its sync and async clients."""

import asyncio
import json
import sys
from typing import Literal

import openai
import pydantic

given = json.load(sys.stdin)
texts = given["texts"]


def base(name: str) -> str:
    return f"{given['url']}/predictions/{name}/v1"


def near(one: list[float], other: list[float]) -> bool:
    return len(one) == len(other) and max(abs(a - b) for a, b in zip(one, other, strict=True)) < 1e-5


writer = openai.OpenAI(base_url=base("writer"), api_key=given["key"], max_retries=0)
greedy = {"model": "writer", "max_tokens": 6, "temperature": 0}

# ---- completions
whole = writer.completions.create(prompt=texts[0], **greedy)
assert whole.choices[0].text == given["written"][0], whole
assert whole.usage.completion_tokens == 6 and whole.choices[0].finish_reason == "length"
several = writer.completions.create(prompt=texts, n=2, logprobs=0, echo=True, **greedy)
assert [one.text for one in several.choices] == [
    text + new for text, new in zip(texts, given["written"], strict=True) for _ in (0, 1)
]
assert all(len(one.logprobs.token_logprobs) == 6 for one in several.choices)
streamed = list(
    writer.completions.create(prompt=texts[0], stream=True, stream_options={"include_usage": True}, **greedy)
)
assert "".join(one.choices[0].text for one in streamed if one.choices) == given["written"][0]
assert streamed[-1].usage.completion_tokens == 6

# ---- chats
messages = [{"role": "user", "content": texts[0]}]
chat = writer.chat.completions.create(messages=messages, metadata={"a": "b"}, store=False, user="me", **greedy)
assert chat.choices[0].message.content == given["chat"], chat
assert chat.choices[0].message.role == "assistant"
chosen = writer.chat.completions.create(messages=messages, logprobs=True, top_logprobs=4, n=2, **greedy)
assert len(chosen.choices) == 2 and len(chosen.choices[1].logprobs.content) == 6
assert all(len(one.top_logprobs) == 4 for one in chosen.choices[1].logprobs.content)
assert all(one.top_logprobs[0].token == one.token for one in chosen.choices[1].logprobs.content)  # it is greedy
# A token that is forced comes every time.
forced = writer.completions.create(prompt=texts[0], logit_bias={"70": 100}, logprobs=0, **greedy).choices[0]
assert len(set(forced.logprobs.tokens)) == 1 and len(forced.logprobs.tokens) == 6
with writer.chat.completions.stream(messages=messages, **greedy) as stream:
    deltas = [event.delta for event in stream if event.type == "content.delta"]
assert "".join(deltas) == given["chat"]
raw = writer.chat.completions.with_raw_response.create(messages=messages, **greedy)
assert raw.status_code == 200 and raw.parse().choices[0].message.content == given["chat"]
# Their own types, strictly.
openai.types.chat.ChatCompletion.model_validate(json.loads(raw.text), strict=True)
openai.types.Completion.model_validate(json.loads(json.dumps(whole.to_dict())), strict=True)


# ---- texts by a schema, by a class of pydantic, and calls of functions
class Film(pydantic.BaseModel):
    stars: int = pydantic.Field(ge=0, le=5)
    kind: Literal["drama", "comedy"]


by_schema = {"type": "json_schema", "json_schema": {"name": "film", "schema": Film.model_json_schema(), "strict": True}}
settings = {"model": "writer", "temperature": 1.2, "seed": 3, "messages": messages}
told = writer.chat.completions.create(response_format=by_schema, n=2, **settings)
assert all(Film.model_validate_json(one.message.content) for one in told.choices), told
assert all(one.finish_reason == "stop" for one in told.choices), told
film = writer.chat.completions.parse(response_format=Film, **settings).choices[0].message.parsed
assert isinstance(film, Film)
yes = writer.chat.completions.create(extra_body={"guided_choice": ["yes", "no"]}, **settings).choices[0].message.content
assert yes in ("yes", "no")

tools = [openai.pydantic_function_tool(Film, name="rate")]
called = writer.chat.completions.create(tools=tools, tool_choice="required", **settings).choices[0]
assert called.finish_reason == "tool_calls" and called.message.content is None, called
Film.model_validate_json(called.message.tool_calls[0].function.arguments)
answer = {"role": "tool", "tool_call_id": called.message.tool_calls[0].id, "content": "rated"}
after = writer.chat.completions.create(
    tools=tools, max_tokens=4, **(settings | {"messages": [*messages, called.message, answer]})
)
assert after.choices[0].message.content
with writer.chat.completions.stream(
    tools=tools, tool_choice={"type": "function", "function": {"name": "rate"}}, **settings
) as stream:
    final = stream.get_final_completion().choices[0]
assert isinstance(final.message.tool_calls[0].function.parsed_arguments, Film), final
assert final.finish_reason == "tool_calls"

# ---- embeddings, which it asks for in base64
vectors = openai.OpenAI(base_url=base("vectors"), api_key=given["key"], max_retries=0)
found = vectors.embeddings.create(model="vectors", input=texts)
assert all(near(one.embedding, other) for one, other in zip(found.data, given["vectors"], strict=True))
plain = vectors.embeddings.create(model="vectors", input=texts[0], encoding_format="float")
assert near(plain.data[0].embedding, given["vectors"][0]) and plain.usage.prompt_tokens > 2
few = vectors.embeddings.create(model="vectors", input=texts, dimensions=3)
assert all(near(one.embedding, other) for one, other in zip(few.data, given["few"], strict=True))

# ---- models and errors
assert [one.id for one in writer.models.list()] == ["writer"]
assert writer.models.retrieve("writer").id == "writer"


def refused(kind: type[openai.APIStatusError], call: object, **more: object) -> str:
    try:
        call(**more)
    except kind as error:
        assert error.type in ("invalid_request_error", "server_error"), error.body
        return error.message
    raise AssertionError(f"{kind.__name__} is expected")


assert "logit_bias" in refused(
    openai.BadRequestError, writer.completions.create, prompt="a", logit_bias={"5": 200}, **greedy
)
assert "suffix" in refused(openai.BadRequestError, writer.completions.create, prompt="a", suffix="b", **greedy)
assert "temperature" in refused(
    openai.BadRequestError, writer.chat.completions.create, messages=messages, model="writer", temperature=-1
)
assert "embeddings" in refused(openai.NotFoundError, writer.embeddings.create, model="writer", input="a")
assert "no 'input'" not in refused(openai.NotFoundError, vectors.completions.create, prompt="a", **greedy)


# ---- async
async def together() -> None:
    async with openai.AsyncOpenAI(base_url=base("writer"), api_key=given["key"], max_retries=0) as client:
        answers = await asyncio.gather(*(client.completions.create(prompt=text, **greedy) for text in texts * 4))
        assert [one.choices[0].text for one in answers] == given["written"] * 4
        pieces = [
            piece.choices[0].delta.content or ""
            async for piece in await client.chat.completions.create(messages=messages, stream=True, **greedy)
        ]
        assert "".join(pieces) == given["chat"]


asyncio.run(together())
print("done")
