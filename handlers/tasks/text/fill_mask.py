"""fill-mask: the likeliest words at each masked place of a text."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from handlers.base import BatchHandler, Found
from handlers.errors import BadRequest
from handlers.inputs.checks import Parameter, is_positive_int, quoted
from handlers.inputs.masked import Masked, MaskedText
from handlers.tasks.text.classification import softmax

TOP_K = 5
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
        self._targets(parameters)
        return list(self.input.encode_each(values, parameters))

    def answers(self, found: Sequence[Found[str]], parameters: Mapping[str, Any]) -> list[Any]:
        targets, most = self._targets(parameters), parameters.get("top_k", TOP_K)
        return [self._told(one, targets, most) for one in found]

    def _told(self, found: Found[str], targets: np.ndarray | None, most: int) -> Any:
        places = [place for item in found.items for place in item.places]
        logits = word_logits(found.items, found.outputs)
        if not np.isfinite(logits).all():
            raise ArithmeticError("the model's answer is not finite")
        ids = found.items[0].encoded.ids
        answers = []
        for place, shares in zip(places, softmax(logits.astype(np.float64)), strict=True):
            answers.append(
                [
                    {
                        "score": float(f"{shares[word]:.7g}"),
                        "token": word,
                        "token_str": self._decode([word], skip_special=False),
                        "sequence": self._decode(
                            [token for token in (*ids[:place], word, *ids[place + 1 :]) if token != self._pad_id],
                            skip_special=len(places) == 1,  # else the other masks would be left out, too
                        ),
                    }
                    for word in best_words(shares, most, targets)
                ]
            )
        return answers[0] if len(answers) == 1 else answers

    def _targets(self, parameters: Mapping[str, Any]) -> np.ndarray | None:
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
        return np.array(list(ids))

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


def word_logits(items: Sequence[Masked], outputs: Sequence[np.ndarray]) -> np.ndarray:
    """The logits of one text's masks in order, [masks, words] float32; outputs: [places of a run, words] an item."""
    return np.concatenate([output[: len(item.places)] for item, output in zip(items, outputs, strict=True)])


def best_words(shares: np.ndarray, most: int, targets: np.ndarray | None) -> list[int]:
    """Ids of the `most` likeliest words, the best first, of all words or of `targets`; shares: [words]."""
    among = np.arange(len(shares)) if targets is None else targets
    falling = -shares[among]
    if most < len(among):  # a vocabulary is not sorted for its first five
        kept = falling <= np.partition(falling, most - 1)[most - 1]
        among, falling = among[kept], falling[kept]
    return [int(among[place]) for place in np.argsort(falling, kind="stable")[:most]]


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
