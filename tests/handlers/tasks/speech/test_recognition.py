"""Transcripts as they are answered: those of transformers' pipeline, alone, in batches, of long recordings in pieces."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audio_models import TOKENS, sounds, tiny_audio_model
from hearing import extractor, hear, least, recording

from handlers.errors import BadRequest

LENGTHS = (16_000, 400, 40_311, 7_777)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_audio_model()


@pytest.fixture(scope="module")
def theirs(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutomaticSpeechRecognitionPipeline, Wav2Vec2CTCTokenizer

    folder: Path = tmp_path_factory.mktemp("vocabulary")
    (folder / "vocab.json").write_text(json.dumps({token: place for place, token in enumerate(TOKENS)}))
    tokenizer = Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), bos_token=None, eos_token=None)
    return AutomaticSpeechRecognitionPipeline(model=model, tokenizer=tokenizer, feature_extractor=extractor())


def as_json(answer: Any) -> Any:
    return json.loads(json.dumps(answer))


@pytest.mark.parametrize("times", [False, "word", "char"])
def test_answers_are_the_pipelines(model, theirs, times):
    handler = hear(model)
    found = handler.respond([recording(item) for item in sounds(*LENGTHS)], {"return_timestamps": times})
    expected = [theirs(item, return_timestamps=times or None) for item in sounds(*LENGTHS)]
    assert found == as_json(expected)
    assert len({answer["text"] for answer in found}) == len(LENGTHS)


@pytest.mark.parametrize(("chunk", "stride"), [(1.0, None), (1.0, 0.25), (2.0, [0.5, 0.1]), (1.5, 0)])
def test_long_recordings_in_pieces_are_the_pipelines(model, theirs, chunk, stride):
    (long,) = sounds(100_003)
    parameters = {"chunk_length_s": chunk, "return_timestamps": "char"}
    more = {} if stride is None else {"stride_length_s": stride}
    handler = hear(model)
    (found,) = handler.respond([recording(long)], parameters | more)
    assert found == as_json(theirs(long, **parameters, **more))
    assert max(shape[1] for shape in handler.session.shapes) <= chunk * 16_000 + 1


def test_what_is_cut_by_itself_is_what_chunk_length_s_cuts(model):
    (long,) = sounds(100_003)
    by_parameter = hear(model).respond([recording(long)], {"chunk_length_s": 2.0})
    assert hear(model, chunk_seconds=2.0).respond([recording(long)]) == by_parameter
    (answer,) = hear(model, chunk_seconds=2.0).respond([recording(long)], {"return_timestamps": "word"})
    starts = [second for chunk in answer["chunks"] for second in chunk["timestamp"]]
    assert starts == sorted(starts) and starts[-1] <= 100_003 / 16_000


def test_long_and_short_recordings_share_no_pass(model):
    handler = hear(model, chunk_seconds=4.0, batching={"token_budget": 70_000, "max_rows": 8, "run_cost": 8_000})
    handler.respond([recording(item) for item in sounds(200_000, 1_000, 1_200)])
    assert handler.session.shapes[0] == (2, 1_200)  # the short ones go first, together
    assert max(rows * samples for rows, samples in handler.session.shapes) <= 70_000


def test_compared_by_scores(model):
    handler = hear(model)
    stored, other = handler.respond([recording(item) for item in sounds(*LENGTHS[:2])], handler.full_parameters)
    assert handler.compare(stored, stored) == 0
    moved = stored | {"scores": (np.array(stored["scores"]) * 1.01).tolist()}
    assert 0.005 < handler.compare(stored, moved) < 0.02
    assert handler.compare(stored, other) == float("inf")
    assert handler.compare(stored, {"text": ""}) == float("inf")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"chunk_length_s": 31}, "parameter 'chunk_length_s' is 31; at most 30 seconds are allowed"),
        (
            {"chunk_length_s": 2, "stride_length_s": 1},
            r"parameter 'stride_length_s' is 1 \+ 1 seconds; less than the 2",
        ),
        ({"stride_length_s": [30, 0]}, r"parameter 'stride_length_s' is 30 \+ 0 seconds; less than the 30"),
    ],
)
def test_pieces_that_cannot_be_cut(model, parameters, message):
    with pytest.raises(BadRequest, match=message):
        hear(model).respond([recording(sounds(1000)[0])], parameters)


def test_too_short_or_too_much_sound(model):
    handler = hear(model, max_seconds=2.0)
    with pytest.raises(BadRequest, match=r"inputs holds 0\.0006 seconds of sound; at least 0\.001875 are needed"):
        handler.respond([recording(sounds(10)[0])])
    with pytest.raises(BadRequest, match=r"inputs holds 2\.5 seconds of sound; at most 2 are allowed"):
        handler.respond([recording(sounds(40_000)[0])])
    three = [recording(item) for item in sounds(15_000, 15_000, 15_000)]
    assert len(handler.respond(three)) == 3  # in this process nothing is one request
    message = (
        r"inputs holds 0\.9 seconds of sound; at most 0\.125 are allowed \(one request may hold 2 seconds of sound\)"
    )
    with handler.input.one_request(), pytest.raises(BadRequest, match=message):
        handler.respond(three)


def test_what_one_request_may_hold_is_counted_whatever_another_thread_reads(model):
    handler = hear(model, max_seconds=2.0)
    three = [recording(item) for item in sounds(15_000, 15_000, 15_000)]

    def reads_another() -> None:
        with handler.input.one_request():
            handler.input.encode(three[:1], {})

    with handler.input.one_request():
        thread = threading.Thread(target=reads_another)
        thread.start()
        thread.join()
        with pytest.raises(BadRequest, match="one request may hold 2 seconds of sound"):
            handler.input.encode(three, {})


def test_answers_that_are_no_numbers(model):
    handler = hear(model)
    found = handler.find([recording(sounds(1000)[0])], {})
    found[0].outputs[0][0] = np.nan
    with pytest.raises(ArithmeticError, match="the model's answer is not finite"):
        handler.answers(found, {})


class Spans:
    """A detector that hears what it is told."""

    def __init__(self, *found: tuple[int, int]) -> None:
        self.found = list(found)

    def spans(self, samples: np.ndarray) -> list[tuple[int, int]]:
        return self.found


def test_silence_is_left_out(model):
    (samples,) = sounds(60_000)
    handler = hear(model)
    handler.input.voice = Spans((16_005, 24_000), (40_000, 52_000))
    (found,) = handler.respond([recording(samples)], {"return_timestamps": "char"})
    assert sum(rows * size for rows, size in handler.session.shapes) <= 2 * 12_001
    first, second = (
        handler.respond([recording(samples[start:end])], {"skip_silence": False, "return_timestamps": "char"})[0]
        for start, end in ((16_000, 24_000), (40_000, 52_000))
    )
    texts = [chunk["text"] for chunk in found["chunks"]]
    alone = [chunk["text"] for answer in (first, second) for chunk in answer["chunks"]]
    assert [text for text in texts if text != " "] == [text for text in alone if text != " "]
    times = [chunk["timestamp"] for chunk in found["chunks"]]
    assert times[0][0] == pytest.approx(first["chunks"][0]["timestamp"][0] + 1.0)
    assert times[-1][0] == pytest.approx(second["chunks"][-1]["timestamp"][0] + 2.5)


def test_a_recording_in_which_nobody_speaks(model):
    handler = hear(model)
    handler.input.voice = Spans()
    assert handler.respond([recording(sounds(60_000)[0])], {"return_timestamps": "word"}) == [
        {"text": "", "chunks": []}
    ]
    assert handler.session.shapes == [(1, least())]


def test_an_archive_without_a_detector(model):
    message = "parameter 'skip_silence' is true, and this archive was made without: allowed: false"
    with pytest.raises(BadRequest, match=message):
        hear(model).respond([recording(sounds(1000)[0])], {"skip_silence": True})
    assert hear(model).respond([recording(sounds(1000)[0])], {"skip_silence": False})
