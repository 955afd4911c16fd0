"""Run an analysis of codecprobe once: the same question about the same things is answered from the cache.

Conventions. A result is kept under a hash of everything that it depends on: the analysis and its settings, the content
of every clip and what is known of it, the files of every model, the versions of the libraries, the source of our own
packages, and whether there is a GPU. A change in any of them computes anew; --fresh does so in any case. A model by
hub name that no local file can be shown for is never answered from the cache. Nothing heavy is imported to find an
answer.
"""

import json
import os
import platform
from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from probecli.output import analysis_of, show

if TYPE_CHECKING:
    from probecore.results import Result

OUTSIDE = ("asr", "speaker_model")  # options that name a model of others: a folder, or a hub name
LIBRARIES = ("librosa", "soxr", "soundfile", "safetensors", "numba", "pandas")  # beside those of a provenance
PACKAGES = ("probecore", "codecprobe")


def answer(analysis: str, asked: dict[str, Any]) -> None:
    """Run an analysis, or take its result from the cache; print it and save it as the common options say.

    analysis : MODULE:FUNCTION, called with the options of its command by name. asked : these, and the common ones.
    """
    out, as_json, fresh = (asked.pop(name) for name in ("out", "as_json", "fresh"))
    show(kept(analysis, asked, fresh=fresh), out=out, as_json=as_json, quiet=asked["quiet"])


def kept(analysis: str, asked: dict[str, Any], *, fresh: bool = False) -> "Result":
    """Return the result of an analysis, from the cache where it is there and `fresh` is false."""
    from probecore.results import Result
    from probecore.store import cache_dir, write_bytes

    key = _key(analysis, asked)
    path = cache_dir() / "results" / f"{key}.json"
    if key and not fresh and path.is_file():
        try:
            found = Result.from_record(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError):
            found = None  # half a file or one of another kind: computed again, and replaced
        if found is not None:
            if not asked["quiet"]:
                click.echo("the result of the same run before, from the cache; --fresh computes it anew", err=True)
            return found
    result = analysis_of(analysis)(**asked)
    if key:
        write_bytes(path, json.dumps(result.to_record(), ensure_ascii=False).encode())
    return result


def _key(analysis: str, asked: dict[str, Any]) -> str:
    """Return the hash of all that the result depends on; empty where something cannot be named by its content."""
    from probecore.provenance import digest_of_record, versions

    named = dict(asked)
    named.pop("quiet")
    codecs = named.pop("codecs", None) or ([named.pop("codec")] if "codec" in named else [])
    outside = {name: _folder_hash(named[name]) for name in OUTSIDE if named.get(name)}
    if named.get("model"):
        outside["model"] = _talker_hash(named["model"])
    if not all(outside.values()):
        return ""
    if "corpus" in named:
        named["corpus"] = _corpus_hash(named["corpus"])
    return digest_of_record(
        {
            "analysis": analysis,
            "asked": named,
            "codecs": [_codec_hash(codec) for codec in codecs],
            "outside": outside,
            "versions": versions() | {name: _version(name) for name in LIBRARIES},
            "source": _source_hash(),
            "machine": [platform.system(), platform.machine(), platform.processor()],
            "gpu": [os.environ.get("CUDA_VISIBLE_DEVICES"), Path("/proc/driver/nvidia/version").exists()],
        }
    )


def _corpus_hash(name: str) -> str:
    """Return the hash of every clip's audio and of what the corpus knows of it, of its notes and broken files."""
    from codecprobe.corpora.registry import open_corpus
    from codecprobe.tokenization import content_of
    from probecore.provenance import digest

    corpus = open_corpus(name, quiet=True)
    facts = [name, corpus.name, repr(corpus.notes), repr(corpus.problems), repr(sorted(corpus.facts.items()))]
    parts: list[str | bytes] = list(facts)
    for clip in corpus.clips:
        known = (clip.clip_id, clip.speaker, clip.session, clip.text, clip.phones, sorted(clip.labels.items()))
        pitch = b"" if clip.f0_hz is None else clip.f0_hz.tobytes()
        parts += [repr(content_of(clip)), repr(known), pitch]
    return digest(*parts)


def _codec_hash(name: str) -> str:
    from codecprobe.codecs.registry import folder_of_codec

    folder = folder_of_codec(name)
    return f"{name} {_files_hash(folder.rglob('*'))}" if folder else name


def _folder_hash(name: str) -> str:
    """Return the name of a model and the hash of its files; empty where it is no folder."""
    folder = Path(name).expanduser()
    return f"{name} {_files_hash(folder.rglob('*'))}" if folder.is_dir() else ""


def _talker_hash(name: str) -> str:
    from codecprobe.talker_files import folder_of

    folder, source = folder_of(name)
    return f"{source} {_files_hash(folder.rglob('*'))}"


def _files_hash(paths: Iterable[Path]) -> str:
    from probecore.provenance import digest_of_files

    return digest_of_files(path for path in paths if path.is_file())


def _source_hash() -> str:
    """Return the hash of our own code and packaged data, so that no result outlives a change of what made it."""
    from probecore.provenance import digest

    parts: list[str | bytes] = []
    for package in PACKAGES:
        where = import_module(package).__file__
        assert where is not None
        root = Path(where).parent
        for path in sorted(root.rglob("*")):
            if path.is_file() and path.suffix != ".pyc":
                parts += [f"{package}/{path.relative_to(root).as_posix()}", path.read_bytes()]
    return digest(*parts)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
