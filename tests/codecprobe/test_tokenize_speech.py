"""Real and awkward audio files through a Qwen3-TTS tokenizer folder, from file to data set."""

import numpy as np
import pytest
import soundfile
from tiny_qwen import HOP, build_tiny_qwen, voice

from codecprobe.audio import read_audio, resample
from codecprobe.codecs.registry import open_codec
from codecprobe.corpora.registry import open_corpus
from codecprobe.dataset import load_tokenized, save_tokenized
from codecprobe.tokenization import tokenize

pytestmark = pytest.mark.transformers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_tiny_qwen(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def codec(folder):
    return open_codec(folder, "cpu")


def test_real_speech_gives_the_codes_of_the_released_wrapper(librispeech, codec, folder, tmp_path):
    """16 kHz FLAC, resampled by soxr and padded to whole frames, then the released encode: the same codes."""
    corpus = open_corpus(librispeech / "dev-clean", quiet=True).sample(speakers=3, clips=2)
    tokenized = tokenize(corpus, codec, cache=tmp_path, quiet=True)
    assert len(tokenized.clips) == 6 and not tokenized.problems and not tokenized.synthetic
    for clip, codes, n, duration in zip(
        tokenized.clips, tokenized.codes, tokenized.n_samples, tokenized.durations_s, strict=True
    ):
        audio = clip.read()
        wave = resample(audio.samples, audio.sample_rate_hz, 24_000)
        padded = np.pad(wave, (0, -len(wave) % HOP))
        released = codec.tokenizer.encode([padded], sr=24_000).audio_codes[0].numpy()
        np.testing.assert_array_equal(codes, released)
        assert n == len(wave) and duration == pytest.approx(len(audio.samples) / 16_000)
        assert len(codes) == -(-n // HOP)
    again = tokenize(corpus, open_codec(folder, "cpu"), cache=tmp_path, quiet=True)
    assert again.n_encoded == 0 and again.facts == tokenized.facts
    loaded = load_tokenized(save_tokenized(tokenized, tmp_path / "out"))
    assert [clip.text for clip in loaded.clips] == [clip.text for clip in corpus.clips]


def test_awkward_files_are_encoded_or_named(codec, tmp_path):
    """Stereo 8 kHz, 44.1 kHz, 0.2 s and 60 s are encoded; silence, an empty and a cut file are named, not coded."""
    speaker = tmp_path / "audio" / "anna" / "monday"
    speaker.mkdir(parents=True)
    speech = voice(2.0)
    stereo = np.stack([speech[::3], 0.5 * speech[::3]], axis=1)
    soundfile.write(speaker / "stereo.wav", stereo, 8_000)
    soundfile.write(speaker / "cd.flac", voice(1.0, seed=2), 44_100)
    soundfile.write(speaker / "short.wav", voice(0.2, seed=3), 24_000)
    soundfile.write(speaker / "long.wav", voice(60.0, seed=4), 24_000)
    soundfile.write(speaker / "silent.wav", np.zeros(24_000), 24_000)
    soundfile.write(speaker / "empty.wav", np.zeros(0), 24_000)
    soundfile.write(speaker / "cut.flac", voice(1.0, seed=5), 24_000)
    cut = (speaker / "cut.flac").read_bytes()
    (speaker / "cut.flac").write_bytes(cut[: len(cut) // 2])

    tokenized = tokenize(open_corpus(tmp_path / "audio", quiet=True), codec, cache=tmp_path / "cache", quiet=True)
    names = [clip.clip_id.rpartition("/")[2] for clip in tokenized.clips]
    frames = dict(zip(names, map(len, tokenized.codes), strict=True))
    seconds = {"stereo": 2.0, "cd": 24_000 / 44_100, "short": 0.2, "long": 60.0}
    assert frames == {name: -(-round(24_000 * length) // HOP) for name, length in seconds.items()}
    reasons = {problem.name.rpartition("/")[2].partition(".")[0]: problem.reason for problem in tokenized.problems}
    assert set(reasons) == {"silent", "empty", "cut"}
    assert "silent" in reasons["silent"] and "0 samples" in reasons["empty"]

    mono = resample(read_audio(speaker / "stereo.wav").samples, 8_000, 24_000)
    np.testing.assert_array_equal(tokenized.codes[names.index("stereo")], codec.encode([mono])[0].values)
