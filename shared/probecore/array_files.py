"""Array files: named arrays as the bytes of one safetensors file, which says whose they are and what they must be.

Conventions. Every array is stored in C order and native byte order with a hash of its dtype, shape and bytes, which is
checked when it is read.
"""

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probecore.errors import InputError
from probecore.provenance import digest

Arrays: TypeAlias = dict[str, NDArray[Any]]
STORED_KINDS = "biuf"  # bool, int, unsigned, float: what a safetensors file can hold


def hash_of_array(array: NDArray[Any]) -> str:
    """Return the hash of an array's dtype, shape and bytes."""
    return digest(array.dtype.str, str(array.shape), np.asarray(array, order="C").tobytes())


def pack(arrays: Mapping[str, ArrayLike], key: str) -> bytes:
    """Return named arrays and the key they belong to as the bytes of a file; raises `InputError` as `storable`."""
    from safetensors.numpy import save

    stored = {name: storable(np.asarray(array), name) for name, array in arrays.items()}
    hashes = {name: hash_of_array(array) for name, array in stored.items()}
    packed: bytes = save(stored, metadata={"entry": json.dumps({"key": key, "hashes": hashes})})
    return packed


def unpack(data: bytes, key: str) -> Arrays:
    """Return the arrays of a file; raises `InputError` where it is damaged or belongs to another key."""
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


def storable(array: NDArray[Any], name: str) -> NDArray[Any]:
    """Return the array in C order and native byte order; refuse what is not numbers."""
    if array.dtype.kind not in STORED_KINDS or array.dtype.itemsize > 8:
        raise InputError(f"array {name!r} must hold numbers of at most 64 bits to be stored; got dtype {array.dtype}")
    return np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")
