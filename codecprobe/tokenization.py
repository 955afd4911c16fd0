"""A corpus through a codec: the codes of every clip, in the corpus's order.

Conventions. Codes are int64 (frames, layers). Audio is resampled to the codec's rate (soxr, HQ) before encoding; a
clip's `n_samples` counts samples at that rate, its `duration_s` is of the file as it is. What was encoded is kept on
disk under a key made of the audio's content, the codec's weights, device and library versions, clip by clip, so a
second run encodes nothing and a run that was killed goes on where it stopped. A clip that cannot be read or encoded
becomes a `Problem`, never a score.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from codecprobe.audio import resample
from codecprobe.codecs.codec import Codec, CodecInfo, Waveform, check_waveform
from codecprobe.corpora.corpus import Clip, Corpus, Problem
from probecore.errors import InputError, shorten
from probecore.progress import meter
from probecore.provenance import digest, digest_of_record
from probecore.store import ArrayCache, cache_dir
from probecore.validation import at_least

if TYPE_CHECKING:
    from probecore.results import Result

BATCH_SECONDS = 120.0  # audio given to the codec in one call; what a killed run loses at most
AHEAD_SECONDS = 1200.0  # audio held in memory and sorted by length, so that a batch holds clips of like length
KEY = 1  # raise when the same audio and codec would be encoded to other codes

Item = TypeVar("Item")
Value = TypeVar("Value")


@dataclass(frozen=True, eq=False)
class TokenizedCorpus:
    """The codes of a corpus; the entries of `clips`, `codes`, `n_samples` and `durations_s` belong together.

    corpus : name of the corpus.  codes : int64 (frames, layers) per clip.
    n_samples : samples per clip at the codec's rate.  durations_s : seconds of audio as it was recorded.
    problems : files of the corpus and clips that could not be used, with the reason.
    facts : how it was made, the same in every run; n_encoded, n_cached : clips encoded now and found on disk.
    """

    corpus: str
    clips: tuple[Clip, ...]
    codes: tuple[NDArray[np.int64], ...] = field(repr=False)
    n_samples: tuple[int, ...] = field(repr=False)
    durations_s: tuple[float, ...] = field(repr=False)
    problems: tuple[Problem, ...]
    codec: CodecInfo
    certificate: Mapping[str, Any] = field(repr=False)
    notes: tuple[str, ...] = ()
    synthetic: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False)
    n_encoded: int = 0
    n_cached: int = 0


@dataclass(frozen=True)
class _Encoded:
    codes: NDArray[np.int64]
    n_samples: int
    duration_s: float


@dataclass(frozen=True)
class _Audio:
    key: str
    name: str
    wave: Waveform
    duration_s: float


def tokenize(
    corpus: Corpus,
    codec: Codec,
    *,
    cache: ArrayCache | Path | None = None,
    jobs: int = 1,
    quiet: bool = False,
) -> TokenizedCorpus:
    """Encode every clip of a corpus, or read its codes from the cache.

    Parameters
    ----------
    corpus : clips to encode; those that cannot be read are listed in `problems`.
    codec : any adapter; its clips must not depend on their batch (`check_codec` tests it).
    cache : where codes are kept; None takes the user's cache folder (`probecore.store.cache_dir`).
    jobs : threads that read and resample audio.
    quiet : no progress on stderr.

    Raises
    ------
    InputError : no clip of the corpus could be encoded.
    """
    at_least(jobs, 1, "jobs")
    store = cache if isinstance(cache, ArrayCache) else ArrayCache(cache or cache_dir() / "codes")
    made_by = _made_by(codec)
    found: dict[str, _Encoded] = {}
    failed: dict[str, str] = {}
    with ThreadPoolExecutor(jobs) as pool, meter(len(corpus.clips), "encoding", quiet=quiet) as advance:
        contents = list(_in_order(pool, content_of, corpus.clips, ahead=4 * jobs))
        keys = [digest(content, made_by) for content, _ in contents]
        missing: dict[str, Clip] = {}
        for clip, key, (_, reason) in zip(corpus.clips, keys, contents, strict=True):
            if reason:
                failed[key] = reason
            elif key not in found and (entry := store.get(key)) is not None:
                found[key] = _encoded(entry)
            elif key not in found:
                missing[key] = clip
        cached = frozenset(found)
        advance(len(corpus.clips) - len(missing))
        audio = _in_order(pool, lambda item: _read(*item, codec.info), missing.items(), ahead=2 * jobs)
        for batch in _batches(_readable(audio, failed, advance), codec.info):
            for key, result in _encode(batch, codec, failed):
                store.put(key, _entry(result, codec.info))
                found[key] = result
            advance(len(batch))
    clips = list(zip(corpus.clips, keys, strict=True))
    used = [(clip, key) for clip, key in clips if key in found]
    unusable = [Problem(clip.clip_id, failed[key]) for clip, key in clips if key not in found]
    if not used:
        raise InputError(_nothing_left(corpus, unusable))
    data_hash = digest(*(content for (content, _), key in zip(contents, keys, strict=True) if key in found))
    return TokenizedCorpus(
        corpus=corpus.name,
        clips=tuple(clip for clip, _ in used),
        codes=tuple(found[key].codes for _, key in used),
        n_samples=tuple(found[key].n_samples for _, key in used),
        durations_s=tuple(found[key].duration_s for _, key in used),
        problems=(*corpus.problems, *unusable),
        codec=codec.info,
        certificate=dict(codec.certificate),
        notes=corpus.notes,
        synthetic=corpus.synthetic or codec.info.synthetic,
        facts={**corpus.facts, "data_hash": data_hash, "made_by": made_by},
        n_encoded=sum(key not in cached for _, key in used),
        n_cached=sum(key in cached for _, key in used),
    )


def summarise(
    corpus: str | Path | Corpus,
    codec: "str | Path | Codec",
    *,
    out: Path | None = None,
    seed: int = 0,
    device: str = "auto",
    jobs: int = 1,
    quiet: bool = False,
) -> "Result":
    """Tokenize a corpus and describe it, a row per speaker; `out` receives the data set (see `save_tokenized`).

    Returns a `Result` with speaker, sessions, clips, seconds and frames; its notes count what could not be used.
    """
    from codecprobe.codecs.registry import open_codec
    from codecprobe.corpora.registry import open_corpus
    from codecprobe.dataset import save_tokenized
    from probecore.provenance import provenance
    from probecore.results import Result

    opened = open_codec(codec, device) if isinstance(codec, str | Path) else codec
    source = corpus if isinstance(corpus, Corpus) else open_corpus(corpus, quiet=quiet)
    tokenized = tokenize(source, opened, jobs=jobs, quiet=quiet)
    if out is not None:
        save_tokenized(tokenized, out)
    rows: list[dict[str, Any]] = []
    for speaker in sorted({clip.speaker for clip in tokenized.clips}):
        mine = [i for i, clip in enumerate(tokenized.clips) if clip.speaker == speaker]
        rows.append(
            {
                "speaker": speaker,
                "sessions": len({tokenized.clips[i].session for i in mine}),
                "clips": len(mine),
                "seconds": round(sum(tokenized.durations_s[i] for i in mine), 2),
                "frames": sum(len(tokenized.codes[i]) for i in mine),
            }
        )
    return Result(
        kind="tokenize",
        title=f"Codes of {source.name} by {opened.info.name}",
        rows=tuple(rows),
        notes=(*describe(tokenized), *tokenized.notes),
        provenance=provenance(
            seed=seed,
            device=str(tokenized.certificate.get("device", "cpu")),
            command="codecprobe tokenize",
            **facts_of(tokenized),
        ),
    )


def describe(tokenized: TokenizedCorpus) -> tuple[str, ...]:
    """Return what a reader must know: sizes, whether the codec is synthetic, what could not be used and why."""
    info = tokenized.codec
    notes = [
        f"{len(tokenized.clips)} clips, {sum(tokenized.durations_s) / 60:.1f} min of {tokenized.corpus}; "
        f"{info.name}: {info.n_layers} layers at {info.frame_rate_hz:g} Hz"
    ]
    if info.synthetic:
        notes.append(f"codec {info.name} is synthetic, with planted structure: a control with a known answer")
    if tokenized.problems:
        named = shorten([f"{problem.name} ({problem.reason})" for problem in tokenized.problems], most=5)
        notes.append(f"{len(tokenized.problems)} could not be used: {named}")
    return tuple(notes)


def facts_of(tokenized: TokenizedCorpus) -> dict[str, Any]:
    """Return how the codes were made, in JSON types, for a provenance."""
    info = tokenized.codec
    return {
        "corpus": {"name": tokenized.corpus, **tokenized.facts},
        "codec": {"name": info.name, "source": info.source, "weights_hash": info.weights_hash, **info.versions},
        "certificate": dict(tokenized.certificate),
        "problems": [{"name": problem.name, "reason": problem.reason} for problem in tokenized.problems],
    }


def _entry(result: _Encoded, info: CodecInfo) -> dict[str, ArrayLike]:
    kind = np.min_scalar_type(max(info.codebook_sizes) - 1)
    return {
        "codes": result.codes.astype(kind),
        "n_samples": np.int64(result.n_samples),
        "duration_s": np.float64(result.duration_s),
    }


def _encoded(entry: Mapping[str, NDArray[Any]]) -> _Encoded:
    return _Encoded(entry["codes"].astype(np.int64), int(entry["n_samples"]), float(entry["duration_s"]))


def _made_by(codec: Codec) -> str:
    """Return the hash of everything but the audio that codes depend on."""
    info = codec.info
    return digest_of_record(
        {
            "key": KEY,
            "codec": [info.name, info.weights_hash, info.sample_rate_hz, info.codebook_sizes, dict(info.versions)],
            "device": codec.certificate.get("device", "cpu"),
            "resampler": ["soxr HQ", version("soxr")],
            "numpy": version("numpy"),
        }
    )


def content_of(clip: Clip) -> tuple[str, str]:
    """Return the hash of a clip's audio and an empty reason, or the clip's name and why there is no hash."""
    try:
        return clip.content_hash(), ""
    except (InputError, OSError) as error:
        return f"unreadable {clip.clip_id}", str(error)


def _read(key: str, clip: Clip, info: CodecInfo) -> tuple[str, _Audio | str]:
    """Return the key and the clip's audio at the codec's rate, or the reason why there is none."""
    try:
        audio = clip.read()
        duration_s = len(audio.samples) / audio.sample_rate_hz
        wave = check_waveform(resample(audio.samples, audio.sample_rate_hz, info.sample_rate_hz), clip.clip_id)
    except (InputError, OSError) as error:
        return key, str(error)
    return key, _Audio(key, clip.clip_id, wave, duration_s)


def _readable(
    audio: Iterable[tuple[str, _Audio | str]], failed: dict[str, str], advance: Callable[[int], None]
) -> Iterator[_Audio]:
    for key, clip in audio:
        if isinstance(clip, str):
            failed[key] = clip
            advance(1)
        else:
            yield clip


def _batches(audio: Iterator[_Audio], info: CodecInfo) -> Iterator[list[_Audio]]:
    """Cut into batches of at most BATCH_SECONDS when padded to their longest clip, sorted by length as far as read."""
    held: list[_Audio] = []
    for clip in audio:
        held.append(clip)
        if sum(len(one.wave) for one in held) > AHEAD_SECONDS * info.sample_rate_hz:
            yield from _by_length(held, info)
            held = []
    yield from _by_length(held, info)


def _by_length(held: list[_Audio], info: CodecInfo) -> Iterator[list[_Audio]]:
    waiting = sorted(held, key=lambda clip: -len(clip.wave))
    while waiting:
        size = max(1, int(BATCH_SECONDS * info.sample_rate_hz) // len(waiting[0].wave))
        yield waiting[:size]
        waiting = waiting[size:]


def _encode(batch: Sequence[_Audio], codec: Codec, failed: dict[str, str]) -> Iterator[tuple[str, _Encoded]]:
    try:
        codes = codec.encode([clip.wave for clip in batch])
    except InputError as error:
        if len(batch) == 1:
            failed[batch[0].key] = str(error)
            return
        for clip in batch:  # one of them is at fault: find it, keep the others
            yield from _encode([clip], codec, failed)
        return
    for clip, result in zip(batch, codes, strict=True):
        yield clip.key, _Encoded(result.values, result.n_samples, clip.duration_s)


def _in_order(pool: Executor, function: Callable[[Item], Value], items: Iterable[Item], ahead: int) -> Iterator[Value]:
    """Map over items in threads, in order, at most `ahead` items before the one that is wanted."""
    running: deque[Future[Value]] = deque()
    for item in items:
        running.append(pool.submit(function, item))
        if len(running) > ahead:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


def _nothing_left(corpus: Corpus, unusable: Sequence[Problem]) -> str:
    problems = (*corpus.problems, *unusable)
    if not problems:
        return f"{corpus.name} holds no clips: give a folder with audio"
    first = f"{problems[0].name}: {problems[0].reason}"
    return f"{corpus.name}: none of its {len(problems)} files can be used; the first is {first}"
