"""Corpora by name or path: the one place that decides what a `--corpus` means."""

import re
from pathlib import Path

from codecprobe.corpora.corpus import Corpus
from codecprobe.corpora.download import SHA256, download_librispeech
from codecprobe.corpora.embedded import TYPICAL_SEED, embedded_corpus
from codecprobe.corpora.folder import read_folder
from codecprobe.corpora.librispeech import is_librispeech, read_librispeech
from codecprobe.corpora.manifest import read_manifest
from probecore.errors import InputError
from probecore.store import cache_dir

CHOICES = (
    "embedded (or embedded:SEED for other synthetic voices), librispeech:SUBSET, a part of LibriSpeech, "
    "a folder of SPEAKER/SESSION/FILE, or a CSV with the columns path and speaker"
)


def open_corpus(name_or_path: str | Path, cache: Path | None = None, quiet: bool = False) -> Corpus:
    """Open a corpus.

    name_or_path : `embedded`, `embedded:SEED`, `librispeech:SUBSET` (downloaded once into the cache), a folder in the
        layout of LibriSpeech, a folder of speakers, or a CSV table.
    cache : root of downloads; None is `probecore.store.cache_dir()`.
    quiet : no progress bar.

    Raises `InputError` for an unknown name or a path that is not there, listing what can be given.

    >>> corpus = open_corpus("embedded")
    >>> len(corpus.speakers), len(corpus.sessions), len(corpus.clips)
    (10, 30, 180)
    """
    text = str(name_or_path)
    if match := re.fullmatch(r"embedded(?::(\d+))?", text):
        return embedded_corpus(seed=int(match.group(1) or TYPICAL_SEED))
    if text.startswith("librispeech:"):
        subset = text.partition(":")[2]
        if subset not in SHA256:
            raise InputError(f"no LibriSpeech subset {subset!r}; there are {', '.join(SHA256)}")
        return read_librispeech(download_librispeech(subset, cache or cache_dir(), quiet=quiet))
    path = Path(text).expanduser()
    if path.is_file() and path.suffix.lower() == ".csv":
        return read_manifest(path)
    if path.is_dir():
        parts = [path, *(inner for inner in path.iterdir() if inner.is_dir())]
        return read_librispeech(path) if any(map(is_librispeech, parts)) else read_folder(path)
    raise InputError(f"no corpus {text!r}; give {CHOICES}")
