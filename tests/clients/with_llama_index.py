"""LlamaIndex's classes for whatever is like OpenAI."""

import json
import sys

from llama_index.core.llms import ChatMessage
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike

given = json.load(sys.stdin)
texts = given["texts"]


def base(name: str) -> str:
    return f"{given['url']}/predictions/{name}/v1"


settings = {"api_base": base("writer"), "api_key": given["key"], "max_tokens": 6, "temperature": 0, "max_retries": 0}
writer = OpenAILike(model="writer", is_chat_model=False, **settings)
assert writer.complete(texts[0]).text == given["written"][0]
chat = OpenAILike(model="writer", is_chat_model=True, **settings)
messages = [ChatMessage(role="user", content=texts[0])]
assert chat.chat(messages).message.content == given["chat"]
assert "".join(piece.delta or "" for piece in chat.stream_chat(messages)) == given["chat"]
vectors = OpenAILikeEmbedding(model_name="vectors", api_base=base("vectors"), api_key=given["key"])
found = vectors.get_text_embedding(texts[0])
assert max(abs(a - b) for a, b in zip(found, given["vectors"][0], strict=True)) < 1e-5
print("done")
