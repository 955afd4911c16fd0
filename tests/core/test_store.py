"""Arrays on disk: what is read is what was written, or it is a miss (cache) or an error (store)."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from probecore import Activations, ActivationStore, ArrayCache, InputError, Label, load_activations, save_activations
from probecore.store import cache_dir, write_bytes

KEY = {"model": "organism", "hash": "ab12", "layers": (0, 1)}


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())


# ---------------------------------------------------------------- cache


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.int16).reshape(3, 2)[:, ::-1],
        np.arange(6.0).reshape(2, 3).T,
        np.zeros((0, 16), dtype=np.int32),
        np.float64(1 / 3),
        np.array([True, False]),
        np.array([np.nan, np.inf, -0.0], dtype=np.float32),
        np.array([0, 2**63], dtype=np.uint64),
        np.array([1.5], dtype=np.float16),
    ],
    ids=["reversed view", "transposed", "empty", "scalar", "bool", "nan", "uint64", "half"],
)
def test_the_cache_gives_back_what_it_was_given(tmp_path: Path, array: np.ndarray) -> None:
    cache = ArrayCache(tmp_path)
    cache.put("key", {"b": array, "a": np.arange(2)})
    found = cache.get("key")
    assert found is not None and list(found) == ["b", "a"]
    assert found["b"].dtype == array.dtype and found["b"].shape == array.shape
    np.testing.assert_array_equal(found["b"], array)
    assert "key" in cache and "other" not in cache and cache.get("other") is None


def test_another_byte_order_comes_back_as_the_same_numbers(tmp_path: Path) -> None:
    ArrayCache(tmp_path).put("key", {"a": np.array([1, 256], dtype=">i4")})
    found = ArrayCache(tmp_path).get("key")
    assert found is not None and found["a"].tolist() == [1, 256] and found["a"].dtype == np.dtype("int32")


@pytest.mark.parametrize("array", [np.array(["a"]), np.array([None]), np.array([1 + 2j])])
def test_what_is_not_numbers_is_refused_and_leaves_nothing(tmp_path: Path, array: np.ndarray) -> None:
    with pytest.raises(InputError, match="array 'a' must hold numbers"):
        ArrayCache(tmp_path / "new").put("key", {"a": array})
    assert not (tmp_path / "new").exists()


def damage(data: bytes, how: str) -> bytes:
    if how == "one bit of the data":
        return data[:-1] + bytes([data[-1] ^ 1])
    if how == "cut off":
        return data[: len(data) // 2]
    if how == "header":
        return data[:12] + b"\xff" + data[13:]
    return b"" if how == "empty" else b"not at all a safetensors file"


@pytest.mark.parametrize("how", ["one bit of the data", "cut off", "header", "empty", "other text"])
def test_a_damaged_entry_is_a_miss_with_a_warning_and_can_be_made_again(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = ArrayCache(tmp_path)
    cache.put("key", {"codes": np.arange(64).reshape(4, 16)})
    path = cache.path("key")
    path.write_bytes(damage(path.read_bytes(), how))
    with caplog.at_level(logging.WARNING, "probecore"):
        assert cache.get("key") is None
    assert "damaged" in caplog.text
    cache.put("key", {"codes": np.arange(4)})
    found = cache.get("key")
    assert found is not None and same(found["codes"], np.arange(4))


def test_an_entry_that_belongs_to_another_key_is_a_miss(tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path)
    cache.put("one", {"a": np.arange(3)})
    cache.path("two").parent.mkdir(parents=True, exist_ok=True)
    os.replace(cache.path("one"), cache.path("two"))
    assert cache.get("two") is None


def test_the_same_arrays_give_the_same_bytes(tmp_path: Path) -> None:
    paths = []
    for name in ("x", "y"):
        cache = ArrayCache(tmp_path / name)
        cache.put("key", {"b": np.arange(5), "a": np.ones((2, 2)), "c": np.zeros(1)})
        paths.append(cache.path("key"))
    assert paths[0].read_bytes() == paths[1].read_bytes()


WRITER = """
import sys, numpy as np
from probecore.store import ArrayCache
cache = ArrayCache(sys.argv[1])
for i in range(200):
    cache.put("shared", {"a": np.full(20_000, int(sys.argv[2]))})
