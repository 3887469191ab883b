"""serve.precision: bf16 where it is asked for, or where the host is fast in it and wins; never on a host without it."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from built import build, quantize, recipe_of, write_recipe

from archiver.errors import RecipeError
from archiver.evaluation import served_speed
from archiver.packaging.entry import handler_of
from archiver.packaging.mar import extracted
from archiver.pipeline import choose
from archiver.pipeline.check import check
from archiver.recipe.load import load_recipe
from archiver.tasks.forward_workload import ForwardWorkload
from archiver.tasks.workload import Workload
from handlers.runtimes import openvino_config


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_speed, "SECONDS", 0.2)
    monkeypatch.setattr(served_speed, "_WARM", 0.1)


def computes_in(folder: Any) -> str:
    handler: Any = handler_of(folder)
    handler.open(folder, threads=1)
    compiled = handler.session._compiled
    return str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())


def test_an_archive_in_bf16_and_where_it_falls_back(tiny_model, tmp_path, monkeypatch) -> None:
    recipe = recipe_of(tmp_path, tiny_model(), compress="none", serve={"precision": "bf16"})
    built = build(recipe, tmp_path / "store")
    assert built.manifest["runtime"] == "openvino" and built.manifest["tolerance"]["allowed"] == 0.03
    with extracted(built.path) as (folder, _):
        session = json.loads((folder / "serving.json").read_text())["session"]
        assert (session["bf16"], session["config"]["INFERENCE_PRECISION_HINT"]) == (True, "bf16")
        for isa, expected in (([], "f32"), (["avx2", "avx512_bf16"], "bf16")):
            monkeypatch.setattr(openvino_config, "host_isa", lambda isa=isa: isa)
            # OpenVINO itself takes f32 where the processor cannot do otherwise.
            assert computes_in(folder) in (expected, "f32")


@pytest.mark.parametrize(
    ("isa", "wins", "expected"), [([], 2.0, False), (["amx_bf16"], 2.0, True), (["amx_bf16"], 1.05, False)]
)
def test_auto_takes_bf16_where_the_host_is_fast_in_it_and_it_wins(
    tiny_model, tmp_path, monkeypatch, isa, wins, expected
) -> None:  # fmt: skip
    monkeypatch.setattr(choose, "host_isa", lambda: isa)
    rates = {"openvino": 100.0, "onnxruntime": 90.0, "openvino bf16": 100.0 * wins}
    asked: list[set[str]] = []

    def served_rates(self: Any, staged: Any, place: Any) -> dict[str, float]:
        asked.append(set(staged))
        return {name: rates.get(name, 1.0) for name in staged}

    monkeypatch.setattr(ForwardWorkload, "served_rates", served_rates)
    recipe = recipe_of(tmp_path, tiny_model(), compress="none", serve={"precision": "auto"})
    built = build(recipe, tmp_path / "store")
    assert ("openvino bf16" in asked[0]) == bool(isa)
    with extracted(built.path) as (folder, _):
        assert bool(json.loads((folder / "serving.json").read_text())["session"].get("bf16")) == expected
    assert built.timings["served_per_s"].keys() == asked[0]


def test_auto_leaves_integers_alone(tiny_model, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(choose, "host_isa", lambda: ["amx_bf16"])
    recipe = recipe_of(tmp_path, tiny_model(), compress=quantize("static-int8"), serve={"precision": "auto"})
    from archiver.pipeline.stages import compress
    from archiver.progress import Progress

    workload = check(recipe).load()
    assert "openvino bf16" in choose._candidates(workload)
    compress(workload, Progress(quiet=True), tmp_path / "store")
    assert "openvino bf16" not in choose._candidates(workload)


@pytest.mark.parametrize("serve", [{"runtime": "onnxruntime"}, {"runtime": "torch"}, {"device": "cuda"}])
def test_bf16_elsewhere_is_refused(tiny_model, tmp_path, serve) -> None:
    path = write_recipe(tmp_path, tiny_model(), compress="none", serve={"precision": "bf16", **serve})
    with pytest.raises(RecipeError) as refused:
        load_recipe(path)
    assert any("serve.precision is bf16, which OpenVINO alone computes with" in line for line in refused.value.problems)


def test_a_gpu_that_is_not_there_is_told_before_any_work(tiny_model, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    path = write_recipe(tmp_path, tiny_model(), compress="none", serve={"runtime": "torch", "device": "cuda"})
    with pytest.raises(RecipeError) as refused:
        check(load_recipe(path))
    assert any("serve.device is cuda, and neither PyTorch nor ONNX Runtime" in line for line in refused.value.problems)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    check(load_recipe(path))


@pytest.mark.parametrize(
    ("runtime", "device", "sees", "expected"),
    [
        ("torch", "cuda", True, "cuda"),
        ("torch", "cuda", False, "cpu"),
        ("torch", "cpu", True, "cpu"),
        ("vllm", "cuda", True, "cpu"),
    ],
)
def test_what_the_original_is_timed_on(monkeypatch, runtime: str, device: str, sees: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: sees)
    serve = SimpleNamespace(runtime=runtime, device=device)
    workload = SimpleNamespace(recipe=SimpleNamespace(serve=serve))
    assert Workload.timed_on.fget(workload) == expected
