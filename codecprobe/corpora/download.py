"""LibriSpeech from openslr.org into a cache: resumed after an interruption, checked, unpacked, then used offline.

Conventions. `CACHE/librispeech/LibriSpeech/SUBSET` is complete when it exists: a subset is downloaded to
`SUBSET.tar.gz.part`, hashed (SHA-256, the values torchaudio keeps), unpacked by torchaudio beside it and then
renamed into place. A run that is stopped anywhere goes on where it stopped.
"""

import hashlib
import shutil
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from types import MappingProxyType
from typing import Any

from probecore.errors import InputError
from probecore.validation import one_of

SOURCE = "https://www.openslr.org/resources/12"
SHA256: Mapping[str, str] = MappingProxyType(
    {
        "dev-clean": "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3",
        "dev-other": "12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365",
        "test-clean": "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23",
        "test-other": "d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29",
        "train-clean-100": "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2",
        "train-clean-360": "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf",
        "train-other-500": "ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2",
    }
)
TIMEOUT_S = 15.0
_BLOCK = 1 << 20


def download_librispeech(
    subset: str,
    cache: Path,
    *,
    source: str = SOURCE,
    checksums: Mapping[str, str] = SHA256,
    timeout_s: float = TIMEOUT_S,
    quiet: bool = False,
) -> Path:
    """Return the folder of a subset, downloading it into `cache` when it is not there yet.

    Raises `InputError` for an unknown subset, when the source cannot be reached (what was received is kept and the
    next call goes on from there) and when the file received is not the published one (it is thrown away).
    """
    one_of(subset, checksums, "a LibriSpeech subset")
    home = cache / "librispeech"
    folder = home / "LibriSpeech" / subset
    if folder.is_dir():
        return folder
    home.mkdir(parents=True, exist_ok=True)
    url, part = f"{source}/{subset}.tar.gz", home / f"{subset}.tar.gz.part"
    try:
        _fetch(url, part, timeout_s, quiet)
    except (urllib.error.URLError, HTTPException, OSError) as error:
        reason = str(getattr(error, "reason", error)) or type(error).__name__
        raise InputError(
            f"cannot download {url} ({reason}): run again to go on, or unpack a copy of that file and "
            f"give its folder LibriSpeech/{subset}"
        ) from error
    with part.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != checksums[subset]:
        part.unlink()
        raise InputError(f"{url} must have SHA-256 {checksums[subset][:12]}...; got {found[:12]}...: download it again")
    _unpack(part, subset, home)
    return folder


def _fetch(url: str, part: Path, timeout_s: float, quiet: bool) -> None:
    """Append what is missing of `url` to `part` (HTTP Range, RFC 9110, 14.2); start again where ranges are refused."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        error.close()
        if have and error.code == 416:  # nothing is missing; the checksum decides whether that is true
            return
        raise
    with response:
        resumed = have > 0 and response.status == 206
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise HTTPException(f"asked for bytes from {have}, offered {response.headers.get('Content-Range')}")
        start = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        with part.open("ab" if resumed else "wb") as stream:
            done = _copy(response, stream, start, total, part.name.removesuffix(".part"), quiet)
    if total is not None and done < total:
        raise HTTPException(f"the connection ended after {done:,} of {total:,} bytes")


def _copy(response: Any, stream: Any, start: int, total: int | None, name: str, quiet: bool) -> int:  # noqa: ANN401
    """Copy a response to a file block by block, with a progress bar on stderr; return the size of the file."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    done = start
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:
        task = progress.add_task(name, total=total, completed=start)
        while block := response.read(_BLOCK):
            stream.write(block)
            done += len(block)
            progress.update(task, completed=done)
    return done


def _unpack(part: Path, subset: str, home: Path) -> None:
    """Unpack a checked archive through torchaudio in a folder of its own and move the result into place."""
    from torchaudio.datasets import LIBRISPEECH

    stage = home / f"{subset}.unpacking"
    shutil.rmtree(stage, ignore_errors=True)  # of a run that was killed
    stage.mkdir()
    try:
        (stage / f"{subset}.tar.gz").symlink_to(part.resolve())
        if len(LIBRISPEECH(stage, subset, download=True)) == 0:  # finds the archive there and only unpacks it
            raise InputError(f"the archive of {subset} holds no clips")
        target = home / "LibriSpeech"
        target.mkdir(exist_ok=True)
        for table in (stage / "LibriSpeech").iterdir():
            if table.is_file():
                table.replace(target / table.name)
        (stage / "LibriSpeech" / subset).rename(target / subset)
        part.unlink()
    finally:
        shutil.rmtree(stage, ignore_errors=True)
