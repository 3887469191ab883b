"""The GPU that a worker computes on."""

import os

import pytest
import torch

from handlers.errors import UnsoundArchive
from handlers.gpu import gpu_of, use_gpu
from handlers.runtimes.torch_device import placed


@pytest.mark.parametrize(
    ("shown", "number", "expected"),
    [
        (None, 2, "2"),
        ("", 1, "1"),
        ("5,7", 1, "7"),
        ("GPU-8a, GPU-9b", 0, "GPU-8a"),
        ("5,7", 2, "5,7"),  # TorchServe counts otherwise than the variable: it stays as it is
    ],
)
def test_a_worker_sees_the_gpu_it_was_given(
    monkeypatch: pytest.MonkeyPatch, shown: str | None, number: int, expected: str
) -> None:
    if shown is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    use_gpu(number)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == expected


def test_a_worker_without_a_gpu_has_no_number() -> None:
    assert gpu_of({"gpu_id": None}) is None
    assert gpu_of({}) is None
    assert gpu_of({"gpu_id": -1}) is None
    assert gpu_of({"gpu_id": 0}) == 0


def test_without_a_device_a_module_stays_on_the_cpu() -> None:
    module = placed(torch.nn.Linear(2, 2), {})
    assert module.weight.device.type == "cpu"


def test_cuda_without_a_gpu_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnsoundArchive, match="sees no GPU: run the worker where nvidia-smi lists one"):
        placed(torch.nn.Linear(2, 2), {"device": "cuda"})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")
def test_a_module_moves_to_the_gpu() -> None:
    assert placed(torch.nn.Linear(2, 2), {"device": "cuda"}).weight.device.type == "cuda"
