"""Training on a Ray cluster, with a stand-in for Ray."""

import sys
import types
from pathlib import Path

import pytest
from planted_members import NOTHING

from lmprobe.grokking.cluster import train_on_cluster
from lmprobe.grokking.setting import Setting
from lmprobe.grokking.spec import grid
from probecore import InputError, MissingExtraError


def test_a_cluster_needs_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"--cluster needs the 'cluster' extra: pip install"):
        train_on_cluster([NOTHING], tmp_path, "auto")


def test_tasks_of_a_cluster_train_members_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray stood in for by a module that runs each task at once: every member is trained, a second call asks nothing."""
    asked: list[dict] = []

    def remote(**options: object) -> object:
        def decorate(function: object) -> object:
            def submit(record: dict, folder: str) -> object:
                asked.append(record)
                function(record, folder)  # type: ignore[operator]
                return object()

            return types.SimpleNamespace(remote=submit)

        return decorate

    fake = types.SimpleNamespace(
        init=lambda **_: None, shutdown=lambda: None, remote=remote, get=lambda done: None,
        wait=lambda left, num_returns: (left[:1], left[1:]),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "ray", fake)
    specs = grid(NOTHING, seed=[0, 1])
    found = Setting(True, 2, 0, tmp_path, 1, "auto", "cpu").train(specs)
    assert [m.status for m in found] == ["steps", "steps"] and len(asked) == 2
    Setting(True, 2, 0, tmp_path, 1, "auto", "cpu").train(specs)
    assert len(asked) == 2


def test_an_address_without_a_cluster_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise ConnectionError("could not find any running Ray instance")

    monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(init=init))
    with pytest.raises(InputError, match=r"'ray://nowhere:1' is none"):
        train_on_cluster([NOTHING], tmp_path, "ray://nowhere:1")
