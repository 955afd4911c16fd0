"""Probes of frames: scikit-learn's refits, the refitted jackknife, calibrated p, and what speakers' means explain."""

import numpy as np
import pytest
from reference.targets_reference import held_out_score

from codecprobe.frame_probe import null_rows, probe_frames
from codecprobe.frames import Frames, curve_orders
from codecprobe.prosody import speaker_mean_r2, speaker_scores
from probecore.information import shift_orders
from probecore.stats.bootstrap import jackknife_error, t_quantile


def world(seed=0, speakers=4, clips=3, length=40, features=6):
    rng = np.random.default_rng(seed)
    n = speakers * clips * length
    group = np.repeat(np.arange(speakers), clips * length)
    x = rng.standard_normal((n, features)) + rng.standard_normal((speakers, features))[group]
    return rng, x, group, [length] * (speakers * clips)


@pytest.mark.parametrize("n_classes", [0, 2, 5])
def test_scores_equal_refits(n_classes):
    """Observed and shifted labels, against one scikit-learn ridge per fold: equal to 1e-9; and the interval is that of
    all probes fitted again without each speaker."""
    rng, x, group, lengths = world()
    signal = x @ rng.standard_normal((x.shape[1], max(n_classes, 1))) + rng.standard_normal((len(x), max(n_classes, 1)))
    y = signal.argmax(axis=1) if n_classes > 2 else (signal[:, 0] > 0).astype(int) if n_classes else signal[:, 0]
    labels = np.stack([y, *(y[order] for order in shift_orders(lengths, 3, 5))], axis=1)
    found = probe_frames(x, labels, group, n_classes, "cpu")
    expected = [held_out_score(x, labels[:, i], group, n_classes) for i in range(4)]
    np.testing.assert_allclose(found.scores, expected, atol=1e-9)
    assert found.chance == pytest.approx(np.mean(expected[1:]))
    deleted = np.array([held_out_score(x[group != g], y[group != g], group[group != g], n_classes) for g in range(4)])
    if not n_classes:
        half = t_quantile(3) * jackknife_error(deleted, np.zeros(4, dtype=np.int64))
        assert (found.ci_low, found.ci_high) == pytest.approx((expected[0] - half, min(expected[0] + half, 1.0)))
    else:
        assert found.ci_low < expected[0] < found.ci_high


def test_two_speakers_have_no_interval():
    _, x, group, lengths = world(speakers=2)
    y = x[:, 0] + 1.0
    found = probe_frames(x, np.stack([y, y[shift_orders(lengths, 1, 5)[0]]], axis=1), group, 0, "cpu")
    assert found.value > 0.9 and np.isnan(found.ci_low)
    row = null_rows({}, ["layer 0"], found.scores[None], [(found.ci_low, found.ci_high)])[0]
    assert "fewer than 3 speakers" in row["ci_note"]


def slow_walks(rng, n_clips, length, features, memory=0.9):
    """AR(1) series per clip, (frames, features): neighbouring frames are alike, clips are independent."""
    out = rng.standard_normal((n_clips, length, features))
    for t in range(1, length):
        out[:, t] = memory * out[:, t - 1] + np.sqrt(1 - memory**2) * out[:, t]
    return out.reshape(-1, features)


