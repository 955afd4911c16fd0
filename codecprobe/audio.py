"""Audio files in, mono float32 waveforms out.

Conventions: samples (n,) float32 in [-1, 1], rates in Hz. A file is read by its content, whatever its name says
(WAV, FLAC, MP3, Ogg Vorbis and Opus, AIFF and what else libsndfile knows); channels are averaged and counted. A
file that is cut off, empty, silent, not finite or no audio raises `InputError` with the reason in one line. What no
reader can see: an MP3 without a length header that was cut between two frames, and damage inside a WAV.

>>> import numpy as np
>>> len(resample(np.zeros(16_000, np.float32), 16_000, 24_000))
24000
"""

import hashlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codecprobe.corpora.corpus import Audio
from probecore.errors import InputError
from probecore.validation import at_least

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff"})
LARGEST_PEAK = 4.0  # lossy decoders overshoot full scale; 12 dB above it is a wrong scale
_BLOCK_FRAMES = 1 << 20
_LENGTH_UNKNOWN = 1 << 60  # libsndfile's frame count when a header does not say
_SIZE_UNKNOWN = 0xFFFFFFFF  # data size of a WAV that was written to a pipe, and of RF64


def read_audio(path: str | Path) -> Audio:
    """Read one file as a mono waveform at the file's own rate.

    Raises `InputError` when the file is missing, not audio, cut off, empty, silent (all samples equal), not finite
    or out of range (peak above 4).
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path.name}: no such file")
    _refuse_cut_container(path)
    samples, rate = _decode(path)
    if len(samples) == 0:
        raise InputError(f"{path.name}: empty: the file holds 0 samples")
    if not np.isfinite(samples).all():
        raise InputError(f"{path.name}: samples must be finite; got NaN or infinity")
    peak = float(np.abs(samples).max())
    if peak > LARGEST_PEAK:
        raise InputError(f"{path.name}: samples must lie in [-1, 1]; got a peak of {peak:.3g}: divide by full scale")
    mono = samples.mean(axis=1, dtype=np.float64).astype(np.float32)
    if mono.min() == mono.max():
        what = "every sample" if samples.shape[1] == 1 else f"the average of its {samples.shape[1]} channels"
        raise InputError(f"{path.name}: silent: {what} is {mono[0]:g}")
    return Audio(mono, rate, samples.shape[1])


def resample(samples: NDArray[np.floating[Any]], from_hz: int, to_hz: int) -> NDArray[np.float32]:
    """Resample a waveform (n,) with a linear-phase filter (soxr, quality HQ); no shift in time.

    The result has n * to_hz / from_hz samples, rounded half up. Frequencies up to 0.91 of the lower Nyquist frequency
    pass unchanged, what lies above that Nyquist frequency is removed by at least 90 dB.
    """
    at_least(from_hz, 1, "from_hz")
    at_least(to_hz, 1, "to_hz")
    if from_hz == to_hz:
        return np.asarray(samples, dtype=np.float32)
    import soxr

    result: NDArray[np.float32] = soxr.resample(np.asarray(samples, dtype=np.float32), from_hz, to_hz, quality="HQ")
    return result


def at_rate(audio: Audio, rate_hz: int) -> Audio:
    """Return the audio at another rate."""
    return Audio(resample(audio.samples, audio.sample_rate_hz, rate_hz), rate_hz, audio.n_channels)


def band_edge_hz(audio: Audio, share: float = 1e-6) -> float:
    """Return the frequency above which less than `share` of the energy lies (default -60 dB), to about 16 Hz.

    An edge well below half the sample rate tells of a band-limited source: an 8 kHz recording, an MP3 of low rate.
    """
    size = int(2 ** np.ceil(np.log2(max(audio.sample_rate_hz / 16, 64))))
    samples = np.pad(audio.samples.astype(np.float64), (0, max(0, size - len(audio.samples))))
    power = np.zeros(size // 2 + 1)
    window = np.hanning(size)
    for start in range(0, len(samples) - size + 1, size // 2):
        power += np.abs(np.fft.rfft(window * samples[start : start + size])) ** 2
    above = np.cumsum(power[::-1])[::-1]
    if above[0] == 0:
        raise InputError("a band edge needs sound; got silence")
    return float(np.flatnonzero(above >= share * above[0])[-1] * audio.sample_rate_hz / size)


def file_hash(path: str | Path) -> str:
    """Return the hash of a file's bytes (BLAKE2b, 32 hex digits); its name and place do not count."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _decode(path: Path) -> tuple[NDArray[np.float32], int]:
    """Return samples (n, channels) and the rate; a decoder that stops before the header's end is an error."""
    import soundfile

    try:
        file = soundfile.SoundFile(path)
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: the name asks for headerless data
        raise InputError(f"{path.name}: not an audio file that can be read ({path.stat().st_size:,} bytes)") from error
    with file:
        blocks, n_read = [np.empty((0, file.channels), np.float32)], 0
        try:
            while len(block := file.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)):
                blocks.append(block)
                n_read += len(block)
        except soundfile.SoundFileError as error:
            raise InputError(
                f"{path.name}: cut off or damaged: decoding stops before {_seconds(file.frames, file.samplerate)}"
            ) from error
        if n_read < file.frames < _LENGTH_UNKNOWN:
            raise InputError(
                f"{path.name}: cut off or damaged: its header says {_seconds(file.frames, file.samplerate)}, "
                f"{_seconds(n_read, file.samplerate)} can be decoded"
            )
        return np.concatenate(blocks), int(file.samplerate)


def _refuse_cut_container(path: Path) -> None:
    """Raise where libsndfile would silently shorten: a sample chunk past the end, an Ogg stream without its end."""
    with path.open("rb") as stream:
        magic = stream.read(4)
    if magic in (b"RIFF", b"FORM"):
        promised, there = _chunk_sizes(path, "<" if magic == b"RIFF" else ">")
        if there < promised:
            raise InputError(f"{path.name}: cut off: {there:,} of {promised:,} bytes of samples are there")
    elif magic == b"OggS" and not _ogg_is_whole(path):
        raise InputError(f"{path.name}: cut off: the Ogg stream lacks its last page")


def _chunk_sizes(path: Path, order: str) -> tuple[int, int]:
    """Return the size of the sample chunk by its header, and what the file holds of it."""
    length = path.stat().st_size
    with path.open("rb") as stream:
        position = 12
        while position + 8 <= length:
            stream.seek(position)
            name, size = struct.unpack(f"{order}4sI", stream.read(8))
            if name in (b"data", b"SSND"):
                return (0 if size == _SIZE_UNKNOWN else size), length - position - 8
            position += 8 + size + size % 2
    return 0, 0


def _ogg_is_whole(path: Path) -> bool:
    """Tell whether pages follow each other to the end of the file and the last one carries the end mark (RFC 3533)."""
    data = path.read_bytes()
    position, ended = 0, False
    while data[position : position + 4] == b"OggS" and position + 27 <= len(data):
        n_segments = data[position + 26]
        table = data[position + 27 : position + 27 + n_segments]
        ended = bool(data[position + 5] & 4)
        position += 27 + n_segments + sum(table)
    return ended and position <= len(data)


def _seconds(n_samples: int, rate_hz: int) -> str:
    return f"{n_samples / rate_hz:.2f} s" if n_samples < _LENGTH_UNKNOWN else "its end"
