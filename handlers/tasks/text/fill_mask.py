"""fill-mask: the likeliest words at each masked place of a text."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from handlers.base import BatchHandler, Found
from handlers.errors import BadRequest
from handlers.inputs.checks import Parameter, is_positive_int, quoted
from handlers.inputs.texts.masked import TOP_K, Masked, MaskedText
from handlers.tasks.text.classification import softmax

MOST = 1000  # words of one place in an answer
_COMPARED = 20


def is_targets(value: Any) -> bool:
    """Whether a value is a word, or a list of one or more."""
    words = value if isinstance(value, list) else [value]
    return bool(words) and all(isinstance(word, str) and word.strip() and _is_unicode(word) for word in words)


def _is_unicode(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


class FillMaskHandler(BatchHandler[str]):
    """Answers as transformers' FillMaskPipeline gives them: for several masks one list each.

    serving: mask_token; clean_up: whether decoded texts lose the spaces before punctuation, as tokenizer_config.json says.
    """

    parameters: ClassVar[dict[str, Parameter]] = {
        "top_k": Parameter(lambda value: is_positive_int(value) and value <= MOST, f"a whole number from 1 to {MOST}"),
        "targets": Parameter(is_targets, "a word or a list of words, none empty"),
    }
    input: MaskedText

    @property
    def full_parameters(self) -> dict[str, Any]:
        return {"top_k": _COMPARED}

    def make_input(self, folder: Path) -> MaskedText:
        return MaskedText.open(folder, self.serving)

    def prepare(self, values: Sequence[str], parameters: Mapping[str, Any]) -> list[Sequence[Masked]]:
        """A text's tokens once, or once more for some masks each."""
        targets, most = self._targets(parameters), parameters.get("top_k", TOP_K)
        return [
            [replace(item, most=most, targets=targets) for item in items]
            for items in self.input.encode_each(values, parameters)
        ]

    def keep(self, item: Masked, output: np.ndarray) -> np.ndarray:
        """The likeliest words of each place, [places, words, 2] float64: id and score; output: [places of a run, words].

        What is not finite stays so.
        """
        shares = softmax(output[: len(item.places)].astype(np.float64))
        return np.stack([best_words(row, item.most, item.targets) for row in shares])

    def answers(self, found: Sequence[Found[str]], parameters: Mapping[str, Any]) -> list[Any]:
        return [self._told(one) for one in found]

    def _told(self, found: Found[str]) -> Any:
        places = [place for item in found.items for place in item.places]
        words = [row for output in found.outputs for row in output]
        if not all(np.isfinite(row).all() for row in words):
            raise ArithmeticError("the model's answer is not finite")
        ids = found.items[0].encoded.ids
        answers = [
            [self._word(ids, place, int(word), float(share), len(places) == 1) for word, share in row]
            for place, row in zip(places, words, strict=True)
        ]
        return answers[0] if len(answers) == 1 else answers

    def _word(self, ids: Sequence[int], place: int, word: int, share: float, alone: bool) -> dict[str, Any]:
        """alone: the text's only mask. Of several the others stay, so that special tokens are not left out then."""
        filled = [token for token in (*ids[:place], word, *ids[place + 1 :]) if token != self._pad_id]
        return {
            "score": float(f"{share:.7g}"),
            "token": word,
            "token_str": self._decode([word], skip_special=False),
            "sequence": self._decode(filled, skip_special=alone),
        }

    def _targets(self, parameters: Mapping[str, Any]) -> tuple[int, ...] | None:
        """Ids of the words asked for, each once; of a word that is no single token its first one.

        Raises: BadRequest for a word of which the tokenizer makes nothing.
        """
        if "targets" not in parameters:
            return None
        given = parameters["targets"]
        ids = dict[int, None]()
        for word in given if isinstance(given, list) else [given]:
            known = self._vocabulary.token_to_id(word)
            if known is None:
                found = self._vocabulary.encode(word, add_special_tokens=False).ids
                if not found:
                    raise BadRequest(f"parameter 'targets' has {quoted([word])}, of which the tokenizer makes no token")
                known = found[0]
            ids.setdefault(known)
        return tuple(ids)

    @cached_property
    def _vocabulary(self) -> Any:
        return self.input.text.encoder.tokenizer

    @property
    def _pad_id(self) -> int:
        return self.input.text.encoder.pad_id

    def _decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        text = str(self._vocabulary.decode(list(ids), skip_special_tokens=skip_special))
        return cleaned(text) if self.serving["clean_up"] else text

    def compare(self, stored: Any, found: Any) -> float:
        """By word: of one that is missing among the found ones it is known that its score is no higher than theirs."""
        try:
            pairs = zip(*(_by_place(answer) for answer in (stored, found)), strict=True)
            return max(_difference(before, now) for before, now in pairs)
        except (LookupError, TypeError, ValueError):
            return float("inf")


def best_words(shares: np.ndarray, most: int, targets: Sequence[int] | None) -> np.ndarray:
    """The `most` likeliest words, the best first, of equal ones the lower id.

    Args:
        shares: [words]. targets: ids of the words to choose among; None: all.
    Returns: [most, or as many as there are, 2] float64: id and share.
    """
    among = np.arange(len(shares)) if targets is None else np.array(sorted(targets))
    falling = -shares[among]
    if most < len(among):  # a vocabulary is not sorted for its first five
        kept = np.flatnonzero(~(falling > np.partition(falling, most - 1)[most - 1]))
        among, falling = among[kept], falling[kept]
    chosen = among[np.argsort(falling, kind="stable")[:most]]
    return np.stack([chosen.astype(np.float64), shares[chosen]], axis=1)


def cleaned(text: str) -> str:
    """Without the space before punctuation and shortened words.

    Source: transformers, PreTrainedTokenizerBase.clean_up_tokenization.
    """
    for ending in (".", "?", "!", ","):
        text = text.replace(f" {ending}", ending)
    text = text.replace(" ' ", "'")
    for ending in ("n't", "'m", "'s", "'ve", "'re"):
        text = text.replace(f" {ending}", ending)
    return text


def _by_place(answer: Any) -> list[dict[int, float]]:
    """Scores by word, one dict a mask."""
    places = answer if isinstance(answer[0], list) else [answer]
    return [{item["token"]: item["score"] for item in place} for place in places]


def _difference(stored: Mapping[int, float], found: Mapping[int, float]) -> float:
    """Share of the largest stored score, as `largest_share` has it."""
    least = min(found.values())
    found_scores = {word: found.get(word, min(least, score)) for word, score in stored.items()}
    return max(abs(score - found_scores[word]) for word, score in stored.items()) / (max(stored.values()) or 1.0)
