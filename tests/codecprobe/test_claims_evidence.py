"""From measurements to evidence: against slow loops, closed forms and planted values; what cannot be read says why."""

import numpy as np
import pytest
from scipy import stats

from codecprobe.ablation_bench import FLOOR
from codecprobe.claim_evidence import ablation_evidence, lens_evidence, swap_evidence
from codecprobe.code_evidence import against_slowest, falls_with_layer, share_used, usage_evidence
from codecprobe.codebook_counts import Counts
from codecprobe.notes_claims import CLAIMS
from codecprobe.probe_ablation import LOSES
from probecore.verdicts import CONTRADICTED, NOT_DECIDED, SUPPORTED, judge

RULES = {claim.key: claim.rule for claim in CLAIMS}


def verdict(found, key):
    return judge(RULES[key], found[key])[0]


# Codes that stay


def test_the_slowest_later_layer_is_compared_by_a_loop_over_layers() -> None:
    values = np.random.default_rng(0).normal(loc=[3.0, 1.0, 2.0, 0.0, 1.5], size=(8, 5))
    found = against_slowest(values)
    means, lows, highs = [], [], []
    for k in range(1, 5):
        each = values[:, 0] - values[:, k]
        means.append(each.mean())
        lows.append(stats.t.interval(0.95, 7, each.mean(), stats.sem(each))[0])
        highs.append(stats.t.interval(1 - 0.05 / 4, 7, each.mean(), stats.sem(each))[1])
    assert found.value == pytest.approx(min(means))
    assert found.low == pytest.approx(min(lows))
    assert found.high == pytest.approx(min(highs))


def test_one_slow_later_layer_contradicts_that_layer_0_is_the_slowest() -> None:
    values = 0.01 * np.random.default_rng(1).normal(size=(10, 6)) + [0.5, 0.1, 0.1, 0.7, 0.1, 0.1]
    found = {"persists": against_slowest(values)}
    assert verdict(found, "persists") == CONTRADICTED
    assert "surely slower than layer 0: 3" in found["persists"].detail
    values[:, 3] = values[:, 1]
    assert verdict({"persists": against_slowest(values)}, "persists") == SUPPORTED


def test_layers_that_stay_equally_long_are_seldom_told_apart() -> None:
    """Under equality support needs all differences above 0, contradiction one below 0: at most .025 each.

    400 studies: .025 + 4 sqrt(.025 * .975 / 400) = .056.
    """
    rng = np.random.default_rng(2)
    verdicts = [judge(RULES["persists"], against_slowest(rng.normal(size=(10, 8))))[0] for _ in range(400)]
    assert verdicts.count(SUPPORTED) <= 0.056 * 400
    assert verdicts.count(CONTRADICTED) <= 0.056 * 400


def test_the_trend_over_layers_is_the_mean_rank_correlation() -> None:
    values = np.round(np.random.default_rng(3).normal(size=(6, 7)), 1)
    values[:, 2] = values[:, 1]  # ties
    found = falls_with_layer(values)
    assert found.value == pytest.approx(np.mean([stats.spearmanr(np.arange(7), row).statistic for row in values]))


def test_a_trend_of_codes_that_never_change_is_none() -> None:
    assert falls_with_layer(np.ones((5, 4))).value == 0


@pytest.mark.parametrize("function", [against_slowest, falls_with_layer])
def test_two_speakers_give_no_interval(function) -> None:
    found = function(np.arange(8.0).reshape(2, 4))
    assert found.value is None
    assert "fewer than 3 speakers" in found.reason
    assert judge(RULES["faster"], found)[0] == NOT_DECIDED


# Codes used


@pytest.mark.parametrize("size", [30, 64, 2048])
def test_an_evenly_used_book_has_share_1_whatever_its_size(size: int) -> None:
    """Rarefied counts of an even book, drawn without replacement from 200 frames of each code, against the closed form.

    Without replacement a few more codes show up: at most budget / frames of the expected repeats, 1 % here.
    """
    assert share_used(np.full(size, 200.0), 500) == pytest.approx(1, abs=0.02)


def test_a_book_of_which_a_quarter_is_used_has_the_share_of_a_quarter_at_many_frames() -> None:
    counts = np.zeros(64)
    counts[:16] = 1000
    assert share_used(counts, 5000) == pytest.approx(0.25, abs=1e-6)


