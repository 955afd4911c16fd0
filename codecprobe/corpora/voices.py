"""A source-filter synthesiser: a voice says phones, a channel records them.

Conventions: 16 kHz, control tracks every 10 ms, frequencies in Hz, times in seconds. The glottal source (Rosenberg,
JASA 1971) and noise are cut into Hann frames of 20 ms that overlap by half, each is filtered by the resonances of
its moment (Fant, 1960; Klatt, JASA 1980), and the frames are added. Everything follows from the arguments and the
generator: the same call gives the same samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codecprobe.corpora.corpus import Phone
from codecprobe.corpora.phones import OFF, TARGETS

RATE_HZ = 16_000
HOP = 160
LEVEL = 0.04  # root mean square of every voice before its channel
_FFT = 1024
_BANDWIDTHS = np.array([60.0, 90.0, 150.0, 250.0, 300.0])
_OMEGA = np.exp(-2j * np.pi * np.arange(_FFT // 2 + 1) / _FFT).astype(np.complex64)
_FREQUENCY = np.arange(_FFT // 2 + 1) * RATE_HZ / _FFT


@dataclass(frozen=True)
class Voice:
    """A speaker.

    f0_hz, f0_range : median pitch (Hz) and its span within a sentence (semitones).
    tract : scale of all formants, 1 for the reference length; a shorter tract is larger.
    upper_hz : fourth and fifth formant (Hz) before scaling.
    open_quotient : share of a glottal period in which the glottis is open; sets the tilt of the spectrum.
    breath : level of aspiration in the voiced source.
    """

    sex: str
    f0_hz: float
    f0_range: float
    tract: float
    upper_hz: tuple[float, float]
    open_quotient: float
    breath: float


@dataclass(frozen=True)
class Channel:
    """A recording session: colour (gains in dB of cosines over frequency), gain (dB), noise below speech (dB)."""

    colour_db: tuple[float, ...]
    gain_db: float
    noise_db: float
    noise_tilt_db: float

    def impulse_response(self, n_taps: int = 65) -> NDArray[np.float64]:
        """Return the linear-phase filter of the session, centred on its middle tap."""
        frequency = np.arange(n_taps // 2 + 1) / (n_taps // 2 + 0.5)
        decibels = sum(gain * np.cos(np.pi * (k + 1) * frequency) for k, gain in enumerate(self.colour_db))
        spectrum = 10 ** (np.asarray(decibels) / 20)
        response = np.roll(np.fft.irfft(spectrum, n_taps), n_taps // 2)
        return np.asarray(response * np.hanning(n_taps + 2)[1:-1] * 10 ** (self.gain_db / 20))


def draw_voice(rng: np.random.Generator, sex: str) -> Voice:
    """Draw a voice; pitch and tract length follow the sex, as they do in adults, and vary within it."""
    low, high, tract = (90.0, 140.0, 0.95) if sex == "M" else (165.0, 245.0, 1.11)
    return Voice(
        sex=sex,
        f0_hz=float(np.exp(rng.uniform(np.log(low), np.log(high)))),
        f0_range=float(rng.uniform(3, 8)),
        tract=float(tract * np.exp(rng.uniform(-0.06, 0.06))),
        upper_hz=(float(rng.uniform(3150, 3850)), float(rng.uniform(4200, 5000))),
        open_quotient=float(rng.uniform(0.45, 0.8)),
        breath=float(rng.uniform(0.005, 0.05)),
    )


def draw_channel(rng: np.random.Generator) -> Channel:
    """Draw a recording session, whoever speaks in it."""
    colour = rng.uniform(-2.5, 2.5, 6)
    return Channel(
        tuple(map(float, colour)), float(rng.uniform(-5, 5)), float(rng.uniform(-48, -36)), float(rng.uniform(-6, 6))
    )


def time_phones(names: Sequence[str], seconds: float, rng: np.random.Generator) -> tuple[Phone, ...]:
    """Place phones: relative lengths of the phones, varied by a fifth; 0.1 to 0.2 s of silence at both ends."""
    edge = rng.uniform(0.1, 0.2, 2)
    lengths = np.array([TARGETS[name].length for name in names[1:-1]]) * np.exp(
        0.2 * rng.standard_normal(len(names) - 2)
    )
    ends = np.cumsum([edge[0], *(lengths / lengths.sum() * (seconds - edge.sum())), edge[1]])
    starts = [0.0, *ends[:-1].tolist()]
    return tuple(Phone(name, s, e) for name, s, e in zip(names, starts, ends.tolist(), strict=True))


def pitch_contour(voice: Voice, phones: Sequence[Phone], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return F0 (Hz) at the middle of every 10 ms, also where it does not sound: declination and three accents."""
    n = n_samples(phones) // HOP
    place = (np.arange(n) + 0.5) / n
    centres, heights = (np.arange(3) + rng.uniform(0.2, 0.8, 3)) / 3, rng.uniform(0.2, 1.0, 3)
    accents = sum(h * np.exp(-0.5 * ((place - c) / 0.06) ** 2) for c, h in zip(centres, heights, strict=True))
    shape = 0.4 - 0.8 * place + 0.6 * np.asarray(accents) - 0.2
    return np.asarray(voice.f0_hz * 2 ** (voice.f0_range * shape / 12))


