"""Cohere's client: rerank, in both versions of its API."""

import json
import sys

import cohere

given = json.load(sys.stdin)
texts = given["texts"]
base = f"{given['url']}/predictions/ranker/v1"
expected = [(one["index"], one["score"]) for one in given["ranked"]]

for client in (cohere.Client(given["key"], base_url=base), cohere.ClientV2(given["key"], base_url=base)):
    found = client.rerank(model="ranker", query=texts[0], documents=texts)
    assert [(one.index, one.relevance_score) for one in found.results] == expected, found
    (best,) = client.rerank(model="ranker", query=texts[0], documents=texts, top_n=1).results
    assert (best.index, best.relevance_score) == expected[0]
print("done")
