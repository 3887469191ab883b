"""A tokenizer.json with fewer tokens: which must stay so that every text can be tokenized, and the new ids.

The kept tokens get new ids in ascending order of the old ones. What is kept beside the used tokens guarantees two things:
each text that used only those tokens is cut into the same ones, and no other text becomes unknown that was not before.

- WordPiece takes the longest piece that fits, again and again. A piece that fits first still does when others are gone; all
  single characters, with and without the continuing prefix, allow every other word to be cut.
- BPE joins neighbours by the order of its merges. A word is joined as before when every merge behind its tokens is kept:
  so both parts of each kept token are kept, down to the alphabet, which is kept too. The merges kept are those whose parts
  and product are.
- Unigram takes the likeliest way to cut. A way that is the likeliest of all is so too among fewer; single characters and
  the bytes allow everything else to be cut. The rarest piece stays, since the score of an unknown character is measured
  from it.
- WordLevel knows words or it does not: a word whose token is gone becomes the unknown token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from archiver.errors import UnsupportedModelError

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>\Z")


@dataclass(frozen=True)
class Trimmed:
    """A tokenizer with fewer tokens.

    Args:
        tokenizer_json: its file.
        old_ids: for each new id the old one, ascending.
    """

    tokenizer_json: bytes
    old_ids: list[int]


def trim_tokenizer(tokenizer_json: bytes, used: Iterable[int], also: Iterable[int] = ()) -> Trimmed:
    """The tokenizer that keeps some ids and whatever its kind needs to cut every string.

    Args:
        tokenizer_json: the file as it is.
        used, also: ids that are kept.
    Returns: the new tokenizer and what its ids were.
    Raises: UnsupportedModelError for a kind of tokenizer that is not known, or one whose ids have no order that can be
        kept.
    """
    spec: dict[str, Any] = json.loads(tokenizer_json)
    model = spec["model"]
    kind = model.get("type") or ("Unigram" if isinstance(model["vocab"], list) else "BPE")
    if kind not in _KINDS:
        raise UnsupportedModelError(
            f"the tokenizer is a {kind}, whose tokens cannot be dropped; allowed: {', '.join(_KINDS)}: remove the stage "
            "share/vocabulary"
        )
    ids = token_ids(spec)
    known = set(ids.values())
    kept = {place for place in (*used, *also) if place in known}
    kept |= {token["id"] for token in spec.get("added_tokens") or ()} | _named_ids(spec, ids)
    kept = _KINDS[kind](model, ids, kept)
    old_ids = sorted(kept)
    new_ids = {old: new for new, old in enumerate(old_ids)}
    _rewrite(spec, kind, kept, new_ids)
    trimmed = json.dumps(spec, ensure_ascii=False, separators=(",", ":")).encode()
    _require_ids(trimmed, {token: new_ids[old] for token, old in ids.items() if old in kept})
    return Trimmed(trimmed, old_ids)


def token_ids(spec: Mapping[str, Any]) -> dict[str, int]:
    """The ids of a parsed tokenizer.json by token, added tokens included."""
    vocab = spec["model"]["vocab"]
    found = {entry[0]: place for place, entry in enumerate(vocab)} if isinstance(vocab, list) else dict(vocab)
    return found | {token["content"]: token["id"] for token in spec.get("added_tokens") or ()}


def _word_piece(model: Mapping[str, Any], ids: Mapping[str, int], kept: set[int]) -> set[int]:
    prefix = model.get("continuing_subword_prefix") or "##"
    return kept | {place for token, place in ids.items() if len(token) == 1 or _is_one(token, prefix, "")}


def _bpe(model: Mapping[str, Any], ids: Mapping[str, int], kept: set[int]) -> set[int]:
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    alphabet = {place for token, place in ids.items() if _is_one(token, prefix, suffix) or _BYTE.match(token)}
    parts: dict[int, list[int]] = {}
    for left, right in _merges(model):
        parts.setdefault(ids[left + right.removeprefix(prefix)], []).extend((ids[left], ids[right]))
    kept, waiting = kept | alphabet, list(kept)
    while waiting:
        for part in parts.get(waiting.pop(), ()):
            if part not in kept:
                kept.add(part)
                waiting.append(part)
    return kept


def _unigram(model: Mapping[str, Any], ids: Mapping[str, int], kept: set[int]) -> set[int]:
    single = {place for token, place in ids.items() if len(token) == 1}
    octets = {place for token, place in ids.items() if _BYTE.match(token)} if model.get("byte_fallback") else set()
    scores = [score for _, score in model["vocab"]]
    return kept | single | octets | {scores.index(min(scores))}


def _word_level(model: Mapping[str, Any], ids: Mapping[str, int], kept: set[int]) -> set[int]:
    return kept


_KINDS: dict[str, Callable[[Mapping[str, Any], Mapping[str, int], set[int]], set[int]]] = {
    "WordPiece": _word_piece,
    "BPE": _bpe,
    "Unigram": _unigram,
    "WordLevel": _word_level,
}


def _is_one(token: str, prefix: str, suffix: str) -> bool:
    """Whether a token is a single character, with or without the marks for «inside a word» and «at its end»."""
    bare = token.removeprefix(prefix)
    return len(token) == 1 or len(bare) == 1 or (bool(suffix) and len(bare.removesuffix(suffix)) == 1)


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs, also of files that write a merge as "left right"."""
    pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"])
    return [(left, right) for left, right in pairs]


