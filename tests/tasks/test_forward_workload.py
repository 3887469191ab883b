"""A large model of one pass: its original stays in its files, and everything is as with a copy in memory."""

from __future__ import annotations

import pytest
from built import quantize
from task_recipes import MODELS, recipe_of

from archiver.pipeline.check import check
from archiver.tasks import forward_workload


def held(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("task", MODELS)
def test_a_large_original_stays_in_its_files(tiny_model, tmp_path, monkeypatch, task) -> None:
    kind, config = MODELS[task]
    recipe = recipe_of(tmp_path, tiny_model("bert", kind, **config), task, compress=quantize("weight-only"))
    small = check(recipe).load()
    monkeypatch.setattr(forward_workload, "_LARGE", 0.0)
    large = check(recipe).load()
    assert small.streamed is None and large.streamed is not None
    assert held(large.original) < 0.1 * held(small.original)
    assert large.original_metrics == small.original_metrics
    with large.original_in_memory() as original:
        assert held(original) == held(small.original)
    for value, parameter in zip(large.model.state_dict().values(), small.model.state_dict().values(), strict=True):
        assert (value == parameter).all()


def test_a_model_that_cannot_be_streamed_is_copied(tiny_model, tmp_path, monkeypatch) -> None:
    kind, config = MODELS["text-ranking"]
    recipe = recipe_of(tmp_path, tiny_model("bert", kind, **config), "text-ranking", compress=quantize("weight-only"))
    monkeypatch.setattr(forward_workload, "_LARGE", 0.0)

    def broken(model, folder):
        streamed = streamed_copy(model, folder)
        streamed.model.bert.register_forward_pre_hook(lambda module, _: module.embeddings.word_embeddings.weight[1, 1])
        return streamed

    from archiver.models import streamed as streamed_module

    streamed_copy = streamed_module.streamed_copy
    monkeypatch.setattr(streamed_module, "streamed_copy", broken)
    workload = check(recipe).load()
    assert workload.streamed is None and held(workload.original) == held(workload.module)
