"""Masked words: the tokenizer finds the text's own tokens around them, and the same seed masks the same ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import SENTENCES, _bpe_tokenizer, _wordpiece_tokenizer
from tokenizers import Tokenizer

from archiver.data.text.masks import MaskedExample, mask_words, read_masked
from archiver.errors import DataError

TOKENIZERS = {"wordpiece": _wordpiece_tokenizer, "bpe": _bpe_tokenizer}


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("most", [1, 4])
def test_the_words_stood_where_the_masks_stand(kind: str, most: int) -> None:
    made = TOKENIZERS[kind]()
    content, mask = made.backend_tokenizer.to_str().encode(), made.mask_token
    texts = [f"{a} , {b} : Ünïted {c}!" for a in SENTENCES for b in SENTENCES for c in SENTENCES[:2]]
    found = mask_words(texts, content, mask, 64, most)
    tokenizer = Tokenizer.from_buffer(content)
    assert len(found) == len(texts)
    for text, example in zip(texts, found, strict=True):
        tokens, words = tokenizer.encode(example.text).tokens, list(example.words)
        assert 1 <= len(words) <= most
        assert [words.pop(0) if token == mask else token for token in tokens] == tokenizer.encode(text).tokens
        assert not words
    assert found == mask_words(texts, content, mask, 64, most)
    assert found != mask_words(texts, content, mask, 64, most, seed=1)


def test_tokens_beyond_max_length_stay() -> None:
    made = _wordpiece_tokenizer()
    (found,) = mask_words(["the , " * 3 + "cat " * 9], made.backend_tokenizer.to_str().encode(), "[MASK]", 5, 9)
    assert found.words == ("the",)
    assert found.text.endswith("cat " * 9)


def test_texts_without_words(tmp_path: Path) -> None:
    content = _wordpiece_tokenizer().backend_tokenizer.to_str().encode()
    (tmp_path / "a.txt").write_text("! ? .\n, ,\n")
    with pytest.raises(DataError, match=r"a\.txt has no text in which a word can be masked"):
        read_masked(tmp_path / "a.txt", None, content, "[MASK]", 16, 1)
    (tmp_path / "b.txt").write_text("! ? .\ncat !\n")
    assert read_masked(tmp_path / "b.txt", None, content, "[MASK]", 16, 1) == [MaskedExample("[MASK] !", ("cat",))]
