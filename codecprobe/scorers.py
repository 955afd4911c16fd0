"""What an ear would notice of a decoded clip: voice, words, pitch, level, spectrum, and the codes it gives again.

Conventions. Every measure is of one decoded waveform (samples,) against that of *all layers* of the same clip (the
reference), never against the recording; frames are 10 ms. `MEASURES` says of each whether the unablated clip has a
value of its own (an accuracy) or one by construction (a distance of 0, an agreement of 1).

The two recognisers are fitted on the decoded references of other clips, never on the sessions they judge, both by
shrinkage LDA, the classifier for few clips of each class: of the speaker on MFCC statistics (or the vectors of a named
speaker model), and where the corpus knows phones, of the phone on MFCC 0-12 of seven frames, relative to the clip's
mean. What does not exist for a clip (pitch of a clip without voiced frames) is NaN.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from codecprobe import acoustics
from codecprobe.codecs.codec import Codec, Waveform
from codecprobe.corpora.corpus import Clip
from codecprobe.pitch import HOP_S, pitch_track
from codecprobe.spectra import cepstra, frame_levels, magnitudes, mel_levels, power_spectrum, spectral_distance
from codecprobe.speech_models import SpeakerModel, Transcriber, word_error_rate
from probecore.errors import InputError
from probecore.probes.fit import LinearFit, fit_linear
from probecore.validation import codes_of

Floats = NDArray[np.float64]
SILENCE = ("sil", "sp", "spn", "")
AROUND = 3  # frames to each side that a phone is recognised by
LEAST_VOICED = 5  # frames that two pitch tracks must share
QUIETEST_DB = -80.0


@dataclass(frozen=True)
class Measure:
    """A measure: the value of the unablated clip (None: it is measured), whether it is a share, and its unit."""

    name: str
    unablated: float | None = None
    share: bool = False
    headline: bool = False

    @property
    def untested(self) -> str:
        """Why a value is not tested against the unablated one, empty when it is."""
        return "" if self.unablated is None else "any change moves it away from its unablated value: see control"


MEASURES = (
    Measure("speaker accuracy", share=True, headline=True),
    Measure("speaker log-odds"),
    Measure("phone accuracy", share=True, headline=True),
    Measure("word error rate", 0.0, headline=True),
    Measure("MFCC agreement", 1.0, headline=True),
    Measure("F0 error (semitones)", 0.0, headline=True),
    Measure("F0 correlation", 1.0),
    Measure("voicing error", 0.0, share=True),
    Measure("level error (dB)", 0.0),
    Measure("mel distance (dB)", 0.0, headline=True),
    Measure("STFT distance", 0.0),
)


def measures(n_layers: int) -> tuple[Measure, ...]:
    """Return all measures, those of re-encoded codes last (one per layer, and their mean)."""
    kept = (Measure(f"codes kept, layer {k}", share=True) for k in range(n_layers))
    return (*MEASURES, Measure("codes kept", share=True, headline=True), *kept)


@dataclass(frozen=True, eq=False)
class Heard:
    """What was heard in one waveform.

    voice : (features,).  cepstra : (frames, 13).  mel : (frames, 80) in dB.  levels : (frames,) in dB.
    pitch : (frames,) in Hz, 0 where unvoiced.  codes : (frames of the codec, layers), when encoded again.
    words : what a recogniser understood, None without one.
    """

    wave: Waveform
    rate_hz: int
    voice: Floats
    cepstra: Floats
    mel: Floats
    levels: Floats
    pitch: Floats
    codes: NDArray[np.int64]
    words: str | None


class Listener:
    """Turns decoded waveforms into what is heard; it keeps no state between clips.

    codec : encodes them again.  speaker, transcriber : outside models, or None for MFCC and no words.
    """

    def __init__(
        self, codec: Codec, speaker: SpeakerModel | None = None, transcriber: Transcriber | None = None
    ) -> None:
        self._codec, self._speaker, self._transcriber = codec, speaker, transcriber
        self.rate_hz = codec.info.sample_rate_hz

    @property
    def identity(self) -> tuple[str, str]:
        """Names and weights of the outside models."""
        return (
            self._speaker.identity if self._speaker else "MFCC",
            self._transcriber.identity if self._transcriber else "none",
        )

    def hear(self, waves: Sequence[Waveform]) -> list[Heard | None]:
        """Return what is heard in each waveform, None where a decoder gave NaN or infinity."""
        found: list[Heard | None] = [None] * len(waves)
        sound = [i for i, wave in enumerate(waves) if np.isfinite(wave).all()]
        if not sound:
            return found
        usable = [waves[i] for i in sound]
        codes = self._codec.encode(usable)
        texts = self._transcriber.transcribe(usable, self.rate_hz) if self._transcriber else [None] * len(usable)
        voices: Sequence[Floats] | Floats
        if self._speaker:
            voices = self._speaker.vectors(usable, self.rate_hz)
        else:
            voices = [acoustics.mfcc(wave, self.rate_hz) for wave in usable]
        for i, wave, code, voice, text in zip(sound, usable, codes, voices, texts, strict=True):
            power = power_spectrum(wave, self.rate_hz)
            found[i] = Heard(
                wave=wave,
                rate_hz=self.rate_hz,
                voice=np.asarray(voice, dtype=np.float64),
                cepstra=cepstra(power, self.rate_hz),
                mel=mel_levels(power, self.rate_hz),
                levels=np.maximum(frame_levels(power), QUIETEST_DB),
                pitch=pitch_track(wave, self.rate_hz),
                codes=code.values,
                words=text,
            )
        return found


@dataclass(frozen=True, eq=False)
class Recogniser:
    """Speaker and phone classifiers of one fold; `phones` is None where the corpus knows none."""

    speakers: tuple[str, ...]
    voice: LinearFit
    phone_names: tuple[str, ...]
    phones: LinearFit | None

    def speaker_scores(self, heard: Heard) -> Floats:
        """Return the log probability of each speaker in nats, up to a constant, (speakers,)."""
        scores = self.voice.decisions(heard.voice[None])[0]
        return np.array([0.0, scores[0]]) if len(self.speakers) == 2 else scores

    def phone_track(self, heard: Heard) -> NDArray[np.str_]:
        """Return the most probable phone of each frame, (frames,)."""
        if self.phones is None:
            raise InputError("there is no phone recogniser: the corpus knows no phones")
        scores = self.phones.decisions(_in_context(heard.cepstra))
        best = (scores[:, 0] > 0).astype(int) if scores.shape[1] == 1 else scores.argmax(axis=1)
        track: NDArray[np.str_] = np.asarray(self.phone_names)[best]
        return track


def fit_recogniser(clips: Sequence[Clip], references: Sequence[Heard]) -> Recogniser:
    """Fit both classifiers to the references of clips that will not be judged; needs 2 speakers."""
    codes, speakers = codes_of([clip.speaker for clip in clips])
    if len(speakers) < 2:
        raise InputError(f"a speaker recogniser needs at least 2 speakers to learn from; got {len(speakers)}")
    voices = np.stack([heard.voice for heard in references])
    voice = fit_linear(voices, codes, len(speakers), kind="lda", priors="equal")
    if any(clip.phones is None for clip in clips):
        return Recogniser(tuple(speakers), voice, (), None)
    frames = np.concatenate([_in_context(heard.cepstra) for heard in references])
    labels = np.concatenate([true_phones(c, len(h.cepstra)) for c, h in zip(clips, references, strict=True)])
    phone_codes, names = codes_of(labels)
    if len(names) < 2:
        return Recogniser(tuple(speakers), voice, (), None)
    return Recogniser(tuple(speakers), voice, tuple(names), fit_linear(frames, phone_codes, len(names), kind="lda"))


def true_phones(clip: Clip, n_frames: int) -> NDArray[np.str_]:
    """Return the phone that sounds at each frame (every 10 ms), "sil" where none does."""
    track = np.full(n_frames, SILENCE[0], dtype="U16")
    for phone in clip.phones or ():
        track[int(np.ceil(phone.start_s / HOP_S - 1e-9)) : int(np.ceil(phone.end_s / HOP_S - 1e-9))] = phone.name
    return track


def compare(
    clip: Clip, codes: NDArray[np.int64], heard: Heard, reference: Heard, recogniser: Recogniser
) -> dict[str, float]:
    """Return every measure of a waveform against the reference of `clip`, whose codes are (frames, layers).

    Both waveforms must have one length.
    """
    return {
        **_speaker(clip, heard, recogniser),
        "phone accuracy": phone_accuracy(clip, heard, recogniser),
        "word error rate": _word_errors(heard, reference),
        "MFCC agreement": mfcc_agreement(heard, reference),
        **_prosody(heard, reference),
        "mel distance (dB)": float(np.abs(heard.mel - reference.mel).mean()),
        "STFT distance": spectral_distance(_magnitudes(heard), _magnitudes(reference)),
        **_codes_kept(heard.codes, codes),
    }


def mfcc_agreement(heard: Heard, reference: Heard) -> float:
    """Return the correlation over time of MFCC 1-12 with those of the reference, averaged over coefficients.

    Constant differences (channel, mean spectrum of a voice) do not count. A coefficient that stands still agrees by
    0; one that stands still in the reference is left out.
    """
    own, other = (x.cepstra[:, 1:] - x.cepstra[:, 1:].mean(axis=0) for x in (heard, reference))
    moving = other.std(axis=0) > 1e-6
    if not moving.any():
        return float("nan")
    scale = own.std(axis=0) * other.std(axis=0)
    shared = (own * other).mean(axis=0)
    return float(np.where(own.std(axis=0) > 1e-6, shared / np.maximum(scale, 1e-30), 0.0)[moving].mean())


def phone_accuracy(clip: Clip, heard: Heard, recogniser: Recogniser) -> float:
    """Return the share of the frames with speech whose recognised phone is the true one; NaN without phones."""
    if recogniser.phones is None:
        return float("nan")
    truth = true_phones(clip, len(heard.cepstra))
    speech = ~np.isin(truth, SILENCE)
    return float((recogniser.phone_track(heard) == truth)[speech].mean()) if speech.any() else float("nan")


def median_pitch(heard: Heard) -> float:
    """Return the median pitch of voiced frames in semitones relative to 100 Hz; NaN with too few of them."""
    voiced = heard.pitch[heard.pitch > 0]
    return float(12 * np.log2(np.median(voiced) / 100)) if len(voiced) >= LEAST_VOICED else float("nan")


@lru_cache(maxsize=4)
def _magnitudes(heard: Heard) -> tuple[NDArray[np.float32], ...]:
    return magnitudes(heard.wave, heard.rate_hz)  # kept for a reference, which many arms are compared with


def _speaker(clip: Clip, heard: Heard, recogniser: Recogniser) -> dict[str, float]:
    if clip.speaker not in recogniser.speakers:
        return {"speaker accuracy": float("nan"), "speaker log-odds": float("nan")}
    scores = recogniser.speaker_scores(heard)
    own = recogniser.speakers.index(clip.speaker)
    margin = float(scores[own] - np.delete(scores, own).max())
    return {"speaker accuracy": float(margin > 0), "speaker log-odds": margin}


def _word_errors(heard: Heard, reference: Heard) -> float:
    """Return errors against the words heard in the reference: a window cuts sentences, so a transcript does not fit."""
    if heard.words is None or reference.words is None:
        return float("nan")
    return word_error_rate(reference.words, heard.words)


def _prosody(heard: Heard, reference: Heard) -> dict[str, float]:
    own, other = heard.pitch > 0, reference.pitch > 0
    both = own & other
    error = correlation = float("nan")
    if both.sum() >= LEAST_VOICED:
        a, b = (12 * np.log2(x.pitch[both]) for x in (heard, reference))
        error = float(np.sqrt(np.square(a - b).mean()))
        if b.std() > 1e-6:
            correlation = float(np.corrcoef(a, b)[0, 1]) if a.std() > 1e-6 else 0.0
    return {
        "F0 error (semitones)": error,
        "F0 correlation": correlation,
        "voicing error": float((own != other).mean()),
        "level error (dB)": float(np.sqrt(np.square(heard.levels - reference.levels).mean())),
    }


def _codes_kept(again: NDArray[np.int64], codes: NDArray[np.int64]) -> dict[str, float]:
    same = (again == codes).mean(axis=0)
    return {"codes kept": float(same.mean())} | {f"codes kept, layer {k}": float(x) for k, x in enumerate(same)}


def _in_context(frames: Floats) -> Floats:
    """Return frames (n, d) less their mean, with those around side by side, (n, 7 d); the ends repeat themselves."""
    centred = frames - frames.mean(axis=0)
    padded = np.pad(centred, ((AROUND, AROUND), (0, 0)), mode="edge")
    return np.concatenate([padded[i : i + len(frames)] for i in range(2 * AROUND + 1)], axis=1)
