"""What a build says that it will need, before it begins; and that it does not begin where the disk is too full."""

from __future__ import annotations

import errno
import io
import shutil
from collections import namedtuple
from types import SimpleNamespace

import pytest
import text_recipes
from built import quantize, recipe_of

from archiver.cli import main
from archiver.pipeline import build as pipeline
from archiver.pipeline.check import check
from archiver.pipeline.forecast import Forecast, forecast, product_rate, require_room
from archiver.progress import Progress

Usage = namedtuple("Usage", "total used free")


def test_a_language_model_by_hand(tiny_model, tmp_path) -> None:
    """Twice the parameters for each token; at 1.5 million operations a second the passes outweigh all else."""
    model = tiny_model("llama", text_recipes.TASK)
    data = {"windows": "all"}
    compress = [{"quantize": {"method": "weight-only", "bits": 8, "measure": True}}]
    recipe = text_recipes.recipe_of(tmp_path, model, data=data, compress=compress, serve={"runtime": "openvino"})
    checked = check(recipe)
    parameters = checked.facts.num_parameters
    tokens = checked.task.tokens(checked.validation, recipe, checked.facts, checked.source)
    assert tokens is not None and tokens % 16 == 0 and tokens <= 200 * 16
    found = forecast(checked, flops=1.5e6)
    assert found.seconds is not None
    one_pass = 2 * parameters * tokens / 1e6
    assert found.seconds["measure: after quantize/weight-only"] == pytest.approx(2 * one_pass)
    assert found.seconds["openvino: write, load, measure"] == pytest.approx(5 + 2 * one_pass, rel=0.01)
    assert found.seconds["compress: quantize/weight-only"] == 1
    # 8 bits a weight: once staged, once packed.
    assert found.store == (2 + 4) * parameters and found.temporary == parameters
    assert found.memory == pytest.approx(600e6 + 600e6 + (1.1 * 4 + 2.5) * parameters)
    sampled = forecast(check(text_recipes.recipe_of(tmp_path, model, compress=compress)), flops=1.5e6)
    assert sampled.seconds is not None
    assert sampled.seconds["measure: after quantize/weight-only"] == pytest.approx(one_pass)


def test_an_encoder_by_hand(tiny_model, tmp_path, monkeypatch) -> None:
    """Its table of tokens takes no products; of many texts some are timed."""
    monkeypatch.setattr("archiver.pipeline.forecast.MAX_ITEMS", 6)
    recipe = recipe_of(tmp_path, tiny_model(), serve={"runtime": "openvino", "max_length": 32})
    checked = check(recipe)
    facts = checked.facts
    tokens = checked.task.tokens(checked.validation, recipe, facts, checked.source)
    assert tokens is not None and len(checked.validation) == 24
    found = forecast(checked, flops=1.5e6).seconds
    assert found is not None
    one_pass = 2 * (facts.num_parameters - facts.vocab_size * facts.hidden_size) * tokens / 1e6
    assert found["openvino: time against PyTorch eager fp32"] == pytest.approx(2 + 6 * one_pass / 4)
    assert found["openvino: write, load, measure"] == pytest.approx(5 + 2 * one_pass, rel=0.01)


def test_training_reads_its_data_again_and_again(tiny_model, tmp_path) -> None:
    once = recipe_of(tmp_path, tiny_model(), compress=[{"retrain": {"epochs": 1}}])
    thrice = recipe_of(tmp_path, tiny_model(), compress=[{"retrain": {"epochs": 3}}])
    short, long = (forecast(check(recipe), flops=1e6).seconds for recipe in (once, thrice))
    assert short is not None and long is not None
    assert long["compress: retrain"] - 1 == pytest.approx(3 * (short["compress: retrain"] - 1))


def test_layers_that_learn_by_themselves_take_their_steps(tiny_model, tmp_path) -> None:
    stage = {"retrain": {"method": "layerwise", "steps": 100}}
    few = recipe_of(tmp_path, tiny_model(), compress=[stage])
    many = recipe_of(tmp_path, tiny_model(), compress=[{"retrain": {"method": "layerwise", "steps": 300}}])
    one, three = (forecast(check(recipe), 1e6).seconds["compress: retrain/layerwise"] for recipe in (few, many))
    assert 2 < three / one < 3  # and as much reading of the texts as before


def test_sentences() -> None:
    assert Forecast({"a": 100.0, "b": 80.0}, 2.14e9, 3e8, 1e8).sentence() == (
        "about 3 minutes, 2.1 GB of memory and 0.4 GB of disk"
    )
    assert Forecast(None, 6e8, 3e6, 1e6).sentence() == "about 0.6 GB of memory and 4 MB of disk"
    assert product_rate() > 1e8


def test_a_full_disk_is_told_before_any_work(tiny_model, tmp_path, monkeypatch, capsys) -> None:
    recipe = recipe_of(tmp_path, tiny_model(), compress=quantize("dynamic-int8"), serve={"runtime": "onnxruntime"})
    stream = io.StringIO()
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(10, 10, 1000))
    with pytest.raises(OSError, match=r"the build needs about \d+ MB and .* has 0 MB left") as refused:
        pipeline.build(recipe, tmp_path / "store", Progress(stream))
    assert refused.value.errno == errno.ENOSPC and not (tmp_path / "store").exists()
    assert "  needs about " in stream.getvalue() and "compress" not in stream.getvalue()
    assert main(["build", str(tmp_path / "recipe.yaml"), "--model-store", str(tmp_path / "store")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error: {tmp_path / 'store'}: the build needs about ")
    assert said.endswith("left; free some of it, or name a folder on another disk")


def test_each_disk_is_asked_for_its_own(tmp_path, monkeypatch) -> None:
    """Two disks: what is staged and packed lies on the one, temporary files on the other."""
    store, temporary = tmp_path / "store", tmp_path / "tmp"
    store.mkdir()
    temporary.mkdir()
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(temporary))
    free = {store: 5e6, temporary: 5e6}
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(0, 0, free[place]))
    real = type(store).stat
    apart = lambda self, **more: SimpleNamespace(st_dev=hash(self.name), st_mode=real(self, **more).st_mode)  # noqa: E731
    monkeypatch.setattr(type(store), "stat", apart)
    require_room(Forecast(None, 0, 4e6, 4e6), store)
    with pytest.raises(OSError, match=r"about 6 MB and its disk has 5 MB left"):
        require_room(Forecast(None, 0, 6e6, 1e6), store)
    with pytest.raises(OSError, match=r"about 6 MB and the disk of temporary files \(TMPDIR\) has 5 MB left"):
        require_room(Forecast(None, 0, 1e6, 6e6), store)


def test_stages_of_one_kind_add_up(tiny_model, tmp_path) -> None:
    model = tiny_model("llama", "text-generation")
    stage = {"quantize": {"method": "weight-only", "bits": 4, "group_size": 16, "algorithm": "gptq"}}

    def seconds(stages: list[dict]) -> float:
        found = forecast(check(text_recipes.recipe_of(tmp_path, model, compress=stages)), flops=1.5e6)
        assert found.seconds is not None
        return found.seconds["compress: quantize/weight-only"]

    one = seconds([stage])
    assert one > 2
    assert seconds([stage, {"quantize": {"method": "weight-only"}}]) == pytest.approx(one + 1)
