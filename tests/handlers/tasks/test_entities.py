"""Entities are those of transformers' TokenClassificationPipeline, whatever the strategy and the tokenizer."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handlers.inputs.texts.windows import cut
from handlers.tasks.text.entities import STRATEGIES, Token, Vocabulary, find_entities, token_differences

LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "MISC"]
TEXTS = (
    "this film is very good",
    "Zoe\u0308 runs cafe\u0301s in the unplayed, un-funny scene!",
    "the 👩‍👩‍👧 man 北京 plays…   music\twithout storying",
    "don't eat at O'Brian's (great) plots.",
)


def tagger(folder: Path, unknown: str) -> tuple[Any, Callable[..., list[dict[str, Any]]]]:
    """transformers' pipeline, and ours on the same model."""
    import torch
    import transformers
    from tokenizers import Tokenizer

    pipe = transformers.pipeline("token-classification", model=str(folder))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    vocabulary = Vocabulary(tokenizer, unknown)

    def find(text: str, **options: Any) -> list[dict[str, Any]]:
        (window,) = cut(tokenizer.encode(text), pair=False, length=64, default=0, most=1, where="inputs")
        with torch.inference_mode():
            logits = pipe.model(input_ids=torch.tensor([window.ids])).logits[0].numpy()
        shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        tokens = [Token(window.ids[place], place, *window.offsets[place]) for place in window.text]
        return find_entities(text, tokens, shares[window.text.start : window.text.stop], LABELS, vocabulary, **options)

    return pipe, find


@pytest.mark.parametrize(("kind", "unknown"), [("bert", "[UNK]"), ("roberta", "<unk>")])
def test_every_strategy_equals_the_pipeline(tiny_model: Callable[..., Path], kind: str, unknown: str) -> None:
    folder = tiny_model(kind, "token-classification", id2label=dict(enumerate(LABELS)))
    pipe, find = tagger(folder, unknown)
    seen = set()
    for text in TEXTS:
        for strategy in STRATEGIES:
            for ignored in (["O"], [], ["PER", "B-LOC"]):
                with warnings.catch_warnings():  # of tokenizers that mark no subwords
                    warnings.simplefilter("ignore", UserWarning)
                    expected = pipe(text, aggregation_strategy=strategy, ignore_labels=ignored)
                found = find(text, strategy=strategy, ignored=ignored)
                assert [list(entity) for entity in found] == [list(entity) for entity in expected]
                for ours, theirs in zip(found, expected, strict=True):
                    assert ours["score"] == pytest.approx(float(theirs["score"]), abs=2e-6)
                    assert {**ours, "score": 0} == {**theirs, "score": 0}
                    seen.add(strategy)
    assert seen == set(STRATEGIES)


class Names:
    """A tokenizer's face: single characters, each its own token."""

    model = None
    decoder = None

    def id_to_token(self, number: int) -> str:
        return chr(number)

    def token_to_id(self, name: str) -> int | None:
        return None


def test_labels_beyond_b_and_i_group_with_their_equals() -> None:
    text = "a b c d"
    tokens = [Token(ord(text[place]), place, place, place + 1) for place in (0, 2, 4, 6)]
    labels = ["O", "B-X", "I-X", "NOUN"]
    scores = np.eye(4, dtype=np.float32)[[1, 2, 1, 3]] * 0.5 + 0.1
    found = find_entities(text, tokens, scores, labels, Vocabulary(Names(), None), strategy="simple")
    assert [(entity["entity_group"], entity["start"], entity["end"], entity["word"]) for entity in found] == [
        ("X", 0, 3, "a b"),
        ("X", 4, 5, "c"),
        ("NOUN", 6, 7, "d"),
    ]
    assert find_entities("\u200b", [], np.zeros((0, 4), np.float32), labels, Vocabulary(Names(), None)) == []


def test_answers_are_compared_token_by_token() -> None:
    stored = [{"O": 0.25, "B-X": 0.75}, {"O": 1.0, "B-X": 0.0}]
    assert token_differences(stored, [{"O": 0.5, "B-X": 0.5}, {"O": 1.0, "B-X": 0.0}]) == 0.25
    assert token_differences(stored, stored[:1]) == float("inf")
    assert token_differences(stored[:1], [{"O": 1.0}]) == float("inf")
