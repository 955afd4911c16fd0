from collections import Counter

import numpy as np
import pytest
from scipy.linalg import solve_toeplitz

from codecprobe.corpora.corpus import Phone
from codecprobe.corpora.embedded import embedded_corpus
from codecprobe.corpora.phones import PHONES, TARGETS, phones_of
from codecprobe.corpora.voices import (
    HOP,
    LEVEL,
    RATE_HZ,
    Channel,
    Voice,
    draw_channel,
    n_samples,
    record,
    speak,
)
from probecore.errors import InputError

VOICE = Voice("M", 110.0, 5.0, 1.0, (3500.0, 4500.0), 0.6, 0.005)


@pytest.fixture(scope="module")
def corpus():
    return embedded_corpus()


@pytest.fixture(scope="module")
def some(corpus):
    """One clip of every speaker, read."""
    clips = [corpus.clips[i] for i in range(0, 180, 18)]
    return [(clip, clip.read().samples.astype(np.float64)) for clip in clips]


def test_the_default_design(corpus):
    assert corpus.synthetic and "synthetic" in corpus.notes[0]
    assert len(corpus.clips) == 180 == len({clip.clip_id for clip in corpus.clips})
    assert len(corpus.speakers) == 10 and len(corpus.sessions) == 30
    assert set(Counter(clip.session for clip in corpus.clips).values()) == {6}
    assert Counter(clip.labels["sex"] for clip in corpus.clips) == {"F": 90, "M": 90}
    assert all(3.2 <= clip.phones[-1].end_s <= 4.2 for clip in corpus.clips)
    assert corpus.sample(10, 5, seed=1).speakers == corpus.speakers


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_people(corpus, some):
    clip, samples = some[3]
    again = embedded_corpus()
    twin = next(other for other in again.clips if other.clip_id == clip.clip_id)
    assert np.array_equal(twin.read().samples, samples) and twin.content_hash() == clip.content_hash()
    other = embedded_corpus(seed=1)
    assert not {c.content_hash() for c in other.clips} & {c.content_hash() for c in corpus.clips}
    assert not np.array_equal(other.clips[0].read().samples[:1000], corpus.clips[0].read().samples[:1000])


def test_a_smaller_corpus_is_the_start_of_a_larger_one(corpus):
    small = embedded_corpus(speakers=2, sessions=1, clips=6)
    assert [clip.content_hash() for clip in small.clips[:6]] == [clip.content_hash() for clip in corpus.clips[:6]]
    with pytest.raises(InputError, match="24 texts"):
        embedded_corpus(clips=25)
    with pytest.raises(InputError, match="speakers must be an int of at least 1"):
        embedded_corpus(speakers=0)


def test_audio_is_whole_and_within_full_scale(some):
    for clip, samples in some:
        assert np.isfinite(samples).all() and 0.05 < np.abs(samples).max() < 1
        assert len(samples) == n_samples(clip.phones)
        assert len(clip.f0_hz) == len(samples) // HOP


def test_texts_come_from_one_pool_and_do_not_depend_on_the_speaker(corpus):
    pool = {clip.labels["text_id"]: clip.text for clip in corpus.clips}
    assert len(pool) == 24 == len(set(pool.values()))
    by_text = {text: {clip.speaker for clip in corpus.clips if clip.text == text} for text in pool.values()}
    assert np.mean([len(speakers) for speakers in by_text.values()]) > 4
    said = {phone for text in pool.values() for phone in phones_of(text)}
    assert said == set(PHONES)
    for clip in corpus.clips:
        assert tuple(phone.name for phone in clip.phones) == phones_of(clip.text)
        edges = [edge for phone in clip.phones for edge in (phone.start_s, phone.end_s)]
        assert edges == sorted(edges) and edges[0] == 0


def period(frame, low=60, high=400):
    """Pitch by the largest peak of the normalised autocorrelation, refined by a parabola: an independent measure."""
    frame = frame - frame.mean()
    full = np.correlate(frame, frame, "full")[len(frame) - 1 :]
    counts = np.arange(len(frame), 0, -1)
    lags = np.arange(RATE_HZ // high, RATE_HZ // low)
    score = full[lags] / counts[lags]
    best = lags[np.flatnonzero(score > 0.9 * score.max())[0] :]
    lag = next(k for k in best if full[k] / counts[k] >= full[k + 1] / counts[k + 1])
    a, b, c = (full[k] / counts[k] for k in (lag - 1, lag, lag + 1))
    return RATE_HZ / (lag + 0.5 * (a - c) / (a - 2 * b + c))


def test_pitch_is_the_stated_one(some):
    """Median error of an autocorrelation estimate on voiced 40 ms frames below half a semitone for every voice."""
    for clip, samples in some:
        errors = []
        for k in range(4, len(clip.f0_hz) - 4):
            if (clip.f0_hz[k - 2 : k + 3] > 0).all():
                measured = period(samples[(k - 2) * HOP : (k + 3) * HOP])
                errors.append(abs(12 * np.log2(measured / clip.f0_hz[k])))
        assert len(errors) > 100 and np.median(errors) < 0.5


def test_phones_sound_when_they_are_said_to(some):
    """Vowels are louder than the silence at the ends by more than 20 dB, and S has most of its energy above 4 kHz."""
    for clip, samples in some:
        power = {}
        for phone in clip.phones:
            middle, half = (phone.start_s + phone.end_s) / 2, (phone.end_s - phone.start_s) / 4
            part = samples[int((middle - half) * RATE_HZ) : int((middle + half) * RATE_HZ)]
            spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part)), 2048)) ** 2 / len(part)
            power.setdefault(phone.name, []).append((spectrum.sum(), spectrum[512:].sum()))
        total = {name: np.mean(values, axis=0) for name, values in power.items()}
        vowels = [total[name][0] for name in total if name in ("AH", "AA", "ER", "EH", "IH", "AE")]
        assert 10 * np.log10(np.mean(vowels) / total["sil"][0]) > 20
        if "S" in total:
            assert total["S"][1] > 0.6 * total["S"][0]


