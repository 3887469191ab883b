"""text2text-generation, summarization, translation: a text read once, and another written from it."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from handlers.errors import BadRequest
from handlers.generation.seq2seq.backend import Seq2SeqBackend, SourceJob
from handlers.generation.seq2seq.rules import Rules
from handlers.inputs.checks import Parameter, quoted
from handlers.inputs.text import Encoded, Text, TextInput
from handlers.protocols.continuation import MIN_TEMPERATURE, Sampling
from handlers.protocols.huggingface import seq2seq as hf_seq2seq
from handlers.protocols.sampling import read_stops
from handlers.tasks.engine import Asked, RequestHandler, in_its_form, random_seed

# One group's sources together, padding included: what the encoder computes at once while other groups wait.
MOST_TOKENS = 4096


class Seq2SeqHandler(RequestHandler[TextInput]):
    """serving: answer, what a text is called; generation, the model's own settings (fields of Rules); max_target, the
    most tokens of an answer; languages, by name the token of each."""

    parameters: ClassVar[dict[str, Parameter]] = hf_seq2seq.PARAMETERS
    input: Text

    def make_input(self, folder: Path) -> Text:
        return Text.open(folder, self.serving)

    def load(self, folder: Path, threads: int) -> None:
        rows = self.serving["max_running"]
        session = self.runtime(folder, self.serving["session"], threads)
        backend = Seq2SeqBackend(session, self.input, max_rows=rows, most_size=MOST_TOKENS)
        self.rules = rules_from(self.serving["generation"], Rules)
        self.start(backend, self.input.encoder.tokenizer, max_running=rows)

    def open(self, folder: Path, *, threads: int, trust_files: bool = False) -> None:
        super().open(folder, threads=threads, trust_files=trust_files)
        if not trust_files:
            self.warm_up()

    def warm_up(self) -> None:
        """Read and write once at sizes that a runtime prepares code for: the first requests would wait for that."""
        dice, ids = random.Random(0), self.input.encoder.tokenizer.get_vocab_size()
        for size in {size for size in (8, 32, 128, self.serving["max_length"]) if size <= self.serving["max_length"]}:
            for beams in {1, self.rules.num_beams}:
                item = Encoded([dice.randrange(ids) for _ in range(size)], [0] * size)
                rules = replace(self.rules, num_beams=beams, max_new_tokens=2, last=())
                self.engine.generate([SourceJob((), Sampling(2), item=item, rules=rules)])

    # ---- in this process ----------------------------------------------------------------------------------------------

    def respond(self, inputs: Sequence[TextInput], parameters: Mapping[str, Any] | None = None) -> list[Any]:
        given = hf_seq2seq.flat_parameters(dict(parameters or {}))
        request = hf_seq2seq.SourceRequest(tuple(inputs), False, given)
        answers: list[Any] = self.run_here(self._asked(request))
        return answers

    @property
    def full_parameters(self) -> dict[str, Any]:
        """As many tokens as the archive says, by the likeliest one each time."""
        return {"max_new_tokens": self.serving["example_tokens"], "num_beams": 1, "do_sample": False}

    def compare(self, stored: Any, found: Any) -> float:
        """0 for the same text, else inf."""
        return 0.0 if stored == found else float("inf")

    def written(self, value: TextInput, rules: Rules) -> list[int]:
        """The tokens of an answer under these rules, without the end token."""
        item = self._items([value], {})[0]
        job = SourceJob((), Sampling(rules.max_new_tokens), item=item, rules=rules)
        self.engine.generate([job])
        return job.ids

    # ---- a request ----------------------------------------------------------------------------------------------------

    def read(self, row: Mapping[str, Any], headers: Mapping[str, Any]) -> Asked:
        allowed = self.input.allowed
        document, form = self.document(row, headers, allowed, self.input.max_bytes)
        with in_its_form(form):
            most = self.serving["max_inputs"]
            request = hf_seq2seq.parse(document, decode=self.input.decode, max_inputs=most, allowed=allowed)
            return replace(self._asked(request), form=form)

    def _asked(self, request: hf_seq2seq.SourceRequest) -> Asked:
        given = request.given
        rules = self._rules(given)
        items = self._items(request.inputs, given)
        deadline, stops = self.deadline(given.get("max_time")), read_stops(given)
        renderer = hf_seq2seq.Renderer(
            self.serving["answer"],
            details=given.get("details", False),
            clean=given.get("clean_up_tokenization_spaces", False),
        )
        jobs = [
            SourceJob(
                (),
                Sampling(rules.max_new_tokens),
                stops,
                deadline,
                item=item,
                rules=replace(rules, seed=rules.seed + index) if rules.do_sample else rules,
            )
            for index, item in enumerate(items)
        ]
        return Asked(list(jobs), renderer, request.stream)

    def _items(self, values: Sequence[TextInput], given: Mapping[str, Any]) -> list[Encoded]:
        truncate = given.get("truncation", True) not in (False, "do_not_truncate")
        items = self.input.encode(values, {"truncation": truncate})
        if "src_lang" in given:
            token, codes = self._language(given["src_lang"], "src_lang"), set(self.serving["languages"].values())
            items = [replace(item, ids=[token if one in codes else one for one in item.ids]) for item in items]
        return items

    def _rules(self, given: Mapping[str, Any]) -> Rules:
        """The model's own settings with what the request says."""
        rules, most = self.rules, self.serving["max_target"]
        names = ("num_beams", "length_penalty", "early_stopping", "no_repeat_ngram_size", "repetition_penalty")
        kept: dict[str, Any] = {name: given[name] for name in (*names, "top_k", "top_p") if name in given}
        drawn = rules.do_sample or any(name in given for name in ("temperature", "top_k", "top_p"))
        temperature = float(given.get("temperature", rules.temperature))
        kept["do_sample"] = False
        if given.get("do_sample", drawn) and temperature >= MIN_TEMPERATURE:
            if given.get("num_beams", 1) > 1:
                raise BadRequest(f"'num_beams' is {given['num_beams']} and 'do_sample' asks for drawing: choose one")
            seed = given["seed"] if "seed" in given else random_seed()
            kept |= {"do_sample": True, "temperature": temperature, "seed": seed, "num_beams": 1}
        wanted = given.get("max_new_tokens", given.get("max_length", 0) - len(rules.start))
        if "max_length" in given and wanted < 1:
            raise BadRequest(
                f"'max_length' is {given['max_length']}; the model's text begins with {len(rules.start)} token(s) of "
                f"its own: at least {len(rules.start) + 1} is expected"
            )
        if wanted > most:
            raise BadRequest(f"{wanted} new tokens are asked for; at most {most} are allowed")
        kept["max_new_tokens"] = wanted if wanted > 0 else rules.max_new_tokens
        least = max(given.get("min_new_tokens", 0), given.get("min_length", 0) - len(rules.start))
        if "min_new_tokens" in given or "min_length" in given:
            kept["min_new_tokens"] = least
        if kept.get("min_new_tokens", 0) > kept["max_new_tokens"]:
            raise BadRequest(f"at least {least} new tokens are asked for, and at most {kept['max_new_tokens']}")
        if "tgt_lang" in given:
            kept["first"] = self._language(given["tgt_lang"], "tgt_lang")
        return replace(rules, **kept)

    def _language(self, name: str, where: str) -> int:
        languages: dict[str, int] = self.serving.get("languages", {})
        if not languages:
            raise BadRequest(f"'{where}' is given, and the model has no tokens for languages: leave it out")
        if name not in languages:
            raise BadRequest(f"'{where}' is {name[:60]!r}; allowed: {quoted(sorted(languages), most=200)}")
        return languages[name]


RulesT = TypeVar("RulesT", bound=Rules)


def rules_from(settings: Mapping[str, Any], kind: type[RulesT]) -> RulesT:
    """Rules of JSON values: lists become tuples."""
    fixed: dict[str, Any] = {
        name: tuple(tuple(item) if isinstance(item, list) else item for item in value)
        if isinstance(value, list)
        else value
        for name, value in settings.items()
    }
    return kind(**fixed)
