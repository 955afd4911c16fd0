"""How a result was made: versions, seed, device, data and model hashes, command.

A provenance is a plain dict with JSON types, so that it survives in every file. Nothing in it depends on the
clock or on a path of the machine: the same seed on the same machine gives the same bytes.
"""

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("codecprobe", "torch", "torchaudio", "transformers", "qwen-tts", "numpy", "scipy", "scikit-learn")


def provenance(*, seed: int, device: str = "cpu", command: str = "", **facts: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return the record that travels with a result; `facts` are hashes, revisions, certificates, parameters."""
    return {"command": command, "seed": seed, "device": device, "versions": versions(), **facts}


def versions() -> dict[str, str]:
    """Return the versions of the packages that can change a number, and of Python."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def digest(*parts: bytes | str) -> str:
    """Return a 16-character hash of the parts, in order.

    >>> digest("a", "b") == digest(b"a", b"b") != digest("ab")
    True
    """
    whole = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        whole.update(len(data).to_bytes(8, "little") + data)
    return whole.hexdigest()


def digest_of_files(paths: Iterable[Path]) -> str:
    """Return one hash of the contents of files, independent of where they lie; names count, folders do not."""
    return digest(*(part for path in sorted(paths, key=lambda p: p.name) for part in (path.name, _file(path))))


def digest_of_record(record: Mapping[str, Any]) -> str:
    """Return the hash of a record of JSON types, independent of the order of its keys."""
    return digest(json.dumps(record, sort_keys=True, default=str))


def _file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "blake2b").hexdigest()