"""


def test_two_processes_can_write_one_key_while_it_is_read(tmp_path: Path) -> None:
    """Every read sees one whole entry of either process: constant, of full length."""
    cache = ArrayCache(tmp_path)
    cache.put("shared", {"a": np.full(20_000, 1)})
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(i)], env=environment()) for i in (1, 2)
    ]
    reads = 0
    while any(writer.poll() is None for writer in writers):
        found = cache.get("shared")
        assert found is not None and len(found["a"]) == 20_000 and len(np.unique(found["a"])) == 1
        reads += 1
    assert [writer.returncode for writer in writers] == [0, 0] and reads > 0
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == [cache.path("shared").name]


def environment() -> dict[str, str]:
    root = Path(__file__).parents[2]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (root, root / "shared", root / "cli")))}


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def fail(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_where_caches_lie(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CODECPROBE_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "own"
    monkeypatch.delenv("CODECPROBE_CACHE")
    assert cache_dir() == tmp_path / "xdg" / "codecprobe"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "codecprobe"


# ---------------------------------------------------------------- activations


def activations() -> Activations:
    """Seven items, two layers of different width and type, labels of every type that can be kept."""
    rng = np.random.default_rng(0)
    layers = {"embedding": rng.normal(size=(7, 3)).astype(np.float32), "block 1": rng.normal(size=(7, 5))}
    groups = np.array(["s1", "s1", "s2", "s2", "s3", "s3", "s3"])
    labels = {
        "speaker": Label(["a", "a", "b", "b", "a", "a", "a"], units=groups, blocks=[1, 1, 1, 1, 2, 2, 2]),
        "f0_hz": Label(rng.normal(size=7).astype(np.float32), kind="real"),
        "voiced": Label([True, False, True, True, False, True, True]),
    }
    return Activations.from_arrays(layers, groups, labels, [f"clip {i}" for i in range(7)], 12.5, {"codec": "embedded"})


def assert_same(a: Activations, b: Activations) -> None:
    assert (a.layers, a.items, a.rate_hz, dict(a.info)) == (b.layers, b.items, b.rate_hz, dict(b.info))
    assert same(a.groups, b.groups) and list(a.labels) == list(b.labels)
    for layer in a.layers:
        assert same(a.values(layer), b.values(layer))
    for name, label in a.labels.items():
        other = b.labels[name]
        assert same(label.values, other.values) and label.kind == other.kind
        for mine, theirs in ((label.units, other.units), (label.blocks, other.blocks)):
            assert (mine is None) == (theirs is None)
            assert mine is None or theirs is None or same(mine, theirs)


@pytest.mark.parametrize("items_per_shard", [1, 3, 7, 100])
def test_what_is_loaded_is_what_was_saved_however_it_is_cut(tmp_path: Path, items_per_shard: int) -> None:
    save_activations(activations(), tmp_path / "a", items_per_shard=items_per_shard)
    assert_same(load_activations(tmp_path / "a"), activations())


def test_loaded_activations_can_be_taken_from_and_saved_again(tmp_path: Path) -> None:
    save_activations(activations(), tmp_path / "a", items_per_shard=2)
    chosen = np.array([6, 0, 3])
    save_activations(load_activations(tmp_path / "a").take(chosen), tmp_path / "b")
    assert_same(load_activations(tmp_path / "b"), activations().take(chosen))


def test_loading_reads_only_the_layer_that_is_asked_for(tmp_path: Path) -> None:
    """Damage one layer: the others can still be read, and this one says so."""
    save_activations(activations(), tmp_path, items_per_shard=7)
    shard = next(tmp_path.glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    width = {"embedding": 7 * 3 * 4, "block 1": 7 * 5 * 8}
    at = data.index(activations().values("block 1").tobytes())
    data[at + width["block 1"] - 1] ^= 1
    shard.write_bytes(data)
    loaded = load_activations(tmp_path)
    assert same(loaded.values("embedding"), activations().values("embedding"))
    with pytest.raises(InputError, match="'block 1' has another hash"):
        loaded.values("block 1")


def test_a_lost_or_cut_shard_is_an_error_not_fewer_items(tmp_path: Path) -> None:
    save_activations(activations(), tmp_path, items_per_shard=3)
    shard = sorted(tmp_path.glob("*.safetensors"))[0]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-8])
    with pytest.raises(InputError, match="missing or damaged"):
        load_activations(tmp_path).values("embedding")
    shard.unlink()
    with pytest.raises(InputError, match="missing or damaged"):
        load_activations(tmp_path).values("embedding")


def test_a_store_takes_up_where_it_stopped(tmp_path: Path) -> None:
    acts = activations()
    store = ActivationStore(tmp_path, KEY)
    store.append(acts.items[4:], {layer: acts.values(layer)[4:] for layer in acts.layers})
    (tmp_path / "deadbeef.safetensors").write_bytes(b"a shard that was written but never counted")
    again = ActivationStore(tmp_path, KEY)
    assert again.items == acts.items[4:] and again.missing(acts.items) == list(acts.items[:4])
    with pytest.raises(InputError, match=r"not stored in .*: clip 0, clip 1, clip 2, clip 3"):
        again.activations(acts.groups, acts.labels, acts.items)
    again.append(acts.items[:4], {layer: acts.values(layer)[:4] for layer in acts.layers})
    whole = ActivationStore(tmp_path, KEY).activations(acts.groups, acts.labels, acts.items, acts.rate_hz, acts.info)
    assert_same(whole, acts)


FILLER = """
import sys, numpy as np
from probecore.store import ActivationStore
store = ActivationStore(sys.argv[1], {"run": 1})
for i in store.missing([f"item {i}" for i in range(10_000)]):
    store.append([i], {"layer": np.full((1, 4), float(i.split()[1]))})