def counts_of(used: int, n_speakers: int, seed: int, size: int = 256, frames: int = 400) -> Counts:
    rng = np.random.default_rng(seed)
    drawn = np.stack([np.bincount(rng.integers(0, used, frames), minlength=size) for _ in range(n_speakers)])
    return Counts(f"layer {seed}", "speech", drawn.astype(np.float64), 5 * n_speakers)


@pytest.mark.parametrize(
    ("first", "later", "less", "most"),
    [
        (20, 256, SUPPORTED, SUPPORTED),
        (256, 256, CONTRADICTED, SUPPORTED),
        (20, 60, SUPPORTED, CONTRADICTED),
        (128, 100, CONTRADICTED, CONTRADICTED),
    ],
)
def test_planted_use_of_codebooks_gives_its_verdicts(first: int, later: int, less: str, most: str) -> None:
    found = usage_evidence([counts_of(first, 8, 0), *(counts_of(later, 8, k) for k in (1, 2, 3))])
    assert (verdict(found, "uses-less"), verdict(found, "uses-most")) == (less, most)


def test_half_as_much_is_not_decided() -> None:
    """Layer 0 draws from half as many codes: its share is near a half of that of the others, on the border."""
    found = usage_evidence([counts_of(128, 8, 0), *(counts_of(256, 8, k) for k in (1, 2, 3))])
    assert abs(found["uses-less"].value) < 0.02


def test_codes_of_two_speakers_give_no_interval() -> None:
    found = usage_evidence([counts_of(20, 2, 0), counts_of(60, 2, 1)])
    assert verdict(found, "uses-less") == verdict(found, "uses-most") == NOT_DECIDED
    assert "fewer than 3 speakers" in found["uses-most"].reason


# Ablations


def row(metric: str, kind: str, layers: str | None, value: float, unablated: float, control: float, p: float = 0.01):
    effect, beyond = value - unablated, value - control
    return {
        "metric": metric, "kind": kind, "layers": layers, "value": value, "unablated_value": unablated,
        "control_value": control, "effect": effect, "effect_low": effect - 0.02, "effect_high": effect + 0.02,
        "beyond_control": beyond, "beyond_low": beyond - 0.02, "beyond_high": beyond + 0.03, "p_value": p,
        "p_adjusted": p, "p_control_adjusted": p, "p_note": "", "p_control_note": "", "n_clips": 50, "n_speakers": 10,
    }  # fmt: skip


def table(**changes: float):
    """A codec in which layer 0 is content and layers 1-2 the voice; changes replace the value under an edit."""
    values = {"phones": 0.1, "voice_0": 0.7, "voice_12": 0.1, "contour": 0.4, "level": 0.7} | changes
    level = values["level"]
    rows = [
        row("speaker accuracy", FLOOR, None, 0.05, level, 0.05), row("phone accuracy", FLOOR, None, 0.1, 0.8, 0.1),
        row("F0 correlation", FLOOR, None, 0.0, 1.0, 0.0),
        row("phone accuracy", "resample", "0", values["phones"], 0.8, 0.4),
        row("speaker accuracy", "resample", "0", values["voice_0"], level, 0.2),
        row("speaker accuracy", "resample", "1-2", values["voice_12"], level, 0.4),
        row("F0 correlation", "resample", "3-15", values["contour"], 1.0, 0.8),
        row("speaker accuracy (probe)", LOSES, "0", 0.69, 0.7, 0.6),
    ]  # fmt: skip
    return ablation_evidence(rows, "resample", "3-15")


KEYS = ("ablation-0-words", "ablation-0-voice", "ablation-1-2-voice", "ablation-probe-0", "reading-3")


def test_a_codec_as_the_notes_read_it_supports_every_ablation() -> None:
    assert [verdict(table(), key) for key in KEYS] == [SUPPORTED] * 5


def test_losses_are_positive_and_keep_their_ends() -> None:
    found = table()["ablation-0-words"]
    assert (found.value, found.low, found.high) == pytest.approx((0.3, 0.27, 0.32))
    assert found.plain_high == pytest.approx(0.72)


def test_a_codec_that_keeps_everything_contradicts_them() -> None:
    found = table(phones=0.79, voice_12=0.69, contour=0.98, voice_0=0.3)
    assert [verdict(found, key) for key in KEYS] == [CONTRADICTED] * 3 + [SUPPORTED, CONTRADICTED]


def test_a_random_change_that_harms_as_much_leaves_them_open() -> None:
    found = table(phones=0.4, voice_12=0.4, contour=0.8)
    assert {verdict(found, key) for key in ("ablation-0-words", "ablation-1-2-voice", "reading-3")} == {NOT_DECIDED}


