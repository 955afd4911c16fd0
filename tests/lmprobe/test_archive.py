"""What is captured to disk is what is captured in memory, resumes with the same bytes, and refuses strangers."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from zoo import opened

import lmprobe.capture_job as job
from lmprobe import capture
from lmprobe.archive import capture_to, written_texts
from lmprobe.interventions import ProjectOut, intervened
from probecore import InputError
from probecore.store import load_activations

pytestmark = pytest.mark.transformers

CLOSE = 2e-5
"""As in test_capture: batches differ between memory and disk, and move the last bits only."""
TEXTS = [" ".join(f"w{(7 * i + k) % 100}" for k in range(1 + (5 * i) % 17)) for i in range(40)]
NAMES = [f"text {i}" for i in range(len(TEXTS))]


class Stopped(Exception):
    pass


def stop_after(n):
    def progress(done, total):
        if done >= n:
            raise Stopped

    return progress


def small_shards(monkeypatch):
    """A megabyte holds all states of these tests, so a shard is made of kilobytes."""
    import lmprobe.archive as archive

    cut = archive._shards
    monkeypatch.setattr(archive, "_shards", lambda lm, rows, wanted, place, new, mb: cut(
        replace_width(lm), rows, wanted, place, new, mb))  # fmt: skip


def replace_width(lm, width=8_000):
    return replace(lm, info={**lm.info, "width": width})


def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize("at", ["last", "mean without first", "all", "regex:w[0-9]*5", "all generated"])
def test_on_disk_as_in_memory(at, tmp_path, monkeypatch):
    small_shards(monkeypatch)
    lm = opened("llama")
    texts = [text for text in TEXTS if not at.startswith("regex") or any(w.endswith("5") for w in text.split())]
    texts = [text for text in texts if len(text.split()) > 1]
    names = NAMES[: len(texts)]
    labels = {"odd": [i % 2 for i in range(len(texts))]}
    options = dict(at=at, layers=["embed", "attention 1", "block 2"], names=names, labels=labels, max_new_tokens=4)
    ours = capture(lm, texts, **options)
    made = capture_to(tmp_path / "a", lm, texts, **options, shard_mb=1)
    assert sum(p.suffix == ".safetensors" for p in (tmp_path / "a").iterdir()) > 1
    for disk in (made, load_activations(tmp_path / "a")):
        assert disk.items == ours.items and disk.layers == ours.layers == ("embed", "attention 1", "block 2")
        assert np.array_equal(disk.groups, ours.groups)
        mine, theirs = disk.label("odd"), ours.label("odd")
        assert np.array_equal(mine.values, theirs.values)
        assert (mine.units is None) == (theirs.units is None)
        for layer in ours.layers:
            np.testing.assert_allclose(disk.values(layer), ours.values(layer), atol=10 * CLOSE, rtol=CLOSE)
    assert ("generated" in at) == (tmp_path / "a" / "texts.json").exists()
    if "generated" in at:
        assert list(written_texts(tmp_path / "a").values()) != []
        assert [written_texts(tmp_path / "a")[name] for name in names] == list(ours.info["texts"])


@pytest.mark.parametrize("at", ["last", "all generated"])
def test_an_interrupted_capture_goes_on_with_the_same_bytes(at, tmp_path, monkeypatch):
    small_shards(monkeypatch)
    lm = opened("llama")
    options = dict(at=at, names=NAMES, max_new_tokens=3, shard_mb=1)
    capture_to(tmp_path / "whole", lm, TEXTS, **options)
    for stop in (1, 20):
        with pytest.raises(Stopped):
            capture_to(tmp_path / "cut", lm, TEXTS, **options, progress=stop_after(stop))
        with pytest.raises(InputError, match="no complete saved activations"):
            load_activations(tmp_path / "cut")
    runs = []
    real = job.CaptureJob.run
    monkeypatch.setattr(job.CaptureJob, "run", lambda self, batch: (runs.append(len(batch)), real(self, batch))[1])
    capture_to(tmp_path / "cut", lm, TEXTS, **options)
    assert sum(runs) < len(TEXTS)  # what was stored is not captured again
    ours, theirs = files(tmp_path / "cut"), files(tmp_path / "whole")
    assert ours.keys() == theirs.keys()
    for name in ours:
        if name.endswith(".json"):
            assert json.loads(ours[name]) == json.loads(theirs[name])
        else:
            assert ours[name] == theirs[name]


def test_a_folder_of_something_else_is_refused(tmp_path):
    lm = opened("llama")
    capture_to(tmp_path / "a", lm, TEXTS[:4], layers="embed")
    again = capture_to(tmp_path / "a", lm, TEXTS[:4], layers="embed", labels={"new": list("abab")})
    assert list(again.label("new").values) == list("abab")
    others = (
        dict(at="first"), dict(layers="block 0"), dict(deterministic=True), dict(batch_tokens=64),
        dict(prompts=TEXTS[1:5]), dict(names=list("abcd")), dict(lm=opened("gpt2")),
    )  # fmt: skip
    for other in others:
        options = dict(lm=lm, prompts=TEXTS[:4], layers="embed") | other
        with pytest.raises(InputError, match="holds activations of"):
            capture_to(tmp_path / "a", options.pop("lm"), options.pop("prompts"), **options)
    with intervened(lm, ProjectOut(np.eye(64)[0], at="input 0")), pytest.raises(InputError, match="holds activations"):
        capture_to(tmp_path / "a", lm, TEXTS[:4], layers="embed")
    with pytest.raises(InputError, match="must name its tokens; got a function"):
        capture_to(tmp_path / "b", lm, TEXTS[:4], at=lambda row: [0])
    with pytest.raises(InputError, match="names must be different"):
        capture_to(tmp_path / "b", lm, TEXTS[:2], names=["a", "a"])
    assert not (tmp_path / "b").exists()


def test_memory_that_runs_out_halves_the_batch_and_changes_nothing_but_rounding(tmp_path, monkeypatch):
    """A device that holds at most 3 prompts at a time: the capture goes on in smaller batches."""
    lm = opened("llama")
    real, sizes = job.CaptureJob.run, []

    def scarce(self, batch):
        if len(batch) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(batch))
        return real(self, batch)

    ours = capture(lm, TEXTS)
    monkeypatch.setattr(job.CaptureJob, "run", scarce)
    acts = capture_to(tmp_path / "a", lm, TEXTS)
    assert sum(sizes) == len(TEXTS) and max(sizes) <= 3
    for layer in ours.layers:
        np.testing.assert_allclose(acts.values(layer), ours.values(layer), atol=CLOSE, rtol=CLOSE)