"""


def test_a_store_that_was_killed_holds_only_whole_items(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", FILLER, str(tmp_path / "s")], env=environment())
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "s").glob("*.safetensors"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    store = ActivationStore(tmp_path / "s", {"run": 1})
    assert 4 <= len(store.items) < 10_000
    acts = store.activations(groups=np.arange(len(store.items)), labels={})
    assert acts.values("layer")[:, 0].tolist() == [float(item.split()[1]) for item in store.items]


def test_a_store_made_with_another_key_is_refused_with_both_keys(tmp_path: Path) -> None:
    ActivationStore(tmp_path, KEY)
    ActivationStore(tmp_path, {**KEY, "layers": [0, 1]})
    with pytest.raises(InputError, match=r'holds activations of .*"hash": "ab12".*, not of .*"hash": "cd34"'):
        ActivationStore(tmp_path, {**KEY, "hash": "cd34"})


def test_a_folder_that_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="not empty and holds no activations"):
        ActivationStore(tmp_path, KEY)
    with pytest.raises(InputError, match="is not empty"):
        save_activations(activations(), tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"name": "somebody else's"}))
    with pytest.raises(InputError, match="not of a store of format 1"):
        ActivationStore(tmp_path, KEY)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        ActivationStore(tmp_path, KEY)


def test_what_cannot_be_appended_is_refused(tmp_path: Path) -> None:
    store = ActivationStore(tmp_path, KEY)
    store.append(["a"], {"layer": np.zeros((1, 3))})
    with pytest.raises(InputError, match="stored once; met again: a"):
        store.append(["a"], {"layer": np.zeros((1, 3))})
    with pytest.raises(InputError, match="stored once"):
        store.append(["b", "b"], {"layer": np.zeros((2, 3))})
    with pytest.raises(InputError, match="must have 2 rows"):
        store.append(["b", "c"], {"layer": np.zeros((1, 3))})
    with pytest.raises(InputError, match=r"layers must be those stored, \{'layer': 3\}; got \{'layer': 4\}"):
        store.append(["b"], {"layer": np.zeros((1, 4))})
    with pytest.raises(InputError, match="finite"):
        store.append(["b"], {"layer": np.full((1, 3), np.nan)})
    assert ActivationStore(tmp_path, KEY).items == ("a",)


def test_activations_that_cannot_be_read_back_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no complete saved activations"):
        load_activations(tmp_path)
    twice = Activations.from_arrays({"layer": np.zeros((2, 1))}, ["a", "b"], {}, items=["same", "same"])
    with pytest.raises(InputError, match="different names"):
        save_activations(twice, tmp_path / "twice")
    mixed = Activations.from_arrays({"layer": np.zeros((2, 1))}, np.array(["a", 1], dtype=object), {})
    with pytest.raises(InputError, match="groups must hold text, numbers or yes/no"):
        save_activations(mixed, tmp_path / "mixed")
    assert not (tmp_path / "twice").exists() and not (tmp_path / "mixed").exists()


def test_facts_changed_by_hand_are_noticed(tmp_path: Path) -> None:
    save_activations(activations(), tmp_path)
    facts = json.loads((tmp_path / "activations.json").read_text())
    facts["labels"]["speaker"]["values"]["values"][0] = "b"
    (tmp_path / "activations.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match="was changed after it was written"):
        load_activations(tmp_path)


def test_a_finished_store_reads_as_saved_activations_and_takes_new_labels(tmp_path: Path) -> None:
    whole = activations()
    store = ActivationStore(tmp_path / "a", {"of": "a test"})
    for half in (slice(2, None), slice(0, 2)):
        part = whole.take(np.arange(whole.n_items)[half])
        store.append(part.items, {layer: part.values(layer) for layer in part.layers})
    with pytest.raises(InputError, match="no complete saved activations"):
        load_activations(tmp_path / "a")
    for labels in ({}, whole.labels):
        store.finish(whole.groups, labels, whole.items, info={"seed": 3})
        again = load_activations(tmp_path / "a")
        assert again.items == whole.items and set(again.labels) == set(labels) and again.info == {"seed": 3}
        for layer in whole.layers:
            assert np.array_equal(again.values(layer), whole.values(layer))
    with pytest.raises(InputError, match="holds activations of"):
        ActivationStore(tmp_path / "a", {"of": "another test"})
