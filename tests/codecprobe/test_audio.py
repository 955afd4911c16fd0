import struct

import numpy as np
import pytest
import soundfile

from codecprobe.audio import at_rate, band_edge_hz, file_hash, read_audio, resample
from codecprobe.corpora.corpus import Audio
from probecore.errors import InputError

RATE = 16_000
FORMATS = {
    "a.wav": {},
    "a.flac": {},
    "a.mp3": {},
    "a.ogg": {},
    "a.opus": {"format": "OGG", "subtype": "OPUS"},
    "a.aiff": {},
}


def tone(frequency, rate=RATE, seconds=1.0, level=0.5):
    return level * np.sin(2 * np.pi * frequency * np.arange(round(rate * seconds)) / rate)


def noise(seconds=1.0, rate=RATE):
    return 0.1 * np.random.default_rng(0).standard_normal(round(rate * seconds))


def written(path, samples, rate=RATE, **how):
    soundfile.write(path, samples, rate, **how)
    return path


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_sound(name, tmp_path):
    audio = read_audio(written(tmp_path / name, tone(440), **FORMATS[name]))
    assert (audio.samples.dtype, audio.sample_rate_hz, audio.n_channels) == (np.float32, RATE, 1)
    assert len(audio.samples) == RATE
    spectrum = np.abs(np.fft.rfft(audio.samples))
    assert spectrum.argmax() == 440 and spectrum[440] == pytest.approx(0.5 * RATE / 2, rel=0.05)


def test_lossless_files_are_read_to_the_last_bit(tmp_path):
    """16-bit samples are multiples of 2^-15, so float32 holds them exactly."""
    samples = np.round(tone(300) * 2**15) / 2**15
    for name in ("x.wav", "x.flac"):
        assert np.array_equal(read_audio(written(tmp_path / name, samples)).samples, samples.astype(np.float32))


def test_an_mp3_stream_in_a_file_named_wav_is_read_by_its_content(tmp_path):
    source = written(tmp_path / "a.mp3", tone(440))
    renamed = tmp_path / "b.wav"
    renamed.write_bytes(source.read_bytes())
    assert np.array_equal(read_audio(renamed).samples, read_audio(source).samples)


def test_channels_are_averaged_and_counted(tmp_path):
    left, right = np.round(tone(300) * 2**15) / 2**15, np.round(tone(500) * 2**15) / 2**15
    audio = read_audio(written(tmp_path / "s.wav", np.stack([left, right], axis=1)))
    assert audio.n_channels == 2
    assert np.array_equal(audio.samples, ((left + right) / 2).astype(np.float32))


def test_channels_that_cancel_are_silent_and_the_reason_says_so(tmp_path):
    x = np.round(tone(300) * 2**14) / 2**15
    with pytest.raises(InputError, match="average of its 2 channels"):
        read_audio(written(tmp_path / "s.wav", np.stack([x, -x], axis=1)))


@pytest.mark.parametrize("share", [0.001, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("name", [n for n in FORMATS if n != "a.mp3"])
def test_a_truncated_file_is_refused_wherever_it_is_cut(name, share, tmp_path):
    data = written(tmp_path / name, noise(), **FORMATS[name]).read_bytes()
    cut = tmp_path / f"cut-{name}"
    cut.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=r"cut off|not an audio file") as caught:
        read_audio(cut)
    assert cut.name in str(caught.value) and "\n" not in str(caught.value)


def test_a_truncated_mp3_with_a_length_header_is_refused(tmp_path, capfd):
    data = written(tmp_path / "a.mp3", noise(3)).read_bytes()
    (tmp_path / "cut.mp3").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"cut off or damaged: its header says 3\.00 s"):
        read_audio(tmp_path / "cut.mp3")


