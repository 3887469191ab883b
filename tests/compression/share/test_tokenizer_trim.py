"""Fewer tokens: training texts are cut as before, every other text still is, and every id in the file is the new one."""

from __future__ import annotations

import json
import random

import pytest
from tiny_models import SENTENCES, WORDS
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from archiver.compression.share.tokenizer_trim import trim_tokenizer
from archiver.errors import UnsupportedModelError

TRAIN = SENTENCES[:3]
CORPUS = [*SENTENCES, " ".join(WORDS), "Ünïcödé naïve 東京", "the theme of these themes"]


def _word_piece() -> Tokenizer:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    letters = [prefix + letter for letter in "abcdefghijklmnopqrstuvwxyz" for prefix in ("", "##")]
    # Special tokens in the middle, so that their ids change when words before them go.
    tokens = [*WORDS[:40], *special, *WORDS[40:], *letters]
    vocab = {token: place for place, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )
    tokenizer.enable_padding(pad_id=vocab["[PAD]"], pad_token="[PAD]")
    return tokenizer


def _byte_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(["<s>", "</s>"])  # ids behind the vocabulary's
    ends = (("</s>", tokenizer.token_to_id("</s>")), ("<s>", tokenizer.token_to_id("<s>")))
    tokenizer.post_processor = processors.RobertaProcessing(*ends)
    return tokenizer


def _suffixed_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=260, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _prefixed_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", continuing_subword_prefix="##"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=260, special_tokens=["<unk>"], continuing_subword_prefix="##", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _fallback_bpe() -> Tokenizer:
    """As SentencePiece's BPE: merges with equal products, bytes for unknown characters, merges written as strings."""
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    tokens = ["<unk>", *bytes_, "▁", *"abcdefghijklmnopqrstuvwxyz,.!?'", "th", "he", "the", "▁the", "▁t", "is", "▁is"]
    vocab = {token: place for place, token in enumerate(tokens)}
    merges = [("t", "h"), ("h", "e"), ("th", "e"), ("t", "he"), ("▁", "t"), ("▁", "the"), ("i", "s"), ("▁", "is")]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    spec = json.loads(tokenizer.to_str())
    spec["model"]["merges"] = [" ".join(merge) for merge in spec["model"]["merges"]]
    return Tokenizer.from_str(json.dumps(spec))