@pytest.mark.parametrize("vowel", ["IY", "EH", "AA", "UW"])
@pytest.mark.parametrize("tract", [0.95, 1.15])
def test_formants_scale_with_the_vocal_tract(vowel, tract):
    """Linear prediction (order 14, autocorrelation method) on a held vowel finds F1 and F2 within 12 %: at a pitch of
    100 Hz the harmonics lie 100 Hz apart, which is the error to expect of F1 (37 to 5 % of it), so F1 is held to
    50 Hz or 12 %, whichever is larger."""
    voice = Voice("M", 100.0, 0.0, tract, (3500.0, 4500.0), 0.5, 0.001)
    phones = (Phone(vowel, 0.0, 0.5),)
    samples = speak(voice, phones, np.full(50, 100.0), np.random.default_rng(0))[1600:-1600]
    emphasised = np.diff(samples) * np.hanning(len(samples) - 1)
    r = np.correlate(emphasised, emphasised, "full")[len(emphasised) - 1 :][:15]
    a = solve_toeplitz(r[:14] * (1 + 1e-9 * (np.arange(14) == 0)), r[1:15])
    roots = np.roots([1, *-a])
    roots = roots[(roots.imag > 0) & (np.abs(roots) > 0.85)]
    found = np.sort(np.angle(roots)) * RATE_HZ / (2 * np.pi)
    for target in tract * np.array(TARGETS[vowel].formants[:2]):
        assert np.abs(found - target).min() < max(50, 0.12 * target)


def test_a_channel_colours_and_does_not_delay():
    """Noise through the channel has the stated spectrum (averaged over 400 frames, error of a mean of a chi-square
    with 800 degrees of freedom about 5 % = 0.2 dB, with 0.5 dB for the window of the filter), and its cross-correlation
    with the input peaks at lag 0."""
    channel = Channel((2.0, -1.5, 1.0, 0.0, 0.0, 0.0), 3.0, -200.0, 0.0)
    rng = np.random.default_rng(0)
    x = rng.standard_normal(400 * 256)
    y = record(x, channel, rng).astype(np.float64)
    before, after = (np.mean(np.abs(np.fft.rfft(s.reshape(400, 256) * np.hanning(256))) ** 2, axis=0) for s in (x, y))
    place = np.arange(129) / 128
    stated = 3.0 + 2.0 * np.cos(np.pi * place) - 1.5 * np.cos(2 * np.pi * place) + np.cos(3 * np.pi * place)
    assert np.abs(10 * np.log10(after / before) - stated)[4:-4].max() < 0.7
    lags = [np.dot(x[100:-100], y[100 + k : len(y) - 100 + k]) for k in range(-20, 21)]
    assert np.argmax(lags) == 20


def test_the_noise_floor_is_where_the_channel_says():
    """A floor at -40 dB below speech and a gain of 6 dB: level within 0.3 dB over 10 s of noise."""
    noise = record(np.zeros(160_000), Channel((0.0,) * 6, 6.0, -40.0, 4.0), np.random.default_rng(0))
    assert 20 * np.log10(np.std(noise) / LEVEL) == pytest.approx(-34, abs=0.3)


def test_channels_do_not_know_the_speaker():
    """Draws depend on the generator alone: its signature takes nothing of the voice, and ranges are as documented."""
    drawn = [draw_channel(np.random.default_rng(i)) for i in range(200)]
    assert all(abs(g) <= 2.5 for channel in drawn for g in channel.colour_db)
    assert abs(np.mean([channel.gain_db for channel in drawn])) < 3 * (10 / 12**0.5) / 200**0.5


def test_the_sound_is_the_one_the_recipe_is_named_for(corpus):
    """Cached codes are found by the name of the recipe: where these numbers change (beyond rounding, 1e-5), the name
    (`RECIPE`) must change with them, and the embedded codec must be fitted again."""
    for i, n, mean, correlation in [(0, 59_680, 0.0120987759, 0.9550090), (100, 61_440, 0.0096338733, 0.9681114)]:
        x = corpus.clips[i].read().samples.astype(np.float64)
        assert len(x) == n
        assert np.abs(x).mean() == pytest.approx(mean, rel=1e-5)
        assert np.dot(x[:-1], x[1:]) / np.dot(x, x) == pytest.approx(correlation, abs=1e-5)
