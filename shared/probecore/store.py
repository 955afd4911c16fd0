"""Arrays on disk: a cache of arrays by content, and activations written shard by shard.

Conventions. Every file appears under its name whole or not at all (written beside it, flushed, renamed). Every array
is stored with a hash (`probecore.array_files`), which is checked when it is read. `ArrayCache` answers a damaged entry
with a miss and a warning, because it can be made again; `ActivationStore` answers it with an error, because what it
holds may be hours of work and must never be half right.
"""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probecore.activations import Activations, Label
from probecore.array_files import Arrays, hash_of_array, pack, storable, unpack
from probecore.errors import InputError, shorten
from probecore.provenance import digest, digest_of_record
from probecore.results import plain
from probecore.validation import finite_matrix, one_per_item

log = logging.getLogger("probecore.store")

FORMAT = 1


def cache_dir() -> Path:
    """Return the root of every cache: $CODECPROBE_CACHE, else $XDG_CACHE_HOME/codecprobe, else ~/.cache/codecprobe."""
    own, shared = os.environ.get("CODECPROBE_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if own:
        return Path(own).expanduser()
    return (Path(shared).expanduser() if shared else Path.home() / ".cache") / "codecprobe"


class ArrayCache:
    """Named arrays by key, one file per key; safe with several processes at once.

    folder : where the files lie; made when the first entry is put. A key is any text that names all that the
    arrays depend on (hash of the audio, of the weights, versions); the caller's `digest(...)` serves well.

    >>> folder = getfixture("tmp_path")
    >>> cache = ArrayCache(folder)
    >>> cache.put("clip 1", {"codes": np.arange(6).reshape(3, 2)})
    >>> cache.get("clip 1")["codes"].shape, cache.get("clip 2")
    ((3, 2), None)
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def get(self, key: str) -> Arrays | None:
        """Return the arrays of a key, or None where there are none or the entry is damaged (with a warning)."""
        path = self.path(key)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            return unpack(data, key)
        except InputError as error:
            log.warning("cache entry %s is damaged (%s); it is made again", path.name, error)
            return None

    def put(self, key: str, arrays: Mapping[str, ArrayLike]) -> None:
        """Keep the arrays of a key; what was there is replaced in one step."""
        write_bytes(self.path(key), pack(arrays, key))

    def __contains__(self, key: str) -> bool:
        return self.path(key).exists()

    def path(self, key: str) -> Path:
        """Return the file of a key."""
        name = digest(key)
        return self.folder / name[:2] / f"{name}.safetensors"


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: beside its place, flushed to the disk, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with beside.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


class ActivationStore:
    """Values of items, layer by layer, appended shard by shard to a folder; resumes where it stopped.

    folder : made when missing. key : a record of JSON types that names all the values depend on (model revision and
    hash, data hash, site, versions). One process writes at a time; any number read.

    Raises `InputError` when the folder was made with another key, or holds files that are not a store.
    """

    def __init__(self, folder: str | Path, key: Mapping[str, Any]) -> None:
        self.folder, self.key = Path(folder), plain(dict(key))
        self._shards: list[dict[str, Any]] = []
        if (self.folder / "manifest.json").exists():
            manifest = _manifest(self.folder)
            self._shards, met = manifest["shards"], manifest["key"]
            if met != self.key:
                ours, theirs = (json.dumps(record, sort_keys=True) for record in (self.key, met))
                raise InputError(f"{self.folder} holds activations of {theirs}, not of {ours}; give another folder")
        else:
            if self.folder.exists() and any(self.folder.iterdir()):
                raise InputError(f"{self.folder} is not empty and holds no activations; give a new folder")
            self._write_manifest()

    @property
    def items(self) -> tuple[str, ...]:
        """Names of the items stored so far, in the order in which they came."""
        return tuple(item for shard in self._shards for item in shard["items"])

    def missing(self, items: Sequence[str]) -> list[str]:
        """Return those of `items` that are not stored yet, in their order."""
        stored = set(self.items)
        return [item for item in items if item not in stored]

    def append(self, items: Sequence[str], values: Mapping[str, ArrayLike]) -> None:
        """Store some items: layer name -> (len(items), features). They count once this has returned, not before."""
        arrays = {layer: storable(finite_matrix(array, layer), layer) for layer, array in values.items()}
        known = [item for item in items if item in set(self.items)]
        if known or len(set(items)) != len(items):
            raise InputError(f"an item is stored once; met again: {shorten(known or sorted(items))}")
        if {len(array) for array in arrays.values()} != {len(items)}:
            raise InputError(f"each layer must have {len(items)} rows, one per item; got {shorten(_shapes(arrays))}")
        if self._shards and _widths(arrays) != self._shards[0]["features"]:
            raise InputError(f"layers must be those stored, {self._shards[0]['features']}; got {_widths(arrays)}")
        hashes = {layer: hash_of_array(array) for layer, array in arrays.items()}
        data = pack(arrays, "shard")
        file = f"{digest(data)}.safetensors"
        shard = {"file": file, "items": list(items), "features": _widths(arrays), "hashes": hashes}
        write_bytes(self.folder / file, data)
        self._shards = [*self._shards, shard]
        self._write_manifest()

    def activations(
        self,
        groups: ArrayLike,
        labels: Mapping[str, Label],
        items: Sequence[str] | None = None,
        rate_hz: float | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> Activations:
        """Return the stored items (all, or `items` in their order) as `Activations` that read a layer when asked."""
        names = tuple(self.items if items is None else items)
        absent = self.missing(names)
        if absent or not names:
            raise InputError(f"not stored in {self.folder}: {shorten(absent) or 'any item'}; append them first")
        place = {item: i for i, item in enumerate(self.items)}
        rows = np.array([place[item] for item in names])
        shards, folder = tuple(self._shards), self.folder
        for name, label in labels.items():
            one_per_item(label.values, len(names), f"label {name!r}")
        return Activations(
            layers=tuple(shards[0]["features"]),
            read=lambda layer: _read_layer(folder, shards, layer)[rows],
            groups=one_per_item(groups, len(names), "groups"),
            labels=dict(labels),
            items=names,
            rate_hz=rate_hz,
            info=dict(info or {}),
        )

    def finish(
        self,
        groups: ArrayLike,
        labels: Mapping[str, Label],
        items: Sequence[str] | None = None,
        rate_hz: float | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> Activations:
        """Write groups, labels and facts beside the values, so that `load_activations` reads the folder; return all.

        May be called again, with other labels: what it wrote before is replaced, the values stay.
        """
        whole = self.activations(groups, labels, items, rate_hz, info)
        _write_facts(self.folder, _facts_of(whole), self.key)
        return whole

    def _write_manifest(self) -> None:
        record = {"format": FORMAT, "key": self.key, "shards": self._shards}
        write_bytes(self.folder / "manifest.json", json.dumps(record, indent=1).encode())


def save_activations(activations: Activations, folder: str | Path, *, items_per_shard: int = 4096) -> Path:
    """Write activations with their groups, labels and facts into a new folder; return it."""
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty; give a new folder")
    facts = _facts_of(activations)
    store = ActivationStore(folder, {"activations": digest_of_record(facts)})
    for start in range(0, activations.n_items, items_per_shard):
        chosen = activations.take(np.arange(start, min(start + items_per_shard, activations.n_items)))
        store.append(chosen.items, {layer: chosen.values(layer) for layer in chosen.layers})
    _write_facts(folder, facts, store.key)
    return folder


def load_activations(folder: str | Path) -> Activations:
    """Return the activations of a folder that `save_activations` or a finished store wrote; layers are read when asked.

    Raises `InputError` where the folder is not complete; reading a damaged layer raises it too.
    """
    folder = Path(folder)
    if not (folder / "activations.json").exists():
        raise InputError(f"{folder} holds no complete saved activations; save them again into a new folder")
    facts = json.loads((folder / "activations.json").read_text())
    key, digested = facts.pop("key", None), facts.pop("digest", None)
    if key is None or digested != digest_of_record(facts):
        raise InputError(f"{folder / 'activations.json'} was changed after it was written; save the activations again")
    store = ActivationStore(folder, key)
    labels = {name: _label(record) for name, record in facts["labels"].items()}
    return store.activations(_array(facts["groups"]), labels, facts["items"], facts["rate_hz"], facts["info"])


def _facts_of(activations: Activations) -> dict[str, Any]:
    if len(set(activations.items)) != activations.n_items:
        raise InputError("items must have different names to be saved; give each item its own")
    return {
        "items": list(activations.items),
        "groups": _listed(activations.groups, "groups"),
        "labels": {name: _label_record(label, name) for name, label in activations.labels.items()},
        "rate_hz": activations.rate_hz,
        "info": plain(dict(activations.info)),
    }


def _write_facts(folder: Path, facts: Mapping[str, Any], key: Mapping[str, Any]) -> None:
    record = {**facts, "key": key, "digest": digest_of_record(facts)}
    write_bytes(folder / "activations.json", json.dumps(record).encode())


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads((folder / "manifest.json").read_text())
    except ValueError as error:
        raise InputError(f"{folder / 'manifest.json'} cannot be read: {error}; remove the folder") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise InputError(f"{folder / 'manifest.json'} is not of a store of format {FORMAT}; give another folder")
    return record


def _read_layer(folder: Path, shards: Sequence[Mapping[str, Any]], layer: str) -> NDArray[Any]:
    from safetensors import SafetensorError, safe_open

    parts = []
    for shard in shards:
        path = folder / shard["file"]
        try:
            with safe_open(path, framework="numpy") as stream:
                array = stream.get_tensor(layer)
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{path} is missing or damaged: {error}; remove the folder and compute it again"
            ) from error
        if hash_of_array(array) != shard["hashes"][layer]:
            raise InputError(f"{path} is damaged: {layer!r} has another hash; remove the folder and compute it again")
        parts.append(array)
    return np.concatenate(parts)


def _label_record(label: Label, name: str) -> dict[str, Any]:
    parts = {"values": label.values, "units": label.units, "blocks": label.blocks}
    return {k: None if v is None else _listed(v, f"label {name!r}") for k, v in parts.items()} | {"kind": label.kind}


def _label(record: Mapping[str, Any]) -> Label:
    values, units, blocks = (None if record[k] is None else _array(record[k]) for k in ("values", "units", "blocks"))
    assert values is not None
    return Label(values, units, blocks, record["kind"])


def _listed(array: NDArray[Any], name: str) -> dict[str, Any]:
    if array.dtype.kind not in "biufU":
        raise InputError(f"{name} must hold text, numbers or yes/no to be saved; got dtype {array.dtype}")
    return {"dtype": array.dtype.str, "values": array.tolist()}


def _array(record: Mapping[str, Any]) -> NDArray[Any]:
    return np.array(record["values"], dtype=record["dtype"])


def _widths(arrays: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    return {layer: array.shape[1] for layer, array in arrays.items()}


def _shapes(arrays: Mapping[str, NDArray[Any]]) -> list[str]:
    return [f"{layer} {array.shape}" for layer, array in arrays.items()]
