"""Arrays on disk: a cache of arrays by content, and activations written shard by shard.

Conventions. Every file appears under its name whole or not at all (written beside it, flushed, renamed). Every
array is stored with a hash of its dtype, shape and bytes, which is checked when it is read. `ArrayCache` answers a
damaged entry with a miss and a warning, because it can be made again; `ActivationStore` answers it with an error,
because what it holds may be hours of work and must never be half right.
"""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probecore.errors import InputError
from probecore.provenance import digest

log = logging.getLogger("probecore.store")

Arrays = dict[str, NDArray[Any]]
STORED_KINDS = "biuf"  # bool, int, unsigned, float: what a safetensors file can hold


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
            return _unpack(data, key)
        except InputError as error:
            log.warning("cache entry %s is damaged (%s); it is made again", path.name, error)
            return None

    def put(self, key: str, arrays: Mapping[str, ArrayLike]) -> None:
        """Keep the arrays of a key; what was there is replaced in one step."""
        write_bytes(self.path(key), _pack(arrays, key))

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


def hash_of_array(array: NDArray[Any]) -> str:
    """Return the hash of an array's dtype, shape and bytes."""
    return digest(array.dtype.str, str(array.shape), np.asarray(array, order="C").tobytes())


def _pack(arrays: Mapping[str, ArrayLike], key: str) -> bytes:
    from safetensors.numpy import save

    stored = {name: _storable(np.asarray(array), name) for name, array in arrays.items()}
    hashes = {name: hash_of_array(array) for name, array in stored.items()}
    packed: bytes = save(stored, metadata={"entry": json.dumps({"key": key, "hashes": hashes})})
    return packed


def _unpack(data: bytes, key: str) -> Arrays:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        length = int.from_bytes(data[:8], "little")
        entry = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["entry"])
        owner, hashes = entry["key"], entry["hashes"]
        arrays: Arrays = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InputError("it cannot be read as a safetensors file") from error
    if owner != key:
        raise InputError(f"it belongs to key {owner!r}")
    if {name: hash_of_array(array) for name, array in arrays.items()} != hashes:
        raise InputError("its arrays do not have the hashes they were written with")
    return {name: arrays[name] for name in hashes}


def _storable(array: NDArray[Any], name: str) -> NDArray[Any]:
    """Return the array in C order and native byte order; refuse what is not numbers."""
    if array.dtype.kind not in STORED_KINDS or array.dtype.itemsize > 8:
        raise InputError(f"array {name!r} must hold numbers of at most 64 bits to be stored; got dtype {array.dtype}")
    return np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")