def is_voiced(phones: Sequence[Phone]) -> NDArray[np.bool_]:
    """Return for every 10 ms whether its phone is voiced."""
    voiced = np.array([TARGETS[phone.name].voicing > OFF for phone in phones])
    return voiced[_phone_at(phones)]


def n_samples(phones: Sequence[Phone]) -> int:
    """Return the length of a clip: whole control frames."""
    return round(phones[-1].end_s * RATE_HZ / HOP) * HOP


def speak(
    voice: Voice, phones: Sequence[Phone], f0: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return the voice saying the phones with the pitch f0 (one value per 10 ms), at the level `LEVEL`."""
    n = n_samples(phones)
    formants, voicing, noise, band = _tracks(voice, phones)
    pitch = np.interp(np.arange(n), (np.arange(len(f0)) + 0.5) * HOP, f0)
    source = _glottal(np.cumsum(pitch) / RATE_HZ, voice.open_quotient)
    source += voice.breath * rng.standard_normal(n)
    hiss = rng.standard_normal(n)
    spectrum = _frames(source) * (voicing[:, None] * _resonances(formants))
    spectrum += _frames(hiss) * (noise[:, None] * band)
    samples = _overlap_add(spectrum, n)
    return np.asarray(samples * (LEVEL / np.sqrt(np.mean(samples**2))))


def record(samples: NDArray[np.float64], channel: Channel, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return what a session's channel makes of a voice: its colour, gain and noise floor; nothing is delayed."""
    floor = rng.standard_normal(len(samples) + 1)
    slope = np.tanh(channel.noise_tilt_db / 12)
    floor = (floor[1:] - slope * floor[:-1]) / np.sqrt(1 + slope**2)
    speech = np.convolve(samples, channel.impulse_response(), mode="same")
    noise = LEVEL * 10 ** ((channel.gain_db + channel.noise_db) / 20) * floor
    return np.asarray(speech + noise, dtype=np.float32)


def _phone_at(phones: Sequence[Phone]) -> NDArray[np.int64]:
    """Return the index of the phone that sounds in the middle of every 10 ms."""
    middle = (np.arange(n_samples(phones) // HOP) + 0.5) * HOP / RATE_HZ
    index = np.searchsorted([phone.end_s for phone in phones], middle, side="right")
    return np.minimum(index, len(phones) - 1).astype(np.int64)


def _tracks(
    voice: Voice, phones: Sequence[Phone]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return per frame five formants (Hz), gains of voicing and frication, and the frication band (frames, bins)."""
    at = _phone_at(phones)
    targets = [TARGETS[phone.name] for phone in phones]
    formants = voice.tract * np.array([(*target.formants, *voice.upper_hz) for target in targets])[at]
    voicing = 10 ** (np.array([target.voicing for target in targets])[at] / 20)
    noise = 10 ** (np.array([target.noise for target in targets])[at] / 20)
    middle = (np.arange(len(at)) + 0.5) * HOP / RATE_HZ
    start, end = (np.array([getattr(phone, edge) for phone in phones])[at] for edge in ("start_s", "end_s"))
    closed = (middle - start) / (end - start) < np.array([target.closure for target in targets])[at]
    noise = np.where(closed, 10 ** (OFF / 20), noise)
    centre, width = np.array([target.noise_hz for target in targets])[at].T
    band = 1 / (1 + ((_FREQUENCY - (voice.tract * centre)[:, None]) / (0.5 * width[:, None])) ** 2)
    return _smooth(formants, 5), _smooth(voicing, 3), _smooth(noise, 3), band


def _smooth(track: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Return a track (frames, ...) averaged with a Hann window of an odd number of frames; the ends are held."""
    window = np.hanning(width + 2)[1:-1]
    padded = np.concatenate([track[:1]] * (width // 2) + [track] + [track[-1:]] * (width // 2))
    return np.asarray(sum(w * padded[i : i + len(track)] for i, w in enumerate(window / window.sum())))


def _glottal(cycles: NDArray[np.float64], open_quotient: float) -> NDArray[np.float64]:
    """Return the derivative of Rosenberg's glottal flow for a phase counted in periods, unit mean square."""
    phase = cycles % 1
    opening, closing = 0.67 * open_quotient, 0.33 * open_quotient
    flow = np.where(phase < opening, 0.5 * (1 - np.cos(np.pi * phase / opening)), 0.0)
    falling = (phase >= opening) & (phase < open_quotient)
    flow = np.where(falling, np.cos(0.5 * np.pi * (phase - opening) / closing), flow)
    pulse = np.diff(flow, prepend=flow[:1])
    return np.asarray(pulse / np.sqrt(np.mean(pulse**2)))


def _frames(samples: NDArray[np.float64]) -> NDArray[np.complex64]:
    """Return the spectra (frames, bins) of Hann windows of 20 ms centred on every control frame."""
    padded = np.pad(samples, (HOP // 2, HOP // 2 + HOP))
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * HOP)[: len(samples) : HOP]
    return np.fft.rfft((windows * _WINDOW).astype(np.float32), _FFT).astype(np.complex64)


def _overlap_add(spectrum: NDArray[np.complex64], n: int) -> NDArray[np.float64]:
    """Return the sum of the frames at their places, without the filters' ringing past the end."""
    pieces = np.fft.irfft(spectrum, _FFT)
    total = np.zeros(n + HOP // 2 + _FFT + HOP)
    for k in range(-(-_FFT // HOP)):
        block = pieces[:, k * HOP : (k + 1) * HOP]
        whole = np.zeros((len(pieces), HOP))
        whole[:, : block.shape[1]] = block
        total[k * HOP : k * HOP + whole.size] += whole.ravel()
    return total[HOP // 2 : HOP // 2 + n]


def _resonances(formants: NDArray[np.float64]) -> NDArray[np.complex64]:
    """Return the response (frames, bins) of second-order resonators in cascade, each 1 at 0 Hz (Klatt 1980, eq. 2)."""
    response = np.ones((len(formants), len(_OMEGA)), np.complex64)
    for column, bandwidth in zip(formants.T, _BANDWIDTHS, strict=True):
        radius = np.exp(-np.pi * bandwidth / RATE_HZ)
        b = (2 * radius * np.cos(2 * np.pi * column / RATE_HZ))[:, None].astype(np.float32)
        c = np.float32(-(radius**2))
        response *= (1 - b - c) / (1 - b * _OMEGA - c * _OMEGA**2)
    return response


_WINDOW = 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(2 * HOP) + 0.5) / (2 * HOP))
