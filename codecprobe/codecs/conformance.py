"""Does an adapter keep the contract of `Codec`? Run this on every codec that is added.

Conventions. Signals are made here, at the codec's rate, in multiples and fractions of its frame. Each check is one
rule of the contract; it passed, failed, or does not apply, with the reason. On a GPU, where kernels may differ with the
batch, unequal codes are reported and do not fail.

    report = check_codec(open_codec("embedded"))
    print(report); assert report.passed
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from codecprobe.codecs.codec import Codec, Codes, Waveform
from probecore.errors import InputError, ProbeError
from probecore.seeds import generator

Status = Literal["passed", "failed", "not applicable"]

# Two float32 routes through one decoder: 16 terms summed in two orders, then about 100 operations in sequence.
DECODE_TOLERANCE = 1e-3  # of the peak of the decoded signal
# |r|^2 + |e|^2 - 2 r e in float32 with some hundred dimensions is off by about 1e-5 of its terms: nearer ones are ties.
TIE = 1e-5


@dataclass(frozen=True)
class Check:
    """One rule of the contract and whether it holds."""

    rule: str
    status: Status
    detail: str = ""


@dataclass(frozen=True)
class Conformance:
    """All checks of one codec; `print` shows a line each."""

    codec: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """True when no rule is broken."""
        return all(check.status != "failed" for check in self.checks)

    @property
    def failures(self) -> tuple[Check, ...]:
        """The rules that are broken."""
        return tuple(check for check in self.checks if check.status == "failed")

    def __str__(self) -> str:
        lines = [f"{self.codec}: {'conforms' if self.passed else 'does not conform'}"]
        for check in self.checks:
            lines.append(f"  {check.status:<14}  {check.rule}{': ' + check.detail if check.detail else ''}")
        return "\n".join(lines)


class _DoesNotApply(Exception):
    """Raised by a check that has nothing to check in this codec."""


class _Broken(Exception):
    """Raised by a check whose rule does not hold."""


def check_codec(codec: Codec, *, seed: int = 0) -> Conformance:
    """Check every rule of the `Codec` contract on short signals (a few seconds of audio in all).

    An adapter that also has `group_inputs(waveform)` (what each residual chain starts from, in the space of its
    tables) gets its codes recomputed from its code books.
    """
    probe = _Probe(codec, seed)
    return Conformance(codec.info.name, tuple(_run(rule, check) for rule, check in probe.checks()))


def _run(rule: str, check: Callable[[], str]) -> Check:
    try:
        return Check(rule, "passed", check())
    except _DoesNotApply as reason:
        return Check(rule, "not applicable", str(reason))
    except _Broken as reason:
        return Check(rule, "failed", str(reason))
    except Exception as error:  # an adapter that crashes breaks the rule; the others are still worth knowing
        return Check(rule, "failed", f"{type(error).__name__}: {error}")


class _Probe:
    """The signals and the checks of one codec."""

    def __init__(self, codec: Codec, seed: int) -> None:
        self.codec = codec
        self.info = codec.info
        self.rng = generator(seed, "conformance")
        self.exact = codec.certificate.get("device", "cpu") == "cpu"
        self.wave = self.signal(10.5)
        self.codes = codec.encode([self.wave])[0]

    def checks(self) -> Iterator[tuple[str, Callable[[], str]]]:
        """Yield each rule and the function that checks it."""
        yield "info agrees with the tables and the codes", self.info_agrees
        yield "codes are int64 (frames, layers) and cover the clip", self.codes_cover_the_clip
        yield "the same clip gives the same codes twice", self.same_codes_twice
        yield "a clip's codes do not depend on its batch", self.independent_of_batch
        yield "codes of frames already heard do not change with what follows", self.encoder_is_causal
        yield "-1, the table's size and other shapes are refused as codes", self.codes_are_checked
        yield "the layers' terms add up to the decoder's input", self.terms_add_up
        yield "entry 0 is a vector, not an ablation", self.entry_0_is_a_vector
        yield "each parallel group is one residual chain", self.groups_are_chains
        yield "an empty clip is refused by name, no clips give no codes", self.empty_is_refused
        yield "stereo, integer and not finite samples are refused", self.waveforms_are_checked
        yield "codes can be learned from (no inference-mode tensors)", self.codes_can_be_learned_from
        yield "decoding gives exactly n_samples", self.decode_has_the_length
        yield "audio before an edited frame does not change", self.decoder_is_causal
        yield "inputs are never changed", self.inputs_unchanged

    def signal(self, frames: float) -> Waveform:
        """Return harmonics of a moving pitch and some noise."""
        n = max(1, round(frames * self.info.hop_samples))
        time = np.arange(n) / self.info.sample_rate_hz
        phase = 2 * np.pi * np.cumsum(130 + 40 * np.sin(2 * np.pi * 1.3 * time)) / self.info.sample_rate_hz
        voice = sum(np.sin(k * phase) / k for k in range(1, 6))
        return (0.1 * voice + 0.02 * self.rng.standard_normal(n)).astype(np.float32)

    def info_agrees(self) -> str:
        info = self.info
        layers = [layer for group in info.parallel_groups for layer in group]
        _need(sorted(layers) == list(range(info.n_layers)), f"parallel_groups must hold every layer once; got {layers}")
        for layer, size in enumerate(info.codebook_sizes):
            table = self.codec.codebook(layer)
            _need(table.ndim == 2 and len(table) == size, f"table of layer {layer} is {table.shape}, its size {size}")
            _need(
                table.dtype == np.float32 and bool(np.isfinite(table).all()), f"table of layer {layer} is not float32"
            )
        return f"{info.n_layers} layers, {info.frame_rate_hz:g} Hz"

    def codes_cover_the_clip(self) -> str:
        for n in self.lengths():
            codes = self.codec.encode([self.signal(n / self.info.hop_samples)])[0]
            _need(codes.values.dtype == np.int64 and codes.n_samples == n, f"{codes.values.dtype}, {codes.n_samples}")
            _need(codes.values.shape[1] == self.info.n_layers, f"{codes.values.shape} for {self.info.n_layers} layers")
            frames = len(codes.values)
            _need(frames * self.info.hop_samples >= n, f"{frames} frames do not cover {n} samples")
            _need((frames - 1) * self.info.hop_samples < n, f"{frames} frames are too many for {n} samples")
        return ""

    def same_codes_twice(self) -> str:
        return self.agree(self.codes, self.codec.encode([self.wave])[0])

    def independent_of_batch(self) -> str:
        longest = self.signal(25)
        clips = [self.signal(n / self.info.hop_samples) for n in self.lengths()]
        together = self.codec.encode([*clips, longest])
        details = {self.agree(self.codec.encode([clip])[0], one) for clip, one in zip(clips, together, strict=False)}
        return "; ".join(sorted(details - {""}))

    def encoder_is_causal(self) -> str:
        if not self.info.causal:
            raise _DoesNotApply("the codec is not causal")
        start = 6 * self.info.hop_samples
        details = set()
        for level in (0.03, 0.1, 0.3, 0.9):
            changed = self.wave.copy()
            changed[start:] = level * self.rng.standard_normal(len(changed) - start).clip(-1, 1)
            codes = self.codec.encode([changed])[0]
            _need(not np.array_equal(codes.values[6:], self.codes.values[6:]), "other audio gives the same codes")
            details.add(self.agree(Codes(self.codes.values[:6], 0), Codes(codes.values[:6], 0)))
        return "; ".join(sorted(details - {""}))

    def codes_are_checked(self) -> str:
        good = self.codes.values
        for bad in (-1, self.info.codebook_sizes[-1]):
            codes = good.copy()
            codes[2, -1] = bad
            for call in (self.codec.layer_embeddings, lambda c: self.codec.decode(Codes(c, self.codes.n_samples))):
                message = _refusal(lambda call=call, codes=codes: call(codes), f"code {bad}")  # type: ignore[misc]
                named = str(self.info.n_layers - 1) in message and "frame 2" in message
                _need(named, f"the refusal must name layer and frame; got {message!r}")
        _refusal(lambda: self.codec.layer_embeddings(good[:, :-1]), "a layer too few")
        _refusal(lambda: self.codec.layer_embeddings(good.astype(np.float32)), "codes as floats")  # type: ignore[arg-type]
        return ""

    def terms_add_up(self) -> str:
        terms = self.codec.layer_embeddings(self.codes.values)
        _need(terms.shape[:2] == (self.info.n_layers, len(self.codes.values)), f"terms have shape {terms.shape}")
        decoded = self.codec.decode(self.codes)
        error = _relative(self.decoded(terms.sum(axis=0)), decoded)
        _need(error <= DECODE_TOLERANCE, f"decoding the sum differs from decode by {error:.1e} of its peak")
        return f"{error:.0e} of the peak"

    def entry_0_is_a_vector(self) -> str:
        terms = self.codec.layer_embeddings(self.codes.values)
        zeroed = self.codes.values.copy()
        zeroed[:, -1] = 0
        as_0 = self.codec.layer_embeddings(zeroed)
        if not np.abs(as_0[-1]).max() > 0:
            raise _DoesNotApply("entry 0 of the last layer is the zero vector in this codec")
        without = self.decoded(terms.sum(axis=0) - terms[-1])
        _need(not np.array_equal(without, self.decoded(as_0.sum(axis=0))), "dropping a layer equals its code 0")
        return ""

    def groups_are_chains(self) -> str:
        group_inputs: Callable[[Waveform], tuple[NDArray[np.float32], ...]] | None
        group_inputs = getattr(self.codec, "group_inputs", None)
        if group_inputs is None:
            raise _DoesNotApply("the adapter has no group_inputs to quantise again")
        again = np.empty_like(self.codes.values)
        for group, start in zip(self.info.parallel_groups, group_inputs(self.wave), strict=True):
            residual = start.astype(np.float64)
            for layer in group:
                table = self.codec.codebook(layer).astype(np.float64)
                distance = ((residual[:, None] - table[None]) ** 2).sum(axis=-1)
                chosen = self.codes.values[:, layer]
                scale = (residual**2).sum(axis=1) + (table[chosen] ** 2).sum(axis=1)
                tie = distance[np.arange(len(chosen)), chosen] <= distance.min(axis=1) + TIE * scale
                again[:, layer] = np.where(tie, chosen, distance.argmin(axis=1))
                residual = residual - table[chosen]
        return self.agree(self.codes, Codes(again, self.codes.n_samples))

    def empty_is_refused(self) -> str:
        empty = np.zeros(0, np.float32)
        message = _refusal(lambda: self.codec.encode([self.wave, empty]), "an empty clip")
        _need("clip 1" in message, f"the refusal must name clip 1; got {message!r}")
        _need(self.codec.encode([]) == [], "no clips must give no codes")
        return ""

    def waveforms_are_checked(self) -> str:
        _refusal(lambda: self.codec.encode([np.stack([self.wave, self.wave])]), "a stereo array")
        _refusal(lambda: self.codec.encode([(self.wave * 32767).astype(np.int16)]), "int16 samples")  # type: ignore[list-item]
        not_finite = self.wave.copy()
        not_finite[5] = np.nan
        _refusal(lambda: self.codec.encode([not_finite]), "NaN")
        return ""

    def codes_can_be_learned_from(self) -> str:
        import torch

        table = torch.nn.Embedding(max(self.info.codebook_sizes), 2)
        table(torch.from_numpy(self.codes.values)).sum().backward()
        _need(table.weight.grad is not None, "no gradient")
        return ""

    def decode_has_the_length(self) -> str:
        terms = self.codec.layer_embeddings(self.codes.values)
        lengths = {
            "decode": (len(self.codec.decode(self.codes)), len(self.wave)),
            "decode_latent": (len(self.decoded(terms.sum(axis=0))), len(self.wave)),
            "decode_latent without n_samples": (
                len(self.codec.decode_latent(terms.sum(axis=0), None, self.codes.state)),
                len(self.codes.values) * self.info.hop_samples,
            ),
        }
        for name, (found, wanted) in lengths.items():
            _need(found == wanted, f"{name} gives {found} samples for {wanted}")
        return f"{len(self.codes.values)} frames, {len(self.wave)} samples"

    def decoder_is_causal(self) -> str:
        if not self.info.causal:
            raise _DoesNotApply("the codec is not causal")
        terms = self.codec.layer_embeddings(self.codes.values)
        latent = terms.sum(axis=0)
        edited = latent.copy()
        edited[6:] -= terms[0, 6:]
        before = 6 * self.info.hop_samples
        plain, other = self.decoded(latent), self.decoded(edited)
        error = _relative(other[:before], plain[:before])
        _need(error <= DECODE_TOLERANCE, f"audio before the edit changes by {error:.1e} of its peak")
        _need(not np.array_equal(plain[before:], other[before:]), "the edit changes nothing")
        return ""

    def inputs_unchanged(self) -> str:
        wave, codes = self.wave.copy(), self.codes.values.copy()
        latent = self.codec.layer_embeddings(codes).sum(axis=0)
        kept = latent.copy()
        for array in (wave, codes, latent):
            array.flags.writeable = False
        self.codec.encode([wave])
        self.codec.layer_embeddings(codes)
        self.codec.decode(Codes(codes, self.codes.n_samples, self.codes.state))
        self.codec.decode_latent(latent, self.codes.n_samples, self.codes.state)
        same = np.array_equal(wave, self.wave) and np.array_equal(codes, self.codes.values)
        _need(same and np.array_equal(latent, kept), "an input array was changed")
        return ""

    def decoded(self, latent: NDArray[np.float32]) -> Waveform:
        return self.codec.decode_latent(latent, self.codes.n_samples, self.codes.state)

    def lengths(self) -> tuple[int, ...]:
        """Return clip lengths in samples: whole frames, a sample more or less, half a frame, one frame, almost none."""
        hop = self.info.hop_samples
        return (10 * hop, 10 * hop + 1, 10 * hop + hop // 2, 11 * hop - 1, 12 * hop + hop // 2, hop, 100, 1)

    def agree(self, first: Codes, second: Codes) -> str:
        """Need equal codes on a CPU; report agreement elsewhere."""
        _need(first.values.shape == second.values.shape, f"{first.values.shape} against {second.values.shape}")
        differ = first.values != second.values
        if not differ.any():
            return ""
        frames, layers = np.nonzero(differ)
        where = f"{differ.sum()} of {differ.size} codes differ, the first in frame {frames[0]} of layer {layers[0]}"
        _need(not self.exact, where)
        return f"not exact on this device: {where}"


def _need(holds: bool, otherwise: str) -> None:
    if not holds:
        raise _Broken(otherwise)


def _refusal(call: Callable[[], Any], what: str) -> str:
    """Return the message with which a call is refused; the refusal must be an `InputError`."""
    try:
        call()
    except InputError as error:
        return str(error)
    except ProbeError as error:
        raise _Broken(f"{what} is refused with {type(error).__name__}, not InputError") from error
    raise _Broken(f"{what} is accepted")


def _relative(found: Waveform, reference: Waveform) -> float:
    """Return the largest difference as a share of the reference's peak."""
    return float(np.abs(found - reference).max() / max(float(np.abs(reference).max()), 1e-12))