def _unigram(byte_fallback: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=["<pad>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if byte_fallback:
        spec = json.loads(tokenizer.to_str())
        spec["model"]["vocab"] += [[f"<0x{value:02X}>", -20.0] for value in range(256)]
        spec["model"]["byte_fallback"] = True
        tokenizer = Tokenizer.from_str(json.dumps(spec))
        tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return tokenizer


def _word_level() -> Tokenizer:
    vocab = {token: place for place, token in enumerate(dict.fromkeys(["[UNK]", *WORDS]))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


KINDS = {
    "word-piece": _word_piece,
    "byte-bpe": _byte_bpe,
    "suffixed-bpe": _suffixed_bpe,
    "prefixed-bpe": _prefixed_bpe,
    "fallback-bpe": _fallback_bpe,
    "unigram": _unigram,
    "unigram-bytes": lambda: _unigram(byte_fallback=True),
    "word-level": _word_level,
}


def _trimmed(old: Tokenizer, texts, also=()):
    used = {place for text in texts for place in old.encode(text).ids}
    found = trim_tokenizer(old.to_str().encode(), used, also)
    return Tokenizer.from_buffer(found.tokenizer_json), found.old_ids


def _random_texts(count: int = 200) -> list[str]:
    chosen = random.Random(0)
    pools = (
        "abcdefghijklmnopqrstuvwxyz ,.!?'",
        "éüñßø ÀÇ",
        "東京大阪の",
        "👍🏽🙂",
        "\n\t\u200b\u0301",
        "АБВгде",
        "0123456789#@",
    )
    texts = ["", " ", "unbelievable theses", "the film THE FILM"]
    for _ in range(count):
        pool = "".join(chosen.sample(pools, chosen.randint(1, len(pools))))
        texts.append("".join(chosen.choice(pool) for _ in range(chosen.randint(1, 30))))
    return texts


@pytest.mark.parametrize("kind", KINDS)
def test_used_texts_are_cut_as_before(kind):
    old = KINDS[kind]()
    new, old_ids = _trimmed(old, TRAIN)
    assert new.get_vocab_size() == len(old_ids) < old.get_vocab_size()
    assert old_ids == sorted(set(old_ids))
    for text in TRAIN:
        for pair in (None, "a dull and boring story"):
            before, after = old.encode(text, pair), new.encode(text, pair)
            if pair is None or set(before.ids) <= set(old_ids):
                assert [old_ids[place] for place in after.ids] == before.ids
                assert after.tokens == before.tokens
                assert after.type_ids == before.type_ids
    assert all(new.id_to_token(now) == old.id_to_token(was) for now, was in enumerate(old_ids))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "word-level"])
def test_every_text_is_cut_and_no_more_becomes_unknown(kind):
    old = KINDS[kind]()
    new, _ = _trimmed(old, TRAIN)
    unknown = {"[UNK]", "<unk>"}
    for text in [*_random_texts(), *CORPUS]:
        before, after = old.encode(text), new.encode(text)
        if not unknown & set(before.tokens):
            assert not unknown & set(after.tokens), text
            if kind != "prefixed-bpe":  # has no decoder
                assert new.decode(after.ids) == old.decode(before.ids), text
        assert new.decode(after.ids) is not None


@pytest.mark.parametrize("kind", ["byte-bpe", "fallback-bpe", "unigram-bytes"])
def test_bytes_cut_every_text_without_loss(kind):
    new, _ = _trimmed(KINDS[kind](), TRAIN)
    for text in _random_texts():
        if "  " in text or text != text.strip():  # the others take spaces for word boundaries
            continue
        assert new.decode(new.encode(text, add_special_tokens=False).ids) == text


def test_word_piece_by_hand():
    spec = json.loads(_word_piece().to_str())
    spec["model"]["vocab"] = {
        token: place
        for place, token in enumerate(
            ["the", "film", "[PAD]", "[UNK]", "[CLS]", "[SEP]", "dog", "a", "##a", "##ed", "!"]
        )
    }
    for token in spec["added_tokens"]:
        token["id"] = spec["model"]["vocab"][token["content"]]
    spec["post_processor"]["special_tokens"]["[CLS]"]["ids"] = [4]
    spec["post_processor"]["special_tokens"]["[SEP]"]["ids"] = [5]
    spec["padding"]["pad_id"] = 2
    found = trim_tokenizer(json.dumps(spec).encode(), [1, 4, 5])
    # "film" is used, the special ones stay, and single characters with and without ##; "the", "dog" and "##ed" go.
    assert found.old_ids == [1, 2, 3, 4, 5, 7, 8, 10]
    new = json.loads(found.tokenizer_json)
    assert new["model"]["vocab"] == {
        "film": 0, "[PAD]": 1, "[UNK]": 2, "[CLS]": 3, "[SEP]": 4, "a": 5, "##a": 6, "!": 7
    }  # fmt: skip
    assert [token["id"] for token in new["added_tokens"]] == [1, 2, 3, 4]
    assert new["post_processor"]["special_tokens"]["[CLS]"]["ids"] == [3]
    assert new["padding"]["pad_id"] == 1


def test_bpe_keeps_both_parts_of_every_kept_token():
    spec = json.loads(_fallback_bpe().to_str())
    ids = spec["model"]["vocab"]
    new = json.loads(trim_tokenizer(json.dumps(spec).encode(), [ids["▁the"]]).tokenizer_json)
    # ▁the = ▁ + the, the = th + e = t + he; is, ▁is and ▁t are nobody's part.
    kept = [token for token in new["model"]["vocab"] if len(token) > 1 and not token.startswith("<")]
    assert kept == ["th", "he", "the", "▁the"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in new["model"]["merges"]]
    assert merges == ["t h", "h e", "th e", "t he", "▁ the"]


def test_unigram_keeps_the_score_of_unknown_characters():
    spec = json.loads(_unigram().to_str())
    spec["model"]["vocab"].append(["zzz", -50.0])
    new, old_ids = _trimmed(Tokenizer.from_str(json.dumps(spec)), ["the"])
    assert old_ids[-1] == len(spec["model"]["vocab"]) - 1  # an unknown character's score is the least one's less 10
    assert json.loads(new.to_str())["model"]["unk_id"] == old_ids.index(1)


def test_ids_that_others_name_are_kept():
    old = _byte_bpe()
    _, plain = _trimmed(old, TRAIN)
    gone = next(place for place in range(old.get_vocab_size()) if place not in plain)
    assert gone in _trimmed(old, TRAIN, also=[gone, 10**6])[1]


def test_ids_without_an_order_are_refused():
    spec = json.loads(_word_level().to_str())
    spec["model"]["vocab"] = {"[UNK]": 1, "the": 2}
    added = {"id": 0, "content": "<s>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    spec["added_tokens"] = [added | {"special": True}]  # `tokenizers` gives what is not in the vocabulary the next id
    with pytest.raises(UnsupportedModelError, match="ids have gaps that fewer tokens cannot keep"):
        trim_tokenizer(json.dumps(spec).encode(), [1, 2])


def test_unknown_kind_is_refused():
    spec = json.loads(_word_level().to_str())
    spec["model"]["type"] = "Phoneme"
    with pytest.raises(UnsupportedModelError, match="the tokenizer is a Phoneme, whose tokens cannot be dropped"):
        trim_tokenizer(json.dumps(spec).encode(), [1])


@pytest.mark.parametrize(("model", "data"), [("minilm-sst2", "sst2/train.tsv"), ("docs-lm", "docs/train.txt")])
def test_real_tokenizers(shared, model, data):
    old = Tokenizer.from_file(str(shared / "models" / model / "tokenizer.json"))
    old.no_padding()
    lines = (shared / "data" / data).read_text(encoding="utf-8").splitlines()[:3000]
    train, other = lines[:1000], lines[1000:2000]
    new, old_ids = _trimmed(old, train)
    assert len(old_ids) < 0.9 * old.get_vocab_size()
    for before, after in zip(old.encode_batch(train), new.encode_batch(train), strict=True):
        assert [old_ids[place] for place in after.ids] == before.ids
    for text, before, after in zip(other, old.encode_batch(other), new.encode_batch(other), strict=True):
        assert ("[UNK]" in after.tokens) == ("[UNK]" in before.tokens), text
        assert new.decode(after.ids) == old.decode(before.ids)
