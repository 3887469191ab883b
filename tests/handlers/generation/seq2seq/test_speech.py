"""What may come next in a transcript, against transformers' generate on a tiny model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_whisper import (
    BEGIN,
    END,
    ENGLISH,
    FEATURES,
    FIRST_TIME,
    GERMAN,
    NO_TIMES,
    TRANSCRIBE,
    TRANSLATE,
    VOCABULARY,
    noise,
    tiny_whisper,
)

from handlers.generation.seq2seq.search import search_for
from handlers.generation.seq2seq.speech import SpeechRules
from handlers.runtimes.torch_seq2seq import TorchSeq2Seq

KNOWN: dict[str, Any] = {"suppress": (3, 4), "suppress_first": (5, END), "first_time": FIRST_TIME, "latest": 50}


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_whisper()


def written(session: TorchSeq2Seq, features: np.ndarray, rules: SpeechRules) -> list[int]:
    decoder = session.read({"input_features": features})
    search = search_for(rules)
    ids, parents, found = np.array([rules.start]), [0], list[int]()
    while True:
        step = search.advance(decoder.step(ids, parents, [0] * len(parents)))
        found += step.told
        if not step.rows:
            return found
        ids, parents = np.array([[token] for _, token in step.rows]), [row for row, _ in step.rows]


@pytest.mark.parametrize(
    ("start", "more", "asked"),
    [
        ((BEGIN, GERMAN, TRANSCRIBE, NO_TIMES), {}, {"language": "de", "task": "transcribe"}),
        (
            (BEGIN, ENGLISH, TRANSLATE, NO_TIMES),
            {"num_beams": 3},
            {"language": "en", "task": "translate", "num_beams": 3},
        ),
        ((BEGIN,), {"languages": (ENGLISH, GERMAN), "then": (TRANSCRIBE, NO_TIMES)}, {}),
    ],
)
def test_tokens_are_those_of_generate(model, start, more, asked) -> None:
    session = TorchSeq2Seq.of_model(model, "input_features")
    # A random model writes times where it should not, and generate would then listen to the rest once more.
    suppress = [3, 4, *range(FIRST_TIME, VOCABULARY)]
    for seed in range(3):
        features = FEATURES(noise(2.0, seed)).T[None].copy()
        with torch.inference_mode():
            expected = model.generate(
                torch.from_numpy(features), max_new_tokens=12, do_sample=False, suppress_tokens=suppress, **asked
            )[0].tolist()
        before = 1 + len(more["then"]) if "languages" in more else 0
        known = KNOWN | {"suppress": tuple(suppress)}
        rules = SpeechRules(start, (END,), 12 + before, **known, **more)
        found = written(session, features, rules)[before:]
        theirs = [token for token in expected if token <= END]
        ends = [place for place, token in enumerate(theirs) if token == END]
        assert found == theirs[: ends[0] if ends else None]


def test_rules_on_times_are_transformers(model) -> None:
    from transformers import WhisperTimeStampLogitsProcessor

    config = model.generation_config
    theirs = WhisperTimeStampLogitsProcessor(config, begin_index=3)
    rules = SpeechRules((BEGIN, ENGLISH, TRANSCRIBE), (END,), 30, first_time=FIRST_TIME, times=True, latest=50)
    random = np.random.default_rng(0)
    begun: list[list[int]] = [[], [FIRST_TIME], [FIRST_TIME, 7], [FIRST_TIME, 7, 130], [FIRST_TIME, 7, 130, 130], [7]]
    for text in [*begun, [FIRST_TIME + 3, 7, 8, 140, 140, 9], [130, 7, 131, 131, 9, 150]]:
        for lift in (-4.0, 0.0, 4.0):  # of the times: some are likelier than any text, or none
            scores = random.normal(size=VOCABULARY).astype(np.float32)
            scores[FIRST_TIME:] += lift
            ids = [*rules.start, *text]
            expected = theirs(torch.tensor([ids]), torch.from_numpy(scores)[None])[0].numpy()
            np.testing.assert_array_equal(rules.apply(scores, ids), expected)


def test_the_likeliest_language_is_the_first_token(model) -> None:
    session = TorchSeq2Seq.of_model(model, "input_features")
    rules = SpeechRules((BEGIN,), (END,), 6, languages=(ENGLISH, GERMAN), then=(TRANSCRIBE,), **KNOWN)
    for seed in range(4):
        features = FEATURES(noise(2.0, seed)).T[None].copy()
        with torch.inference_mode():
            language = model.detect_language(torch.from_numpy(features))[0].item()
        assert written(session, features, rules)[:2] == [language, TRANSCRIBE]
