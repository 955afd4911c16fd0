"""check_codec passes what keeps the contract and names the rule that an adapter breaks."""

import numpy as np
import pytest
from tiny_qwen import build_tiny_qwen
from toy_codec import HOP, SIZES, ToyCodec

from codecprobe.codecs.codec import Codes
from codecprobe.codecs.conformance import check_codec
from codecprobe.codecs.registry import open_codec


def test_a_codec_of_a_few_lines_conforms():
    report = check_codec(ToyCodec())
    assert report.passed and not report.failures, str(report)
    assert {check.status for check in report.checks} == {"passed"}
    assert str(report).startswith("toy: conforms\n  passed ")


@pytest.mark.transformers
def test_the_qwen3_tts_tokenizer_conforms(tmp_path):
    report = check_codec(open_codec(build_tiny_qwen(tmp_path), "cpu"))
    assert {check.status for check in report.checks} == {"passed"}, str(report)


@pytest.mark.parametrize("name", ["embedded", "embedded-flat"])
def test_the_embedded_codecs_conform(name):
    report = check_codec(open_codec(name))
    assert report.passed, str(report)


class DependsOnBatch(ToyCodec):
    def encode(self, waveforms):
        codes = super().encode(waveforms)
        if len(codes) > 1:
            codes[0].values[-1] = 0
        return codes


class DependsOnCall(ToyCodec):
    def encode(self, waveforms):
        codes = super().encode(waveforms)
        for clip in codes:
            clip.values[0, 0] = len(self.encoded) % SIZES[0]
        return codes


class LooksAhead(ToyCodec):
    def _codes(self, clip):
        codes = super()._codes(clip)
        codes[0, 0] = codes[-1, 0]
        return codes


class TakesAnyCode(ToyCodec):
    def layer_embeddings(self, codes):
        return np.stack([table[codes[:, k].astype(int)] for k, table in enumerate(self.tables)])


class SaysWrongGroups(ToyCodec):
    def __init__(self):
        from dataclasses import replace

        super().__init__()
        self.info = replace(self.info, parallel_groups=((0,), (1, 2)))

    def group_inputs(self, clip):
        return super().group_inputs(clip) * len(self.info.parallel_groups)

    def _codes(self, clip):
        return ToyCodec()._codes(clip)


class ForgetsALayer(ToyCodec):
    def layer_embeddings(self, codes):
        return super().layer_embeddings(codes) * np.array([1, 1, 0.5], np.float32)[:, None, None]

    def decode(self, codes):
        return self.decode_latent(ToyCodec.layer_embeddings(self, codes.values).sum(axis=0), codes.n_samples)


class DropsToCode0(ToyCodec):
    def decode_latent(self, latent, n_samples=None, state=None):
        return super().decode_latent(np.zeros_like(latent) + 0.1, n_samples)


class TakesStereo(ToyCodec):
    def encode(self, waveforms):
        return super().encode([np.asarray(wave, np.float32).reshape(-1) for wave in waveforms])


class TakesEmpty(ToyCodec):
    def encode(self, waveforms):
        return super().encode([wave if len(wave) else np.zeros(1, np.float32) for wave in waveforms])


class Int32(ToyCodec):
    def encode(self, waveforms):
        return [Codes(clip.values.astype(np.int32), clip.n_samples) for clip in super().encode(waveforms)]


class WrongLength(ToyCodec):
    def decode_latent(self, latent, n_samples=None, state=None):
        return super().decode_latent(latent)


class EditsBackwards(ToyCodec):
    def decode_latent(self, latent, n_samples=None, state=None):
        return super().decode_latent(latent + latent[::-1], n_samples)


class WritesIntoItsInput(ToyCodec):
    def layer_embeddings(self, codes):
        codes += 0
        return super().layer_embeddings(codes)


class WrongSizes(ToyCodec):
    def codebook(self, layer):
        return super().codebook(layer)[1:]


class Crashes(ToyCodec):
    def codebook(self, layer):
        raise ZeroDivisionError("integer division by zero")


@pytest.mark.parametrize(
    ("broken", "rule"),
    [
        (DependsOnBatch, "a clip's codes do not depend on its batch"),
        (DependsOnCall, "the same clip gives the same codes twice"),
        (LooksAhead, "codes of frames already heard do not change with what follows"),
        (TakesAnyCode, "-1, the table's size and other shapes are refused as codes"),
        (SaysWrongGroups, "each parallel group is one residual chain"),
        (ForgetsALayer, "the layers' terms add up to the decoder's input"),
        (DropsToCode0, "entry 0 is a vector, not an ablation"),
        (TakesStereo, "stereo, integer and not finite samples are refused"),
        (TakesEmpty, "an empty clip is refused by name, no clips give no codes"),
        (Int32, "codes are int64 (frames, layers) and cover the clip"),
        (WrongLength, "decoding gives exactly n_samples"),
        (EditsBackwards, "audio before an edited frame does not change"),
        (WritesIntoItsInput, "inputs are never changed"),
        (WrongSizes, "info agrees with the tables and the codes"),
        (Crashes, "info agrees with the tables and the codes"),
    ],
)
def test_each_broken_rule_is_named(broken, rule):
    report = check_codec(broken())
    assert rule in [check.rule for check in report.failures], str(report)
    assert not report.passed
    assert "does not conform" in str(report)


def test_on_a_gpu_unequal_codes_are_reported_and_do_not_fail():
    codec = DependsOnBatch()
    codec.certificate = {"device": "cuda"}
    (check,) = [check for check in check_codec(codec).checks if "batch" in check.rule]
    assert check.status == "passed" and "codes differ" in check.detail


def test_what_cannot_be_checked_is_said_with_the_reason():
    class Simple:
        def __init__(self):
            self.inner = ToyCodec()
            self.info, self.certificate = self.inner.info, {}
            for name in ("encode", "codebook", "layer_embeddings", "decode_latent", "decode"):
                setattr(self, name, getattr(self.inner, name))

    (check,) = [check for check in check_codec(Simple()).checks if check.status == "not applicable"]
    assert check.rule == "each parallel group is one residual chain" and "group_inputs" in check.detail


def test_frames_of_the_toy_codec_are_what_the_checks_assume():
    """10.5 frames of signal make 11 frames of codes: the last one is partly padding."""
    codes = ToyCodec().encode([np.full(HOP * 10 + HOP // 2, 0.1, np.float32)])[0]
    assert codes.values.shape == (11, len(SIZES))
