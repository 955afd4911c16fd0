from itertools import pairwise

import numpy as np
import pytest
import safetensors.numpy

from codecprobe.codecs.codec import Codec, Codes
from codecprobe.codecs.conformance import check_codec
from codecprobe.codecs.embedded import EmbeddedCodec, open_embedded
from codecprobe.codecs.embedded_recipe import WEIGHTS, fit, phone_shares
from codecprobe.codecs.vocoder import HOP, LATENT, MEL, PITCH, RATE_HZ, STEPS, VOICED, VOICING, analyse, latent
from codecprobe.corpora.corpus import Phone
from codecprobe.corpora.embedded import embedded_corpus
from codecprobe.corpora.phones import PHONES, SILENCE, phones_of
from codecprobe.corpora.voices import Channel, Voice, pitch_contour, record, speak, time_phones
from probecore.errors import CertificateError, InputError

TEXT = "THE HIDDEN SISTER PULLED THE SILVER WATER AFTER THE MARKET"
LOW = Voice("M", 100.0, 5.0, 0.93, (3400.0, 4400.0), 0.7, 0.01)
HIGH = Voice("F", 215.0, 5.0, 1.14, (3700.0, 4900.0), 0.5, 0.03)
STUDIO = Channel((0.0,) * 6, 0.0, -48.0, 0.0)
HALL = Channel((2.0, -2.0, 1.5, -1.0, 2.0, 1.0), 4.0, -38.0, 5.0)


def said(voice, channel=STUDIO):
    """The same phones at the same times, said by a voice into a channel."""
    rng = np.random.default_rng(5)
    phones = time_phones(phones_of(TEXT), 3.6, rng)
    return record(speak(voice, phones, pitch_contour(voice, phones, rng), rng), channel, rng)


@pytest.fixture(scope="module", params=["embedded", "embedded-flat"])
def codec(request):
    return open_embedded(request.param)


@pytest.fixture(scope="module")
def planted():
    return open_embedded("embedded")


def codes_of(codec, waveform):
    return codec.encode([waveform])[0].values


def test_it_keeps_the_contract_of_a_codec(codec):
    assert isinstance(codec, Codec)
    report = check_codec(codec)
    assert report.passed, str(report)
    info = codec.info
    assert info.synthetic and not info.causal and info.frame_rate_hz == 12.5 and info.n_layers == 8
    assert info.codebook_sizes == (len(PHONES), *[64] * 7)
    assert WEIGHTS.stat().st_size < 1_000_000