def moved(kind, lengths, session, seed):
    """Orders of frames: turned inside clips, curves exchanged, or curves exchanged so that no clip keeps its own."""
    if kind == "turned":
        return shift_orders(lengths, 19, 10, seed)
    n = sum(lengths)
    frames = Frames(np.zeros((n, 3, 1), dtype=np.int64), np.zeros(n), np.array(lengths), session // 2, session)
    return curve_orders(frames, 19, seed, deranged=kind == "deranged")[0]


def rejections(kind, memory, worlds=150):
    """Share of worlds without any relation in which p <= .1: 4 speakers x 2 sessions x 4 clips of 30 to 50 frames, a
    mean for each session, a fall of the target over each clip."""
    found = 0
    for seed in range(worlds):
        rng = np.random.default_rng(seed)
        lengths = rng.integers(30, 51, 32).tolist()
        session = np.repeat(np.arange(8), 4)
        x, y = (
            np.concatenate([slow_walks(rng, 1, n, k, memory) for n in lengths]) for k in (4, 1)
        )  # fmt: skip
        y = y[:, 0] + np.repeat(rng.standard_normal(8)[session], lengths)
        y = y - 1.5 * np.concatenate([np.linspace(0, 1, n) for n in lengths])
        x = x + np.repeat(rng.standard_normal((8, 4))[session], lengths, axis=0)
        labels = np.stack([y, *(y[order] for order in moved(kind, lengths, session, seed))], axis=1)
        scores = _scores(x, labels, np.repeat(session // 2, lengths))
        found += (1 + (scores[1:] >= scores[0]).sum()) / 20 <= 0.1
    return found / worlds


def test_p_of_curves_is_calibrated_where_turning_is_not():
    """Slow features and a slow, falling target that have nothing to do with each other. 150 worlds at .1 have a spread
    of .025: .03 to .17 allowed for exchanged curves. Turned inside clips, or exchanged so that no clip keeps its curve,
    the same worlds reject in more than that (.26 and .21 of 300)."""
    assert 0.03 <= rejections("exchanged", 0.9) <= 0.17
    assert rejections("turned", 0.9) > 0.17
    assert rejections("deranged", 0.9) > 0.15


def test_p_of_phones_is_calibrated_when_turned():
    """Labels with the memory of phones (a frame or two) against features as slow as .5 a frame: .02 to .19 allowed."""
    found = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        x = slow_walks(rng, 24, 40, 4, 0.5)
        y = np.repeat(rng.integers(0, 5, 24 * 40), rng.integers(1, 3, 24 * 40))[: 24 * 40]
        labels = np.stack([y, *(y[order] for order in shift_orders([40] * 24, 19, 10, seed))], axis=1)
        scores = _scores(x, labels, np.repeat(np.arange(4), 240), 5)
        found += (1 + (scores[1:] >= scores[0]).sum()) / 20 <= 0.1
    assert 2 <= found <= 19


def test_curves_are_exchanged_inside_sessions():
    """Each clip takes a curve of its block from its start; a shorter one begins again. Sessions under 4 clips widen to
    the speaker; a clip alone stays: 4! x 4! x 5! ways. Deranged, no clip that has others keeps its own."""
    lengths = np.array([3, 5, 4, 6] + [4] * 4 + [3, 2, 3, 3, 2] + [5])
    speaker = np.array([0] * 8 + [1] * 5 + [2])
    session = np.array([0] * 4 + [1] * 4 + [2, 2, 3, 3, 3] + [4])
    n = int(lengths.sum())
    frames = Frames(np.zeros((n, 3, 1), dtype=np.int64), np.zeros(n), lengths, speaker, session)
    clip = np.repeat(np.arange(len(lengths)), lengths)
    starts = np.cumsum(lengths) - lengths
    for deranged in (False, True):
        orders, block, ways = curve_orders(frames, 60, deranged=deranged)
        assert ways == 24 * 24 * 120 and len({tuple(order) for order in orders}) > 50
        taken = []
        for order in orders:
            for c in range(len(lengths)):
                (other,) = set(clip[order][clip == c].tolist())
                taken.append((c, other))
                assert block[other] == block[c]
                np.testing.assert_array_equal(order[clip == c], starts[other] + np.arange(lengths[c]) % lengths[other])
        kept = np.mean([c == other for c, other in taken if c < 8])
        assert kept == 0 if deranged else 0.15 < kept < 0.35  # 1 of 4, spread .02


def _scores(x, labels, group, n_classes=0):
    """Scores of every labelling without the interval, which this test does not need."""
    from codecprobe import frame_probe

    folds = pytest.MonkeyPatch()
    folds.setattr(frame_probe, "FEWEST_GROUPS", 99)
    try:
        return probe_frames(x, labels, group, n_classes, "cpu").scores
    finally:
        folds.undo()


def test_speakers_means_are_what_normalising_takes_away():
    """Two thirds of the variance lie between speakers by construction; z-scores have none of it and spread 1."""
    rng = np.random.default_rng(0)
    speaker = np.repeat(np.arange(6), 500)
    values = np.sqrt(2) * np.array([-1, 1, -1, 1, -1, 1])[speaker] + rng.standard_normal(3000)
    assert speaker_mean_r2(values, speaker) == pytest.approx(2 / 3, abs=0.03)
    frames = Frames(np.zeros((3000, 3, 1), dtype=np.int64), values, np.full(6, 500), np.arange(6), np.arange(6))
    scores = speaker_scores(frames)
    assert speaker_mean_r2(scores, speaker) == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose([scores[speaker == s].std() for s in range(6)], 1.0)


def test_knowing_the_clip_is_chance_for_a_raw_target():
    """Features that only say which level a clip has: R2 is high, also for values turned inside their clips."""
    rng, _, group, lengths = world(speakers=6, clips=6, length=30)
    level = np.repeat(rng.standard_normal(36), 30)
    y = level + 0.3 * rng.standard_normal(len(level))
    labels = np.stack([y, *(y[order] for order in shift_orders(lengths, 39, 8))], axis=1)
    found = probe_frames(level[:, None] + np.zeros((1, 2)), labels, group, 0, "cpu")
    assert found.value > 0.8 and found.chance == pytest.approx(found.value, abs=0.01)
