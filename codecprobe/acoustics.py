"""What the waveform alone says of a window: the baselines that every probe of codes is read against.

Conventions. A window is a 1-D float array at its own rate; every function returns one vector per window. Mel
filters stop at 5.5 kHz, so that the coding history of a file (band limits of MP3, resampling) does not pass for its
speaker.
"""

from collections.abc import Sequence
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

from codecprobe.corpora.corpus import Clip
from probecore.progress import progress
from probecore.provenance import digest
from probecore.store import ArrayCache

MEL_TOP_HZ = 5500.0
BASELINES = ("clip length", "energy", "MFCC")
KEY = 1  # raise when the same window would be described by other numbers
_FLOOR = 1e-10


def clip_length(duration_s: float) -> NDArray[np.float64]:
    """Return log and squared log of the whole clip's length in seconds, (2,): what knowing no audio gives."""
    log = np.log(duration_s)
    return np.array([log, log * log])


def energy(window: NDArray[np.floating], sample_rate_hz: int) -> NDArray[np.float64]:
    """Return mean and standard deviation of the level in dB over 32 ms frames, (2,)."""
    frame = max(1, round(0.032 * sample_rate_hz))
    whole = window[: len(window) // frame * frame].astype(np.float64)
    power = (
        np.square(whole.reshape(-1, frame)).mean(axis=1)
        if len(whole)
        else np.square(window.astype(np.float64)).mean(keepdims=True)
    )
    level = 10 * np.log10(power + _FLOOR)
    return np.array([level.mean(), level.std()])


def mfcc(window: NDArray[np.floating], sample_rate_hz: int) -> NDArray[np.float64]:
    """Return mean and standard deviation over time of MFCC 1 to 19, (38,); coefficient 0, the level, is left out.

    32 ms Hann windows every 16 ms without padding, 40 mel bands up to 5.5 kHz (Davis & Mermelstein 1980).
    """
    import librosa

    n_fft = max(16, round(0.032 * sample_rate_hz))
    samples = np.asarray(window, dtype=np.float64)
    if len(samples) < n_fft:
        samples = np.pad(samples, (0, n_fft - len(samples)))
    power = librosa.feature.melspectrogram(
        y=samples, sr=sample_rate_hz, n_fft=n_fft, hop_length=n_fft // 2, center=False,
        n_mels=40, fmax=min(MEL_TOP_HZ, sample_rate_hz / 2), htk=True,
    )  # fmt: skip
    coefficients = librosa.feature.mfcc(S=np.log(power + _FLOOR), n_mfcc=20)[1:]
    return np.concatenate([coefficients.mean(axis=1), coefficients.std(axis=1)])


def of_windows(
    clips: Sequence[Clip], window_s: float, cache: ArrayCache, *, quiet: bool = False
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return energy (clips, 2) and MFCC (clips, 38) of the first `window_s` seconds of each clip.

    What was computed before is read from the cache, by the content of the audio.
    """
    made_by = f"{KEY} {window_s:g} librosa {version('librosa')} numpy {version('numpy')}"
    levels, cepstra = [], []
    for clip in progress(clips, "energy and MFCC", quiet=quiet):
        key = digest("acoustics", clip.content_hash(), made_by)
        known = cache.get(key)
        if known is None:
            audio = clip.read()
            window = audio.samples[: round(window_s * audio.sample_rate_hz)]
            known = {"energy": energy(window, audio.sample_rate_hz), "mfcc": mfcc(window, audio.sample_rate_hz)}
            cache.put(key, known)
        levels.append(known["energy"])
        cepstra.append(known["mfcc"])
    return np.stack(levels), np.stack(cepstra)
