"""Devices by name: what is known, what is refused, and that a GPU is never guessed."""

import pytest
import torch

from probecore.devices import device_of
from probecore.errors import InputError


def test_cpu_is_cpu_and_auto_is_the_best_there_is():
    assert device_of("cpu") == torch.device("cpu")
    assert device_of("auto") == torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:", "cpu:1", "mps", "", "cuda:-1"])
def test_other_names_are_refused(name: str):
    with pytest.raises(InputError, match=r"--device must be auto, cpu, cuda or cuda:N; got "):
        device_of(name)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match=r"--device cuda:99 is not there"):
        device_of("cuda:99")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_of("cuda:1") == torch.device("cuda", 1) and device_of("auto") == torch.device("cuda")
    with pytest.raises(InputError, match=r"--device cuda:2 is not there, this machine has 2 CUDA devices"):
        device_of("cuda:2")


def test_an_apple_gpu_only_for_those_who_can_use_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert device_of("auto") == torch.device("cpu") and device_of("auto", mps=True) == torch.device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"--device mps is not there"):
        device_of("mps", mps=True)