def test_a_flac_damaged_in_the_middle_is_refused(tmp_path):
    data = bytearray(written(tmp_path / "a.flac", noise()).read_bytes())
    data[len(data) // 2 : len(data) // 2 + 50] = bytes(50)
    (tmp_path / "bad.flac").write_bytes(data)
    with pytest.raises(InputError, match="damaged"):
        read_audio(tmp_path / "bad.flac")


def test_a_wav_written_to_a_pipe_has_no_length_and_is_read(tmp_path):
    data = bytearray(written(tmp_path / "a.wav", noise()).read_bytes())
    data[4:8] = data[40:44] = struct.pack("<I", 0xFFFFFFFF)
    (tmp_path / "pipe.wav").write_bytes(data)
    assert len(read_audio(tmp_path / "pipe.wav").samples) == RATE


def test_files_that_are_no_clip_are_refused_with_the_reason(tmp_path):
    cases = {
        "text.wav": (b"hello there", "not an audio file"),
        "empty.wav": (b"", "not an audio file"),
        "name.raw": (b"\0" * 4000, "not an audio file"),
    }
    for name, (content, reason) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=reason):
            read_audio(tmp_path / name)
    for name, samples, reason in [
        ("none.wav", np.zeros(0), "0 samples"),
        ("silent.wav", np.zeros(RATE), "silent: every sample is 0"),
        ("nan.wav", np.where(np.arange(RATE) == 5, np.nan, tone(300)), "NaN"),
        ("inf.wav", np.where(np.arange(RATE) == 5, np.inf, tone(300)), "infinity"),
        ("scale.wav", 32767 * tone(300), "divide by full scale"),
    ]:
        with pytest.raises(InputError, match=reason) as caught:
            read_audio(written(tmp_path / name, samples, subtype="FLOAT"))
        assert str(caught.value).startswith(name)
    with pytest.raises(InputError, match="no such file"):
        read_audio(tmp_path / "absent.wav")


@pytest.mark.parametrize(("source", "target"), [(16_000, 24_000), (44_100, 24_000), (8_000, 16_000), (48_000, 16_000)])
def test_resampling_is_physics(source, target):
    """A tone below the lower Nyquist frequency comes out as the same tone, sampled at the new rate: same level, no
    shift. HQ promises a pass band flat to 0.01 dB: 0.5 (10^(0.01/20) - 1) = 6e-4, away from the ends, where the filter
    sees the file's edge; a shift of a tenth of a sample would give 0.01 and more. Above that frequency: -90 dB."""
    low = min(source, target) / 2
    inner = slice(target // 10, -target // 10)
    for frequency in (0.1 * low, 0.5 * low, 0.85 * low):
        got = resample(tone(frequency, source), source, target)
        assert got.dtype == np.float32
        assert np.abs(got - tone(frequency, target))[inner].max() < 6e-4
    if source > target:
        gone = resample(tone(1.1 * low, source), source, target)
        assert np.abs(gone[inner]).max() < 0.5 * 10 ** (-90 / 20)


@pytest.mark.parametrize(("source", "target"), [(16_000, 24_000), (44_100, 24_000), (11_025, 16_000), (48_000, 8_000)])
def test_length_after_resampling_is_rounded_half_up(source, target):
    for n in [*range(1, 60), 999, 16_001, 44_101]:
        assert len(resample(np.ones(n, np.float32), source, target)) == (2 * n * target + source) // (2 * source)


def test_resampling_to_the_same_rate_changes_nothing():
    x = noise().astype(np.float32)
    assert np.array_equal(resample(x, RATE, RATE), x)
    assert at_rate(Audio(x, RATE, 2), 24_000).n_channels == 2


def test_the_band_edge_finds_an_upsampled_file():
    wide = Audio(noise().astype(np.float32), RATE)
    narrow = at_rate(at_rate(wide, 8_000), RATE)
    assert band_edge_hz(wide) > 7_900
    assert 3_700 < band_edge_hz(narrow) < 4_100


def test_the_hash_is_of_the_content_alone(tmp_path):
    for name, content in [("a", b"x"), ("b", b"x"), ("c", b"y")]:
        (tmp_path / name).write_bytes(content)
    assert file_hash(tmp_path / "a") == file_hash(tmp_path / "b") != file_hash(tmp_path / "c")
