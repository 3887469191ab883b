"""LangChain's classes for OpenAI."""

import json
import sys

from langchain_openai import ChatOpenAI, OpenAIEmbeddings

given = json.load(sys.stdin)
texts = given["texts"]


def base(name: str) -> str:
    return f"{given['url']}/predictions/{name}/v1"


chat = ChatOpenAI(base_url=base("writer"), api_key=given["key"], model="writer", max_tokens=6, temperature=0)
assert chat.invoke(texts[0]).content == given["chat"]
assert "".join(str(piece.content) for piece in chat.stream(texts[0])) == given["chat"]
# check_embedding_ctx_length would send token ids of OpenAI's own tokenizer.
vectors = OpenAIEmbeddings(
    base_url=base("vectors"), api_key=given["key"], model="vectors", check_embedding_ctx_length=False
)
found = vectors.embed_documents(texts)
for one, other in zip(found, given["vectors"], strict=True):
    assert max(abs(a - b) for a, b in zip(one, other, strict=True)) < 1e-5
print("done")
