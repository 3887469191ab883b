"""Hugging Face's form for texts that are made of texts: translation, summarization, text2text-generation.

Source: the request and response bodies of Hugging Face's Inference API and InferenceClient for these tasks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from handlers.errors import BadRequest
from handlers.inputs.checks import Parameter, checked_parameters, is_bool, kind_of
from handlers.protocols.continuation import Continuation
from handlers.protocols.huggingface import generation as hf_generation
from handlers.protocols.huggingface.forms import check_keys, read_inputs
from handlers.protocols.reply import event
from handlers.protocols.sampling import BOOL, SAMPLING_PARAMETERS, TOKENS, number

MAX_BEAMS = 16
_TRUNCATIONS = ("do_not_truncate", "longest_first", "only_first", "only_second")


def whole(least: int, most: int) -> Callable[[Any], bool]:
    """A check for whole numbers from `least` to `most`."""
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


# What says how the text is written; its names are generate's.
GENERATION: dict[str, Parameter] = {
    "max_new_tokens": TOKENS,
    "max_length": TOKENS,
    "min_new_tokens": Parameter(whole(0, 2**31), "a whole number from 0"),
    "min_length": Parameter(whole(0, 2**31), "a whole number from 0"),
    "num_beams": Parameter(whole(1, MAX_BEAMS), f"a whole number from 1 to {MAX_BEAMS}"),
    "length_penalty": Parameter(number(-10, 10), "a number from -10 to 10"),
    "early_stopping": Parameter(lambda value: is_bool(value) or value == "never", 'true, false or "never"'),
    "no_repeat_ngram_size": Parameter(whole(0, 1000), "a whole number from 0 (any) to 1000"),
    "do_sample": BOOL,
    **{name: SAMPLING_PARAMETERS[name] for name in ("temperature", "top_p", "top_k", "repetition_penalty", "seed")},
}
PARAMETERS: dict[str, Parameter] = {
    **GENERATION,
    "stop": SAMPLING_PARAMETERS["stop"],
    "max_time": hf_generation.PARAMETERS["max_time"],
    "details": BOOL,
    "truncation": Parameter(
        lambda value: is_bool(value) or value in _TRUNCATIONS,
        "true, false, " + ", ".join(f'"{name}"' for name in _TRUNCATIONS),
    ),
    "clean_up_tokenization_spaces": BOOL,
    "src_lang": Parameter(lambda value: isinstance(value, str) and bool(value), "a language, as the model writes it"),
    "tgt_lang": Parameter(lambda value: isinstance(value, str) and bool(value), "a language, as the model writes it"),
    "generate_parameters": Parameter(lambda value: isinstance(value, dict), "an object of parameters of generate"),
}


@dataclass(frozen=True)
class SourceRequest:
    """Texts to make texts of.

    Args:
        inputs: as the kind of input decodes them. single: one was sent bare. given: the parameters, checked.
        stream: whether the one text is sent while it is written.
    """

    inputs: tuple[Any, ...]
    single: bool
    given: dict[str, Any]
    stream: bool = False


def parse(document: Any, *, decode: Callable[[Any, str], Any], max_inputs: int, allowed: str) -> SourceRequest:
    """One request.

    Args:
        document: as `read_document` gives it. decode: the kind of input's own. max_inputs: most of one request.
        allowed: what to send, in words.
    Raises: BadRequest saying what is wrong and what is allowed.
    """
    if not isinstance(document, dict):
        raise BadRequest(f"the JSON body is {kind_of(document)}, an object is expected; {allowed}")
    check_keys(document, "inputs", "parameters", "stream")
    if "inputs" not in document:
        raise BadRequest(f"the body has no 'inputs'; {allowed}")
    inputs, single = read_inputs(document, decode, max_inputs)
    stream = document.get("stream", False)
    if not is_bool(stream):
        raise BadRequest(f"'stream' is {kind_of(stream)}; allowed: true or false")
    if stream and not single:
        raise BadRequest("'stream' sends one text; 'inputs' is a list: send a single text, or one request for each")
    return SourceRequest(inputs, single, flat_parameters(document.get("parameters")), stream)


def flat_parameters(value: Any) -> dict[str, Any]:
    """Checked parameters, those of generate_parameters among the others. BadRequest as `checked_parameters`."""
    given = dict(checked_parameters(value, PARAMETERS))
    inner = checked_parameters(given.pop("generate_parameters", None), GENERATION)
    if twice := sorted(set(given) & set(inner)):
        raise BadRequest(f"'{twice[0]}' stands in 'parameters' and in 'generate_parameters'; send it once")
    return given | inner


@dataclass
class Renderer:
    """[{key: text}] for one input or for each of a list, as the Inference API answers.

    Args:
        key: what the text is called. details: whether it is told how long it is and why it ended. clean: whether spaces
            before punctuation are taken out.
    """

    key: str
    details: bool = False
    clean: bool = False
    _told: int = field(default=0, init=False)

    def whole(self, found: Sequence[Continuation]) -> Any:
        """The JSON value to answer."""
        return [self._answer(job) for job in found]

    def piece(self, found: Continuation, text: str, index: int = 0) -> bytes:
        """One event a step: the newest token, with all text that became certain with it."""
        new, self._told = found.ids[self._told :], len(found.ids)
        return event(self._event(found, new, text)) if new or text else b""

    def ending(self, found: Continuation, text: str, index: int = 0) -> bytes:
        """The event that holds the whole answer."""
        last = self._event(found, found.ids[self._told :], text)
        return event(last | self._answer(found))

    def closing(self, found: Sequence[Continuation]) -> bytes:
        """Nothing: a stream has one text."""
        return b""

    def _answer(self, found: Continuation) -> dict[str, Any]:
        answer: dict[str, Any] = {self.key: cleaned(found.text) if self.clean else found.text}
        if self.details:
            reason = hf_generation.REASONS[found.finish or "length"]
            answer["details"] = {"finish_reason": reason, "generated_tokens": len(found.ids)}
        return answer

    def _event(self, found: Continuation, new: Sequence[int], text: str) -> dict[str, Any]:
        token = {"id": new[-1] if new else None, "text": text, "special": not new}
        return {"index": len(found.ids), "token": token, self.key: None}


def cleaned(text: str) -> str:
    """Without the spaces that tokenizers of words leave before punctuation and within English contractions."""
    pairs = ((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"))
    for old, new in (*pairs, (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re")):
        text = text.replace(old, new)
    return text