def _named_ids(spec: Mapping[str, Any], ids: Mapping[str, int]) -> set[int]:
    """Ids that the tokenizer names outside its vocabulary: the unknown token, padding, what post-processors add."""
    model = spec["model"]
    found = {model["unk_id"]} if model.get("unk_id") is not None else set()
    if model.get("unk_token") in ids:
        found.add(ids[model["unk_token"]])
    if spec.get("padding"):
        found.add(spec["padding"]["pad_id"])
    for processor in _processors(spec.get("post_processor")):
        for special in (processor.get("special_tokens") or {}).values():
            found.update(special["ids"])
        found.update(processor[key][1] for key in ("sep", "cls") if isinstance(processor.get(key), list))
    return found


def _processors(processor: Mapping[str, Any] | None) -> list[Any]:
    """A post-processor and those within it."""
    if processor is None:
        return []
    return [processor, *(inner for outer in processor.get("processors") or () for inner in _processors(outer))]


def _rewrite(spec: dict[str, Any], kind: str, kept: set[int], new_ids: Mapping[int, int]) -> None:
    """Drop what is not kept and put the new ids everywhere, in place."""
    model = spec["model"]
    if isinstance(model["vocab"], list):
        model["vocab"] = [entry for place, entry in enumerate(model["vocab"]) if place in kept]
    else:
        ordered = sorted(model["vocab"].items(), key=lambda item: item[1])
        model["vocab"] = {token: new_ids[place] for token, place in ordered if place in kept}
    if kind == "BPE":
        prefix = model.get("continuing_subword_prefix") or ""
        vocab = model["vocab"]
        every = zip(model["merges"], _merges(model), strict=True)
        model["merges"] = [
            merge
            for merge, (left, right) in every
            if left in vocab and right in vocab and left + right.removeprefix(prefix) in vocab
        ]
    if model.get("unk_id") is not None:
        model["unk_id"] = new_ids[model["unk_id"]]
    if spec.get("padding"):
        spec["padding"]["pad_id"] = new_ids[spec["padding"]["pad_id"]]
    for token in spec.get("added_tokens") or ():
        token["id"] = new_ids[token["id"]]
    for processor in _processors(spec.get("post_processor")):
        for special in (processor.get("special_tokens") or {}).values():
            special["ids"] = [new_ids[place] for place in special["ids"]]
        for key in ("sep", "cls"):
            if isinstance(processor.get(key), list):
                processor[key][1] = new_ids[processor[key][1]]


def _require_ids(tokenizer_json: bytes, expected: Mapping[str, int]) -> None:
    """Refuse what `tokenizers` would read with other ids than were meant."""
    from tokenizers import Tokenizer

    found = Tokenizer.from_buffer(tokenizer_json).get_vocab(with_added_tokens=True)
    wrong = [token for token, place in expected.items() if found.get(token) != place]
    if wrong or len(found) != len(expected):
        raise UnsupportedModelError(
            f"the tokenizer's ids have gaps that fewer tokens cannot keep (the first: {wrong[:3]}): remove the stage "
            "share/vocabulary"
        )
