"""Text that comes piece by piece: joined it is the text of all tokens, and it ends before a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers

from handlers.generation.stream import TextStream

TASK = "text-generation"
TEXTS = {
    "plain": "this film is very good, not dull!",
    "split characters": "naïve café 日本語 😀👩‍👩‍👧 é ﷽ ok",
    "only emoji": "😀😃😄😁😆😅🤣😂🙂🙃😉😊😇🥰😍🤩",
    "long": "the dog runs fast, the cat eats! 日本 😀 " * 12,
    "spaces": "a  b\n\n\tc   \n d",
}


def sentencepiece_like() -> Tokenizer:
    """Letters, and for all else one token a byte, as Llama 2's has them."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz,.!"]
    tokenizer = Tokenizer(
        models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


@pytest.fixture(scope="module", params=["byte-level", "word-piece", "byte-fallback"])
def tokenizer(request, tiny_model) -> Any:
    if request.param == "byte-fallback":
        return sentencepiece_like()
    kind = {"byte-level": ("llama", TASK), "word-piece": ("bert", "text-classification")}[request.param]
    return Tokenizer.from_file(str(tiny_model(*kind) / "tokenizer.json"))


@pytest.fixture(scope="module")
def byte_level(tiny_model) -> Any:
    return Tokenizer.from_file(str(tiny_model("llama", TASK) / "tokenizer.json"))


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def pieces(stream: TextStream, ids: Sequence[int], step: int = 1) -> list[str]:
    return [*(stream.feed(ids[at : at + step]) for at in range(0, len(ids), step)), stream.end()]


@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_joined_pieces_are_the_text_of_all_tokens(tokenizer, text, step) -> None:
    everything = ids_of(tokenizer, text)
    whole = tokenizer.decode(everything)
    for start in (0, 1, len(everything) // 2, len(everything) - 1):
        prompt, ids = everything[:start], everything[start:]
        if (before := tokenizer.decode(prompt)) != whole[: len(before)]:
            continue  # a prompt is a text: it does not end within a character
        found = pieces(TextStream(tokenizer, prompt), ids, step)
        assert before + "".join(found) == whole, start
        if "�" not in whole:
            assert not any("�" in piece for piece in found)


def test_a_prompt_of_byte_tokens_that_is_longer_than_what_is_looked_at() -> None:
    """Eight tokens back stands the middle of a character: what comes must not be spoilt by it."""
    tokenizer = sentencepiece_like()
    for before in ("日本語", "日本語日本語", "a😀😀😀", "😀😀é"):
        stream = TextStream(tokenizer, ids_of(tokenizer, before))
        after = ids_of(tokenizer, "語😀")[1:]
        assert "".join(pieces(stream, after)) == "語😀"


def test_no_half_characters_on_the_way(byte_level) -> None:
    ids = ids_of(byte_level, "😀a")
    assert len(ids) == 5
    assert pieces(TextStream(byte_level, []), ids) == ["", "", "", "😀", "a", ""]
    stream = TextStream(byte_level, [])
    assert [stream.feed([token]) for token in ids[:2]] == ["", ""]
    assert stream.end() == byte_level.decode(ids[:2]) == "�"
    assert stream.end() == ""


def test_a_long_text_is_not_decoded_anew_from_its_beginning(byte_level) -> None:
    class Counting:
        longest = 0

        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            self.longest = max(self.longest, len(ids))
            return byte_level.decode(ids, skip_special_tokens=skip_special_tokens)

    counting = Counting()
    ids = ids_of(byte_level, TEXTS["long"])
    assert len(ids) > 200
    assert "".join(pieces(TextStream(counting, ids), ids)) == byte_level.decode(ids)
    assert counting.longest < 50


def test_special_tokens_are_no_text(byte_level) -> None:
    end = byte_level.token_to_id("</s>")
    ids = ids_of(byte_level, "good film")
    assert "".join(pieces(TextStream(byte_level, []), [*ids[:1], end, *ids[1:], end])) == byte_level.decode(ids)


# (text, stops, what is left of it); the byte-level tokenizer cuts "xyz" into letters, and "good" is one token
STOPS: list[tuple[str, list[str], str]] = [
    ("this film is very good", ["film"], "this "),
    ("this good film", ["oo"], "this g"),  # within one token
    ("q xyz q", ["xyz"], "q "),  # over tokens
    ("q xy q xyz", ["xyz"], "q xy q "),  # the first time it does not complete
    ("q xxyz", ["xyz"], "q x"),
    ("abababac", ["ababac"], "ab"),
    ("q xyz q", ["q xyzz", "yz", "z"], "q x"),  # the earliest place, not the first in the list
    ("q xyz q", ["xyz", "x"], "q "),
    ("日本語 film", ["語"], "日本"),
    ("one 😀 two", ["😀 t"], "one "),
    ("two\n\nthree", ["\n\n"], "two"),
    ("film", ["film"], ""),
]


@pytest.mark.parametrize("step", [1, 2, 100])
@pytest.mark.parametrize(("text", "stops", "left"), STOPS, ids=[repr(text) for text, _, _ in STOPS])
def test_nothing_behind_a_stop_string(byte_level, text, stops, left, step) -> None:
    stream = TextStream(byte_level, [], stops)
    ids = ids_of(byte_level, text)
    assert "".join(pieces(stream, ids, step)) == left
    assert stream.stopped
    assert stream.feed(ids) == "" and stream.end() == ""


def test_what_could_begin_a_stop_string_is_held_back_until_it_does_not(byte_level) -> None:
    stream = TextStream(byte_level, [], ["xyz", ""])
    letter: Callable[[str], list[int]] = lambda text: ids_of(byte_level, text)  # noqa: E731
    assert [stream.feed(letter(text)) for text in "qxyq"] == ["q", "", "", "xyq"]
    assert [stream.feed(letter(text)) for text in "xy"] == ["", ""]
    assert stream.end() == "xy" and not stream.stopped


def test_a_stop_string_behind_which_a_character_begins(byte_level) -> None:
    """One step can bring both: the text ends there, whether or not the character is ever completed."""
    stream = TextStream(byte_level, [], ["xyz"])
    half = ids_of(byte_level, "😀")[:2]
    assert stream.feed([*ids_of(byte_level, "q xyz"), *half]) == "q "
    assert stream.stopped and stream.end() == ""


def test_a_stop_string_in_the_prompt_is_none(byte_level) -> None:
    stream = TextStream(byte_level, ids_of(byte_level, "q xy"), ["xyz"])
    assert stream.feed(ids_of(byte_level, "z")) == "z" and not stream.stopped