def test_clips_of_any_length_and_silence_are_encoded_and_decoded(codec):
    rng = np.random.default_rng(0)
    for n in (1, HOP, HOP + 1, 3_200, 60 * RATE_HZ):
        clip = (0.05 * rng.standard_normal(n)).astype(np.float32)
        codes = codec.encode([clip])[0]
        assert codes.values.shape == (-(-n // HOP), 8) and codes.n_samples == n
        decoded = codec.decode(codes)
        assert decoded.shape == (n,) and decoded.dtype == np.float32 and np.isfinite(decoded).all()
    silence = codec.encode([np.zeros(16_000, np.float32)])[0]
    assert (silence.values[:, 0] == PHONES.index(SILENCE)).all()
    assert np.sqrt(np.mean(codec.decode(silence) ** 2)) < 1e-3


def test_a_long_clip_is_encoded_as_in_one_piece(planted):
    """Analysis goes in blocks of 1,024 steps (20.48 s): a clip of two blocks has the latent of its halves, away from
    the seam, where the window of 40 ms sees the other half."""
    rng = np.random.default_rng(1)
    clip = (0.05 * rng.standard_normal(30 * RATE_HZ)).astype(np.float32)
    whole = latent(analyse(clip))
    tail = latent(analyse(clip[200 * HOP :]))
    assert np.abs(whole[201:] - tail[1:]).max() < 1e-5


def test_the_latent_is_the_sum_of_the_layers_and_each_layer_brings_it_closer(planted):
    """On speech the weights were not fitted to, the error of the spectrum falls with the voice and then with every
    layer of detail; the eight layers together take away at least a quarter of what content alone leaves."""
    waveform = said(LOW)
    codes = codes_of(planted, waveform)
    terms = planted.layer_embeddings(codes)
    assert terms.shape == (8, len(codes), LATENT) and terms.dtype == np.float32
    target = latent(analyse(waveform))
    speech = np.flatnonzero(codes[:, 0] != PHONES.index(SILENCE))
    errors = [np.sqrt(np.mean((terms[: k + 1].sum(0) - target)[speech][:, MEL] ** 2)) for k in range(8)]
    assert all(after < before for before, after in pairwise(errors[2:]))
    assert errors[2] < errors[0] and errors[7] < 0.75 * errors[0]


def test_decoded_speech_has_the_pitch_and_spectrum_of_its_latent(planted):
    """Analysing what was decoded: median pitch within half a semitone of the latent's, log-mel powers within 0.7
    (3 dB) of it on average where there is speech."""
    terms = planted.layer_embeddings(codes_of(planted, said(HIGH))).sum(axis=0)
    again = latent(analyse(planted.decode_latent(terms)))
    voiced = ((again[:, VOICING] > VOICED).all(axis=1)) & ((terms[:, VOICING] > 0.7).all(axis=1))
    assert voiced.sum() > 8
    assert abs(np.median((again - terms)[voiced, PITCH])) * 12 / 3 / np.log(2) < 0.5
    loud = terms[:, MEL].mean(axis=1) > -7
    assert np.abs((again - terms)[loud][:, MEL]).mean() < 0.7


def test_layer_0_says_what_is_said_and_layers_1_and_2_who_says_it(planted):
    """The same phones at the same times by two voices: most frames keep their content code and change their voice
    codes; the same voice in another channel keeps more of both layers than another voice does."""
    low, hall, high = (codes_of(planted, said(v, c)) for v, c in ((LOW, STUDIO), (LOW, HALL), (HIGH, STUDIO)))
    other_voice, other_channel = (low == high).mean(axis=0), (low == hall).mean(axis=0)
    assert other_voice[0] > 0.8 and other_channel[0] > 0.8
    assert other_voice[1] < 0.1 and other_channel[1] > 0.2


def test_gain_leaves_content_alone(planted):
    waveform = said(LOW)
    quiet = codes_of(planted, 0.5 * waveform)
    assert (quiet[:, 0] == codes_of(planted, waveform)[:, 0]).mean() > 0.9


def test_the_flat_codec_is_a_function_of_its_content_alone():
    """Two clips with equal content codes have equal codes in all layers, whoever speaks: frames whose own and
    neighbouring content codes agree between two voices agree in all eight layers."""
    flat = open_embedded("embedded-flat")
    low, high = codes_of(flat, said(LOW)), codes_of(flat, said(HIGH))
    same = low[:, 0] == high[:, 0]
    inside = same[:-2] & same[1:-1] & same[2:]
    assert inside.sum() > 10
    assert np.array_equal(low[1:-1][inside], high[1:-1][inside])


def test_content_codes_are_the_phones():
    """At least 85 % of the frames of 20 unseen clips get the phone that fills most of them."""
    codec, corpus = open_embedded(), embedded_corpus(seed=77, speakers=4, sessions=1, clips=5)
    hits = []
    for clip in corpus.clips:
        codes = codes_of(codec, clip.read().samples)[:, 0]
        hits.append(codes == phone_shares(clip.phones, len(codes)).argmax(axis=1))
    assert np.concatenate(hits).mean() > 0.85


def test_phone_shares_are_seconds_inside_frames():
    shares = phone_shares((Phone("AA", 0.0, 0.1), Phone("S", 0.1, 0.2)), 3)
    expected = np.zeros((3, len(PHONES)))
    expected[0, PHONES.index("AA")] = 1
    expected[1, PHONES.index("AA")], expected[1, PHONES.index("S")] = 0.25, 0.75
    expected[2, PHONES.index("S")], expected[2, PHONES.index(SILENCE)] = 0.5, 0.5
    assert np.allclose(shares, expected, atol=1e-12)


def test_pitch_of_a_known_tone_is_found():
    """Harmonic tones at 80 to 350 Hz: within 0.1 semitone, and called voiced; noise is mostly not."""
    time = np.arange(RATE_HZ) / RATE_HZ
    for hertz in (80.0, 123.4, 220.0, 350.0):
        tone = sum(np.sin(2 * np.pi * k * hertz * time) / k for k in range(1, 12))
        clip = analyse((0.1 * tone).astype(np.float32))
        inner = slice(STEPS, -STEPS)
        assert np.abs(12 * np.log2(clip.pitch_hz[inner] / hertz)).max() < 0.1
        assert (clip.voicing[inner] > VOICED).all()
    noise = analyse((0.1 * np.random.default_rng(0).standard_normal(RATE_HZ)).astype(np.float32))
    assert (noise.voicing > VOICED).mean() < 0.2


def test_wrong_calls_are_refused(planted):
    with pytest.raises(InputError, match="an embedded codec must be one of embedded, embedded-flat; got 'other'"):
        open_embedded("other")
    with pytest.raises(InputError, match=r"layer must lie in \[0, 8\); got 8"):
        planted.codebook(8)
    for bad in (np.zeros((3, 5), np.float32), np.zeros((0, LATENT), np.float32), np.full((2, LATENT), np.nan)):
        with pytest.raises(InputError, match="a latent must be finite with shape"):
            planted.decode_latent(bad)
    with pytest.raises(InputError, match="codes of layer 0"):
        planted.decode(Codes(np.full((2, 8), 63), 100))


def test_a_codec_whose_layers_do_not_fit_is_not_certified(planted):
    """A table with fewer entries than the codes that are chosen: the certificate names what fails."""

    class Broken(EmbeddedCodec):
        def decode(self, codes):
            return super().decode(codes) * np.float32(1.01)

    broken = Broken("embedded", planted._weights, "x")
    with pytest.raises(CertificateError, match="embeddings of layers add up to the decoder's input"):
        _ = broken.certificate


def test_the_recipe_makes_the_weights_in_the_package(planted):
    """Fitted again: on the machine that made them every array is equal; elsewhere sums may round otherwise (1e-6 of
    the largest value) and a rare tie may fall the other way, so at least 99 % of the codes must agree."""
    stored, again = safetensors.numpy.load_file(WEIGHTS), fit()
    assert set(again) == set(stored)
    assert all(again[name].shape == array.shape and again[name].dtype == array.dtype for name, array in stored.items())
    remade = EmbeddedCodec("embedded", again, "")
    for voice in (LOW, HIGH):
        waveform = said(voice)
        assert (codes_of(remade, waveform) == codes_of(planted, waveform)).mean() >= 0.99
