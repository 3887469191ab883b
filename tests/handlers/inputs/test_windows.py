"""Windows hold what transformers' tokenizers put into theirs, and their characters count in the text as it was sent."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from handlers.errors import BadRequest
from handlers.inputs.texts.windows import Window, cut

TEXT = "a Zoe\u0308 film 👩‍👩‍👧 is  very GOOD, the cafe\u0301 plot was “not” bad 🎬! " * 4


def tokenizer_of(folder: Path) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def windows_of(tokenizer: Any, *texts: str, length: int, overlap: int | None = None, most: int = 100) -> list[Window]:
    encoding = tokenizer.encode(*texts)
    pair = len(texts) == 2
    return cut(encoding, pair=pair, length=length, overlap=overlap, default=length // 2, most=most, where="inputs")


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("question", [None, "who is not bad?"])
def test_windows_are_those_of_transformers(tiny_model: Callable[..., Path], kind: str, question: str | None) -> None:
    import transformers

    folder = tiny_model(kind)
    texts = (TEXT,) if question is None else (question, TEXT)
    expected = transformers.AutoTokenizer.from_pretrained(folder)(
        *texts,
        truncation=True if question is None else "only_second",
        max_length=40,
        stride=12,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_token_type_ids=True,
    )
    found = windows_of(tokenizer_of(folder), *texts, length=40, overlap=12)
    assert len(found) > 2
    assert [window.ids for window in found] == expected["input_ids"]
    assert [window.type_ids for window in found] == expected["token_type_ids"]
    for index, window in enumerate(found):
        sequence = [place == (0 if question is None else 1) for place in expected.sequence_ids(index)]
        assert [place in window.text for place in range(len(window.ids))] == sequence
        assert window.words == expected.word_ids(index)
        inside = slice(window.text.start, window.text.stop)
        # Where a window begins, tokenizers takes a leading space for one that it has added itself.
        assert window.offsets[inside][1:] == expected["offset_mapping"][index][inside][1:]


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_each_token_belongs_to_one_window_that_sees_both_its_sides(tiny_model: Callable[..., Path], kind: str) -> None:
    tokenizer = tokenizer_of(tiny_model(kind))
    found = windows_of(tokenizer, TEXT, length=20, overlap=9)
    numbers = [window.first + place - window.text.start for window in found for place in window.own]
    assert numbers == list(range(len(tokenizer.encode(TEXT).ids) - 2))
    for window, following in pairwise(found):
        assert window.text.stop - window.own.stop >= 4 or following is found[-1]
        assert following.own.start - following.text.start >= 4


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_characters_slice_the_text_as_it_was_sent(tiny_model: Callable[..., Path], kind: str) -> None:
    (window,) = windows_of(tokenizer_of(tiny_model(kind)), "Zoe\u0308 👩‍👩‍👧 GOOD film", length=64)
    pieces = dict.fromkeys("Zoe\u0308 👩‍👩‍👧 GOOD film"[start:end].strip() for start, end in window.offsets[1:-1])
    assert "film" in "".join(pieces) and any("👩" in piece for piece in pieces)
    last = [window.offsets[place] for place in window.text][-1]
    assert last[1] == len("Zoe\u0308 👩‍👩‍👧 GOOD film")


def test_a_text_without_tokens_is_one_window(tiny_model: Callable[..., Path]) -> None:
    tokenizer = tokenizer_of(tiny_model("bert"))
    (alone,) = windows_of(tokenizer, "\u200b", length=8)
    assert len(alone.ids) == 2 and len(alone.text) == len(alone.own) == 0
    (asked,) = windows_of(tokenizer, "who", "\u200b", length=32)
    assert len(asked.text) == 0 and asked.ids == tokenizer.encode("who", "\u200b").ids


def test_what_cannot_be_cut_is_refused(tiny_model: Callable[..., Path]) -> None:
    tokenizer = tokenizer_of(tiny_model("bert"))
    text = "the film is good " * 30
    with pytest.raises(BadRequest, match=r"by 6 tokens: 6 of their 8 tokens are inputs's; ask for 5 or less"):
        windows_of(tokenizer, text, length=8, overlap=6)
    with pytest.raises(
        BadRequest, match=r"inputs has 120 tokens and would take 115 windows of 8 .* at most 100 are allowed"
    ):
        windows_of(tokenizer, text, length=8, overlap=5)
    with pytest.raises(BadRequest, match=r"inputs has no room: 11 of 8 tokens"):
        windows_of(tokenizer, "the film is good the film is good", text, length=8)
    # Three quarters of the room at most, where nobody asks for an overlap.
    assert len(windows_of(tokenizer, "the film is good the", text, length=16, most=61)) == 57