def test_where_no_voice_is_heard_there_is_nothing_to_lose() -> None:
    """A codec that loses every voice would else support "layer 0 is not who speaks"."""
    found = table(level=0.1, voice_0=0.1, voice_12=0.1)
    for key in ("ablation-0-voice", "ablation-1-2-voice"):
        assert verdict(found, key) == NOT_DECIDED
        assert "nothing to lose" in found[key].reason


def test_word_errors_are_a_loss_where_they_grow() -> None:
    rows = [row("word error rate", FLOOR, None, 1.0, 0.0, 1.0), row("word error rate", "resample", "0", 0.9, 0.0, 0.5)]
    found = ablation_evidence(rows, "resample", "")
    assert found["ablation-0-words"].value == pytest.approx(0.4)
    assert verdict(found, "ablation-0-words") == SUPPORTED
    assert found["ablation-0-voice"].reason == "no clip has this measure"
    assert "reading-3" not in found


def swapped(metric: str, layers: str, moved: float | None, half: float = 0.1):
    ends = (None, None) if moved is None else (moved - half, moved + half)
    return {"metric": metric, "layers": layers, "moved": moved, "moved_low": ends[0], "moved_high": ends[1],
            "n_clips": 50, "n_speakers": 10}  # fmt: skip


def test_swaps_are_read_against_a_half() -> None:
    rows = [swapped("phones", "0", 0.9), swapped("MFCC", "0", 0.3), swapped("voice (nats)", "1-2", 0.55)]
    found = swap_evidence([*rows, swapped("pitch (semitones)", "3-15", 0.2)], "3-15")
    assert verdict(found, "reading-0") == SUPPORTED  # phones where they are known, not MFCC
    assert verdict(found, "reading-1-2") == NOT_DECIDED
    assert verdict(found, "reading-3-pitch") == CONTRADICTED
    nothing = swap_evidence([swapped("MFCC", "0", 0.9), swapped("voice (nats)", "1-2", None)], "")
    assert verdict(nothing, "reading-0") == SUPPORTED
    assert "a share of nothing" in nothing["reading-1-2"].reason


# The talker


def lens_rows(peak: int, n_layers: int = 28, early: float = 0.01, p: float | None = 0.01):
    effects = np.full(n_layers + 1, early)
    effects[peak] = 1.0
    rows = [
        {"stack": "talker", "metric": "style effect", "layer": k, "value": x, "ci_low": x - 0.005, "ci_high": x + 0.005,
         "p_adjusted": p}
        for k, x in enumerate(effects)
    ]  # fmt: skip
    top = {"stack": "talker", "metric": "peak of the effect", "layer": None, "value": peak, "ci_low": peak - 1}
    return [*rows, top | {"ci_high": peak + 1, "n_texts": 8, "n_frames": 300}]


@pytest.mark.parametrize(("peak", "found"), [(16, SUPPORTED), (14, SUPPORTED), (13, NOT_DECIDED), (25, CONTRADICTED)])
def test_the_peak_of_style_is_read_by_its_interval(peak: int, found: str) -> None:
    assert verdict(lens_evidence(lens_rows(peak), 28), "lens-peak") == found


@pytest.mark.parametrize(("early", "found"), [(0.01, SUPPORTED), (0.25, NOT_DECIDED), (0.6, CONTRADICTED)])
def test_early_layers_are_read_against_a_quarter_of_the_peak(early: float, found: str) -> None:
    assert verdict(lens_evidence(lens_rows(16, early=early), 28), "lens-early") == found


def test_a_peak_that_lies_early_is_all_of_the_effect() -> None:
    found = lens_evidence(lens_rows(5), 28)
    assert found["lens-early"].value == 1
    assert verdict(found, "lens-early") == verdict(found, "lens-peak") == CONTRADICTED


def test_a_lens_without_an_effect_decides_nothing() -> None:
    for p in (0.2, None):
        found = lens_evidence(lens_rows(16, p=p), 28)
        assert verdict(found, "lens-early") == verdict(found, "lens-peak") == NOT_DECIDED
        assert "no layer tells the style" in found["lens-peak"].reason


def test_layers_13_to_20_are_those_of_28() -> None:
    found = lens_evidence(lens_rows(3, n_layers=4), 4)
    assert verdict(found, "lens-peak") == NOT_DECIDED
    assert "28 layers" in found["lens-peak"].reason
