"""automatic-speech-recognition by an encoder-decoder of Whisper's form: windows of at most 30 seconds, token by token.

A recording's windows are heard one after another, each from where the last complete segment ended; those of different
recordings share the model, so that a short one goes between two windows of a long one.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from handlers.errors import BadRequest
from handlers.generation.engine import Job
from handlers.generation.seq2seq.backend import Seq2SeqBackend, SourceJob
from handlers.generation.seq2seq.rules import log_softmax
from handlers.generation.seq2seq.speech import SpeechRules
from handlers.inputs.checks import Parameter, checked_parameters, is_bool, quoted
from handlers.inputs.media.audio import Sound
from handlers.inputs.media.audio_file import Recording
from handlers.inputs.media.sound_windows import SoundWindows
from handlers.protocols.continuation import FAILED, Sampling
from handlers.protocols.forms import path_of
from handlers.protocols.huggingface import forms as hf
from handlers.protocols.huggingface.seq2seq import MAX_BEAMS, whole
from handlers.protocols.openai import transcription
from handlers.protocols.openai.transcription import DETAILS, TRANSCRIPTIONS, TRANSLATIONS, Abilities, Transcribed
from handlers.protocols.reply import body_of
from handlers.protocols.request import Request, Spec
from handlers.requirements import require, required
from handlers.tasks.engine import EngineHandler, in_its_form, random_seed
from handlers.tasks.speech.telling import Telling, detailed, presented
from handlers.tasks.speech.transcript import Transcript, Window
from handlers.tasks.text.seq2seq import rules_from
from handlers.torchserve.conversation import Conversation

# Seconds of sound, padding included, that the encoder reads at once while other recordings wait.
MOST_SECONDS = 60

GENERATION: dict[str, Parameter] = {
    "language": Parameter(lambda value: isinstance(value, str) and bool(value), 'a language, as "en" or "english"'),
    "task": Parameter(lambda value: value in ("transcribe", "translate"), '"transcribe" or "translate"'),
    "num_beams": Parameter(whole(1, MAX_BEAMS), f"a whole number from 1 to {MAX_BEAMS}"),
    "max_new_tokens": Parameter(whole(1, 2**31), "a whole number from 1"),
}
_INNER = Parameter(lambda value: isinstance(value, dict), "an object of language, task, num_beams and max_new_tokens")


@dataclass(eq=False)
class _Hearing:
    """A window on its way. looked: the steps' attention. begun: the first step's logits."""

    job: SourceJob
    looked: list[np.ndarray] = field(default_factory=list)
    begun: list[np.ndarray] = field(default_factory=list)


class WhisperHandler(EngineHandler[Recording]):
    """serving: generation, the model's own settings (fields of Rules); speech: its tokens for languages, tasks and times;
    heads: whether cross-attention is told, which times of words need."""

    parameters: ClassVar[dict[str, Parameter]] = {
        **GENERATION,
        "return_timestamps": Parameter(lambda value: is_bool(value) or value == "word", 'true, false or "word"'),
        "generation_parameters": _INNER,
        "generate_kwargs": _INNER,
    }
    paths: ClassVar[Mapping[str, Any]] = {path: transcription.parse for path in (TRANSCRIPTIONS, TRANSLATIONS)}
    input: SoundWindows

    def make_input(self, folder: Path) -> SoundWindows:
        return SoundWindows.open(folder, self.serving)  # type: ignore[return-value]  # its own class

    def load(self, folder: Path, threads: int) -> None:
        session = self.runtime(folder, self.serving["session"], threads)
        rows = self.serving["max_running"]
        self.rules = rules_from(self.serving["generation"], SpeechRules)
        self.tokenizer = self.open_tokenizer(folder)
        backend = Seq2SeqBackend(session, self.input, max_rows=rows, most_size=MOST_SECONDS)
        self.start(backend, self.tokenizer, max_running=rows)

    def open_tokenizer(self, folder: Path) -> Any:
        """The tokenizers.Tokenizer of the extracted archive at `folder`."""
        kind: Any = require("tokenizers", required(folder, "tokenizers")).Tokenizer
        return kind.from_file(str(folder / "tokenizer.json"))

    # ---- in this process ----------------------------------------------------------------------------------------------

    def respond(self, inputs: Sequence[Recording], parameters: Mapping[str, Any] | None = None) -> list[Any]:
        given = flat_parameters(dict(parameters or {}), self.parameters)
        works = self._works(self.input.encode(inputs, {}), given)
        while any(not work.done for work in works):
            hearings = [(work, self._hearing(work, given)) for work in works if not work.done]
            self.engine.generate([hearing.job for _, hearing in hearings])
            for work, hearing in hearings:
                if hearing.job.finish == FAILED:
                    raise ArithmeticError(hearing.job.error or "the model failed")
                self._take(work, hearing)
        return [self._present(work, given) for work in works]

    @property
    def full_parameters(self) -> dict[str, Any]:
        """With the times of segments."""
        return {"return_timestamps": True}

    def compare(self, stored: Any, found: Any) -> float:
        """The share of words that differ: where two tokens are as likely, rounding decides between them."""
        try:
            before, after = (answer["text"].split() for answer in (stored, found))
        except (AttributeError, KeyError, TypeError):
            return float("inf")
        same = sum(block.size for block in SequenceMatcher(None, before, after, autojunk=False).get_matching_blocks())
        return 1.0 - same / max(len(before), len(after), 1) if before or after else 0.0

    # ---- a request ----------------------------------------------------------------------------------------------------

    async def serve(self, conversation: Conversation) -> list[Job]:
        request = self._parse(conversation.row, conversation.headers)
        conversation.form = form = request.form
        deadline = self.deadline(None)
        # Reading and resampling take long, and not Python's lock: other requests go on.
        sounds = await asyncio.to_thread(self._sounds, request)
        request = replace(request, inputs=())
        conversation.has_read()
        works = self._works(sounds, request.parameters)
        tell = Telling(works[0], form, self._heard) if isinstance(form, Transcribed) and form.stream else None
        jobs: list[Job] = []
        while any(not work.done for work in works):
            hearings = [(work, self._hearing(work, request.parameters)) for work in works if not work.done]
            now: list[Job] = [hearing.job for _, hearing in hearings]
            for job in now:
                job.deadline = deadline
            await self._together(now, conversation, tell)
            for work, hearing in hearings:
                self._take(work, hearing)
            jobs += now
        if tell is not None:
            conversation.finish_stream(tell.ending())
            return jobs
        answers = [self._present(work, request.parameters) for work in works]
        found = hf.render(answers, request.single) if form is None else form.render(answers, 0)
        conversation.answer(*body_of(found))
        return jobs

    async def _together(self, jobs: list[Job], conversation: Conversation, tell: Callable[[Job], bytes] | None) -> None:
        """Until one window of each recording is written. tell: a job's next piece, for a stream."""
        left = [len(jobs)]
        finished = asyncio.get_running_loop().create_future()

        def listener(job: Job, text: str) -> None:
            left[0] -= job.done
            if not left[0]:
                conversation.resolve(finished)
            elif tell is not None and (piece := tell(job)):
                conversation.piece(piece)

        await self._run(jobs, listener, finished, conversation)

    def _parse(self, row: Mapping[str, Any], headers: Mapping[str, Any]) -> Request:
        allowed, most = self.input.allowed, self.input.max_bytes
        spec = Spec(self.input.decode, self.parameters, self.serving["max_inputs"], allowed)
        if path := path_of(headers):
            request = transcription.parse(transcription.fields(row, headers, most), spec, self._abilities, path)
            self._rules(request.parameters, False)
            return request
        document, form = self.document(row, headers, allowed, most)
        with in_its_form(form):
            request = hf.parse(document, spec)
            given = flat_parameters(request.parameters, self.parameters)
            self._rules(given, False)  # says what is wrong before sound is read
        return replace(request, parameters=given, form=form)

    @property
    def _abilities(self) -> Abilities:
        speech = self.serving["speech"]
        many = bool(speech["languages"])
        words = bool(self.serving["heads"]) and self.rules.num_beams == 1
        return Abilities(
            segments=True, words=words, languages=many, translates=many, prompts=self._previous is not None, writes=True
        )

    @property
    def _previous(self) -> int | None:
        """The token before what was said earlier, None where the model has none."""
        found: int | None = self.serving["speech"].get("previous")
        return found

    def _sounds(self, request: Request) -> list[Sound]:
        with self.input.one_request():
            return self.input.encode(request.inputs, {})

    def _works(self, sounds: Sequence[Sound], given: Mapping[str, Any]) -> list[Transcript]:
        features, speech = self.input.features, self.serving["speech"]
        wanted = given.get("return_timestamps", False)
        language = given.get("language")
        return [
            Transcript(
                sound.samples,
                features.rate,
                features.span,
                first_time=speech["first_time"],
                special=min(self.rules.end_ids),
                decode=self._decode,
                times=bool(wanted) or len(sound.samples) > features.span,
                words=wanted == "word",
                language=None if language is None else self._code(language),
            )
            for sound in sounds
        ]

    def _rules(self, given: Mapping[str, Any], times: bool, first: bool = True) -> SpeechRules:
        """The model's own settings with what the request says. first: whether for a recording's first window."""
        speech, rules = self.serving["speech"], self.rules
        if "prompt" in given and first:
            rules = replace(rules, start=(*self._prompted(given["prompt"]), *rules.start))
        if given.get("return_timestamps") == "word":
            if not self.serving["heads"]:
                raise BadRequest(
                    "'return_timestamps' is \"word\", and the model does not say where it looks (alignment_heads of its "
                    "generation_config.json): allowed: true or false"
                )
            if "temperature" not in given and given.get("num_beams", rules.num_beams) > 1:
                raise BadRequest("'return_timestamps' is \"word\" and 'num_beams' more than 1: choose one")
        languages, tasks = speech["languages"], speech["tasks"]
        asked = sorted({"language", "task"} & set(given))
        if asked and not languages:
            raise BadRequest(f"{quoted(asked)} is given, and the model knows English only: leave it out")
        then: tuple[int, ...] = (tasks[given.get("task", "transcribe")],) if languages else ()
        then += () if times or speech["no_times"] is None else (speech["no_times"],)
        if "language" in given:
            language = languages[self._code(given["language"])]
            if DETAILS in given:  # a step by itself, since its logits tell whether anybody speaks
                rules = replace(rules, languages=(language,), then=then)
            else:
                rules = replace(rules, start=(*rules.start, language, *then))
        elif languages:
            rules = replace(rules, languages=tuple(languages.values()), then=then)
        else:
            rules = replace(rules, start=(*rules.start, *then))
        room = self.serving["max_target"] - rules.heard_at
        before = rules.heard_at - len(rules.start)
        count = min(given.get("max_new_tokens", room), room) + before
        if "temperature" in given:
            rules = replace(rules, do_sample=True, temperature=given["temperature"], seed=random_seed(), num_beams=1)
        return replace(
            rules,
            max_new_tokens=count,
            times=times,
            first_time=speech["first_time"],
            latest=speech["latest"],
            num_beams=given.get("num_beams", rules.num_beams),
            logprobs=DETAILS in given,
        )

    def _prompted(self, prompt: str) -> tuple[int, ...]:
        """What stands before a transcript that goes on from `prompt`: its last tokens, up to half of all there may be.

        Raises: BadRequest where it names a token that is no text.
        """
        assert self._previous is not None  # _abilities says so
        ids = self.tokenizer.encode(f" {prompt.strip()}", add_special_tokens=False).ids
        if special := next((token for token in ids if token >= min(self.rules.end_ids)), None):
            raise BadRequest(
                f"'prompt' has {self.tokenizer.id_to_token(special)!r} in it, which is no text: leave it out"
            )
        return (self._previous, *ids[-(self.serving["max_target"] // 2 - 1) :])

    def _code(self, language: str) -> str:
        speech = self.serving["speech"]
        wanted = language.strip().lower()
        wanted = str(speech["names"].get(wanted, wanted))
        if wanted not in speech["languages"]:
            raise BadRequest(
                f"'language' is {language[:60]!r}; allowed: {quoted(sorted(speech['languages']), most=120)}, or their "
                "English names"
            )
        return wanted

    def _hearing(self, work: Transcript, given: Mapping[str, Any]) -> _Hearing:
        rules = self._rules(given, work.times, first=not work.at)
        hearing = _Hearing(SourceJob((), Sampling(rules.max_new_tokens), item=Sound(work.window), rules=rules))
        if work.words:
            hearing.job.looked = hearing.looked.append
        if DETAILS in given:
            hearing.job.begun = hearing.begun.append
        return hearing

    def _take(self, work: Transcript, hearing: _Hearing) -> None:
        """What a window's tokens say; the language, where it was found out, stands before the text."""
        job, rules = hearing.job, hearing.job.rules
        assert isinstance(rules, SpeechRules)
        before = rules.heard_at - len(rules.start)
        if before and job.ids and work.language is None:
            codes = {token: code for code, token in self.serving["speech"]["languages"].items()}
            work.language = codes.get(job.ids[0])
        ids = job.ids[before:]
        attention = None
        if work.words and ids:
            # Each step's rows are of the tokens that went in: what stands before the text has no part in it.
            attention = np.concatenate(hearing.looked, axis=1)[:, rules.heard_at :]
            attention = attention[:, : len(ids)]
        no_speech = None
        if hearing.begun:
            no_speech = float(np.exp(log_softmax(hearing.begun[0].astype(np.float64))[self._no_speech]))
        work.take(ids, Window(attention, job.logprobs[before:], no_speech))

    @property
    def _no_speech(self) -> int:
        """The token that stands for nobody's speaking: transformers, too, takes the one before <|notimestamps|>."""
        return int(self.serving["speech"]["no_times"]) - 1

    def _heard(self, work: Transcript, job: Job) -> str:
        """What is certain of a recording's text while a window is written: of one with times all before it."""
        if work.times:
            return work.text
        assert isinstance(job, SourceJob) and isinstance(job.rules, SpeechRules)
        ids = job.ids[job.rules.heard_at - len(job.rules.start) :]
        return self._decode([token for token in ids if token < work.special]).rstrip("\ufffd")

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _present(self, work: Transcript, given: Mapping[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = {"text": work.text}
        if given.get("return_timestamps", False):
            answer["chunks"] = [presented(chunk) for chunk in work.chunks]
        if DETAILS in given:
            answer["duration"] = len(work.samples) / work.rate
            answer["language"] = "english" if given.get("task") == "translate" else self._name(work.language)
            answer["segments"] = [detailed(segment) for segment in work.segments]
        return answer

    def _name(self, code: str | None) -> str:
        """A language's English name, by its code; a model without languages knows English."""
        speech = self.serving["speech"]
        if not speech["languages"]:
            return "english"
        return next((name for name, known in speech["names"].items() if known == code), code or "unknown")


def flat_parameters(given: Any, known: Mapping[str, Parameter]) -> dict[str, Any]:
    """Checked parameters, those of generate's own object among the others.

    Raises: BadRequest for one that is unknown, not allowed, or given twice.
    """
    found = dict(checked_parameters(given, known))
    for name in ("generation_parameters", "generate_kwargs"):
        inner = checked_parameters(found.pop(name, None), GENERATION)
        if twice := sorted(set(found) & set(inner)):
            raise BadRequest(f"'{twice[0]}' stands in 'parameters' and in '{name}'; send it once")
        found |= inner
    return found
