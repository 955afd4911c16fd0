"""Directions on disk: what is written is what is read, in every format, and nothing else is."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lmprobe.direction_file import direction_table, read_directions
from probecore import InputError
from probecore.report.html import to_csv

VECTOR = np.random.default_rng(0).normal(0, 3, 16)


def test_a_direction_comes_back_bit_for_bit(tmp_path) -> None:
    (tmp_path / "direction.csv").write_text(to_csv(direction_table(VECTOR)))
    for source in (tmp_path, tmp_path / "direction.csv"):
        assert np.array_equal(read_directions(source), VECTOR[:, None])
    assert np.linalg.norm([row["unit"] for row in direction_table(VECTOR)]) == pytest.approx(1, abs=1e-12)
    frame = np.stack([VECTOR, VECTOR[::-1]], axis=1)
    np.save(tmp_path / "two.npy", frame)
    save_file({"q": torch.from_numpy(frame)}, tmp_path / "two.safetensors")
    for name in ("two.npy", "two.safetensors"):
        assert np.array_equal(read_directions(tmp_path / name), frame)


def test_other_files_are_refused(tmp_path) -> None:
    (tmp_path / "words.csv").write_text("feature,direction\n0,one\n")
    (tmp_path / "none.csv").write_text("feature\n0\n")
    np.save(tmp_path / "nan.npy", np.array([1.0, np.nan]))
    save_file({"a": torch.ones(2), "b": torch.ones(2)}, tmp_path / "many.safetensors")
    for name, words in {
        "absent.csv": "which is not there", "words.csv": "not a readable csv", "none.csv": "it has none",
        "nan.npy": "must be finite", "many.safetensors": "must hold one tensor", "x.pt": "must be a folder written by",
    }.items():  # fmt: skip
        with pytest.raises(InputError, match=words):
            read_directions(tmp_path / name)
