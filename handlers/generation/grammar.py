"""Texts that have to match a grammar: which tokens may come next, by llguidance.

A grammar is compiled apart from the thread that runs the steps; a matcher goes with each text.
"""

import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from handlers.errors import BadRequest, UnsoundArchive
from handlers.generation.sampling import choose, is_plain
from handlers.protocols.continuation import Sampling
from handlers.protocols.grammar import SCHEMA, Grammar
from handlers.requirements import require, required

PACKAGE = "llguidance"
KEPT = 32  # grammars that are compiled
# Not as many blanks as JSON allows: a small model goes on with them until its text is cut.
_JSON = {"whitespace_pattern": "[ ]?", "lenient": False, "coerce_one_of": False}
# One text's lexer: some 20 MB of states at most, and per token at most some 10 ms.
_LIMITS = {"max_lexer_states": 20_000, "step_lexer_fuel": 100_000, "verbose_errors": False}


class Grammars:
    """Compiles grammars for a model's tokens, and keeps those that were used last. Any thread may ask.

    Args:
        folder: an extracted archive, with tokenizer.json. end_ids: tokens that end a text.
    """

    def __init__(self, folder: Path, end_ids: Collection[int]) -> None:
        self._folder, self._end_ids = folder, sorted(end_ids)
        self._lock = threading.Lock()
        self._tokens: Any = None
        self._known: OrderedDict[Grammar, CompiledGrammar] = OrderedDict()

    def compiled(self, grammar: Grammar) -> "CompiledGrammar":
        """The grammar, for any number of texts. BadRequest with the reason where it cannot be made."""
        with self._lock:  # one at a time: others' texts need the processors too
            found = self._known.pop(grammar, None) or self._compile(grammar)
            self._known[grammar] = found
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
            return found

    def _compile(self, grammar: Grammar) -> "CompiledGrammar":
        try:
            library: Any = require(PACKAGE, required(self._folder, PACKAGE))
        except UnsoundArchive as error:
            raise BadRequest(f"this server cannot keep a text to a grammar: {error}") from error
        if self._tokens is None:
            self._tokens = self._read_tokens(library)
        try:
            made = (
                library.LLMatcher.grammar_from_json_schema(grammar.text, overrides=_JSON)
                if grammar.kind == SCHEMA
                else library.LLMatcher.grammar_from_lark(f"start: /{library.regex_to_lark(grammar.text, 'd')}/")
            )
            limits = library.LLParserLimits(**_LIMITS)
            matcher = library.LLMatcher(self._tokens, made, log_level=0, limits=limits)
            if not matcher.is_error():
                matcher.compute_bitmask()  # the first takes longest, and tells what it cannot do
        except ValueError as error:
            raise _refusal(grammar, str(error)) from error
        if matcher.is_error():
            raise _refusal(grammar, matcher.get_error())
        return CompiledGrammar(matcher)

    def _read_tokens(self, library: Any) -> Any:
        text = (self._folder / "tokenizer.json").read_text(encoding="utf-8")
        try:
            return library.LLTokenizer(text, eos_token=self._end_ids or None)
        except ValueError as error:
            raise BadRequest(f"this model's tokenizer cannot be kept to a grammar: {_sentence(str(error))}") from error


class CompiledGrammar:
    """A `handlers.protocols.continuation.Constraint`."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def begin(self) -> "Matcher":
        """For a text of which nothing is written."""
        return Matcher(self._matcher.deep_copy())


class Matcher:
    """Follows one text. Only the thread that runs the steps may use it."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    @property
    def complete(self) -> bool:
        """Whether the text matches and nothing can follow."""
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    @property
    def error(self) -> str | None:
        """Why the grammar cannot be followed any further, None where it can."""
        if not self._matcher.is_error():
            return None
        return f"the grammar cannot be followed any further: {_sentence(self._matcher.get_error())}"

    def take(self, token: int) -> bool:
        """Go on by a token; False, and nothing changes, where it may not come here."""
        return bool(self._matcher.try_consume_tokens([token]) == 1)

    def allowed(self, size: int) -> np.ndarray:
        """[size] bool: which tokens may come here, an end token where the text matches. ArithmeticError if none may."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        mask: np.ndarray = np.unpackbits(bits, count=size, bitorder="little").view(bool)
        if self._matcher.is_error() or not mask.any():
            raise ArithmeticError(self.error or "no token may come by the grammar, and the text does not match yet")
        return mask

    def choose(
        self,
        logits: np.ndarray,
        likeliest: int,
        prompt: Sequence[int],
        found: Sequence[int],
        sampling: Sampling,
        generator: np.random.Generator,
    ) -> tuple[int, float]:
        """See `handlers.generation.sampling.choose`: of the tokens that may come, and the text goes on by it.

        Args:
            likeliest: the greatest of `logits`. Where it may come and nothing else is asked for, no other is looked at.
        """
        if is_plain(sampling) and self.take(likeliest):
            return likeliest, 0.0
        token, logprob = choose(logits, prompt, found, sampling, generator, self.allowed(len(logits)))
        if not self.take(token):
            raise ArithmeticError("the grammar does not take the token that it allowed")
        return token, logprob


def _refusal(grammar: Grammar, reason: str) -> BadRequest:
    what = "the JSON schema" if grammar.kind == SCHEMA else "the regular expression"
    return BadRequest(f"{what} cannot be followed: {_sentence(reason)}")


def _sentence(reason: str) -> str:
    """What llguidance says, without the drawing of where: a message of a regular expression's has its cause last."""
    lines = reason.splitlines() or ["no reason is told"]
    told = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[0])
    told = told.rpartition("(in regex): ")[2].partition(" in regex /")[0].partition(". Enable '")[0]
    return told.strip()[:200] or "nothing matches it"
