"""Token ids: what `tokenizers` alone gives must be what transformers' tokenizer gives."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from handlers.inputs.text import Encoded, Encoder, TextInput

PAIRS = [
    ("this film is very good", "a dull and boring story"),
    ("good", "the man plays music in the warm scene , not one funny scene"),
    ("a great actor in a poor plot " * 4, "the dog runs fast, the cat eats!"),
    ("bad " * 40, "slow " * 41),
]


def reference(path, inputs, max_length):
    """transformers' own ids and type ids, one input at a time, the longer of a pair cut first."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    found = []
    for item in inputs:
        out = tokenizer(
            item.text,
            item.text_pair,
            truncation="longest_first" if max_length else False,
            max_length=max_length,
            return_token_type_ids=True,
        )
        found.append(Encoded(out["input_ids"], out["token_type_ids"]))
    return found


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize("max_length", [8, 9, 16, 64])
def test_equals_transformers(tiny_model, sentences, kind, max_length):
    path = tiny_model(kind, "text-classification")
    inputs = [TextInput(text) for text in (*sentences, "zzz qq, Ünïcode 日本!")] + [TextInput(*p) for p in PAIRS]
    encoder = Encoder(path / "tokenizer.json", max_length=max_length, pad_id=0)
    found = encoder.encode(inputs)
    assert found == reference(path, inputs, max_length)
    assert max(len(item.ids) for item in found) <= max_length


def test_equals_transformers_on_real_sentences(shared):
    path = shared / "models/minilm-sst2"
    lines = (shared / "data/sst2/dev.tsv").read_text(encoding="utf-8").splitlines()[:200]
    texts = [line.split("\t")[0] for line in lines]
    inputs = [TextInput(text) for text in texts] + [TextInput(*pair) for pair in zip(texts, texts[1:], strict=False)]
    encoder = Encoder(path / "tokenizer.json", max_length=32, pad_id=0)
    assert encoder.encode(inputs) == reference(path, inputs, 32)


def test_truncation_off_keeps_all_and_comes_back(tiny_model):
    path = tiny_model("bert", "text-classification")
    encoder = Encoder(path / "tokenizer.json", max_length=8, pad_id=0)
    long = [TextInput("good " * 30), TextInput("good " * 5, "bad " * 10)]
    assert [len(item.ids) for item in encoder.encode(long, truncate=False)] == [32, 18]
    assert encoder.encode(long, truncate=False) == reference(path, long, None)
    assert [len(item.ids) for item in encoder.encode(long)] == [8, 8]


def test_a_tokenizer_that_pads_and_truncates_by_itself_is_reset(tiny_model, tmp_path):
    path = tiny_model("bert", "text-classification")
    stored = json.loads((path / "tokenizer.json").read_text())
    stored["truncation"] = {"max_length": 5, "strategy": "OnlyFirst", "stride": 0, "direction": "Right"}
    stored["padding"] = {
        "strategy": {"Fixed": 20}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]",
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored))
    inputs = [TextInput("this film is very good"), TextInput("good")]
    found = Encoder(tmp_path / "tokenizer.json", max_length=64, pad_id=0).encode(inputs)
    assert found == Encoder(path / "tokenizer.json", max_length=64, pad_id=0).encode(inputs)
    assert [len(item.ids) for item in found] == [7, 3]


def test_padding_by_hand(tiny_model):
    encoder = Encoder(tiny_model("bert") / "tokenizer.json", max_length=8, pad_id=7)
    arrays = encoder.pad([Encoded([2, 5, 3], [0, 0, 1]), Encoded([2, 3], [0, 0])], 4, 3)
    assert arrays["input_ids"].tolist() == [[2, 5, 3, 7], [2, 3, 7, 7], [7, 7, 7, 7]]
    assert arrays["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]]
    assert arrays["token_type_ids"].tolist() == [[0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.int64)}
    assert encoder.pad([Encoded([2, 3], [0, 0])], 2)["input_ids"].shape == (1, 2)


def test_threads_that_cut_and_threads_that_do_not(tiny_model) -> None:
    """A worker's streams encode side by side, and a request may forbid to be cut."""
    encoder = Encoder(tiny_model() / "tokenizer.json", max_length=8, pad_id=0)
    texts = [TextInput("a good film " * 40)] * 8

    def lengths(truncate: bool) -> set[int]:
        return {len(one.ids) for _ in range(60) for one in encoder.encode(texts, truncate=truncate)}

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lengths, [True, False, True, False]))
    assert found == [{8}, {122}, {8}, {122}]
