"""Labels of recordings as they are answered: those of transformers' pipeline."""

from __future__ import annotations

import pytest
from audio_models import CLASSES, sounds, tiny_audio_model
from hearing import extractor, hear, recording

LENGTHS = (16_000, 400, 40_311, 7_777)


@pytest.mark.parametrize(
    "parameters", [{}, {"top_k": 2}, {"function_to_apply": "sigmoid"}, {"function_to_apply": "none"}]
)
@pytest.mark.parametrize("kind", ["wav2vec2", "hubert"])
def test_answers_are_the_pipelines(kind, parameters):
    from transformers import AudioClassificationPipeline

    model = tiny_audio_model(kind, CLASSES)
    pipeline = AudioClassificationPipeline(model=model, feature_extractor=extractor())
    found = hear(model).respond([recording(item) for item in sounds(*LENGTHS)], parameters)
    for answer, item in zip(found, sounds(*LENGTHS), strict=True):
        expected = pipeline(item, **{"top_k": 5, **parameters})
        assert [entry["label"] for entry in answer] == [entry["label"] for entry in expected]
        assert [entry["score"] for entry in answer] == pytest.approx([entry["score"] for entry in expected], abs=1e-4)


def test_compared_by_label():
    handler = hear(tiny_audio_model("hubert", CLASSES))
    (answer,) = handler.respond([recording(sounds(3000)[0])], handler.full_parameters)
    assert len(answer) == 5
    assert handler.compare(answer, answer[::-1]) == 0
    assert handler.compare(answer, answer[:2]) == float("inf")
    assert handler.compare(answer, [{"text": ""}]) == float("inf")
