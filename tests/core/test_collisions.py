"""The collision ladder: its definitions in loops, unbiased in simulated worlds, calibrated without speaker effects."""

import numpy as np
import pytest
from reference import codes_reference
from scipy.stats import binom

from probecore.collision_pairs import far_collisions, session_collisions
from probecore.collisions import CollisionLadder, n_assignments
from probecore.errors import DesignError, InputError
from probecore.stats.permutation import p_value

SIZE = 128


def world(seed, *, voice=0.0, room=0.5, own=0.3, shape=(8, 3, 6), n_frames=20, layers=1):
    """Clips drawn from softmax(base + voice + room + own): codes, speaker, session, and each true distribution."""
    rng = np.random.default_rng(seed)
    n_speakers, n_sessions, n_clips = shape
    codes, speaker, session, truth = [], [], [], []
    base = rng.normal(size=SIZE)
    for s in range(n_speakers):
        of_voice = voice * rng.normal(size=SIZE)
        for h in range(n_sessions):
            of_room = room * rng.normal(size=SIZE)
            for _ in range(n_clips):
                p = np.exp(base + of_voice + of_room + own * rng.normal(size=SIZE))
                p /= p.sum()
                codes.append(rng.choice(SIZE, (n_frames, layers), p=p))
                speaker.append(f"s{s}")
                session.append(f"s{s}-{h}")
                truth.append(p)
    return codes, speaker, session, np.array(truth)


def ladder_of(codes, speaker, session, masks=None, far=5, size=SIZE):
    masks = [np.ones(len(clip), dtype=bool) for clip in codes] if masks is None else masks
    return CollisionLadder(codes, masks, speaker, session, sizes=[size] * codes[0].shape[1], far=far)


def test_the_rungs_are_those_of_loops_over_pairs_of_clips():
    """Unequal numbers of sessions and clips, a speaker with one session (who takes no part), a mask; to 1e-12."""
    rng = np.random.default_rng(0)
    session = ["a1"] * 3 + ["a2"] * 2 + ["b1"] * 2 + ["b2"] * 2 + ["b3"] * 2 + ["c1"] * 2 + ["d1"] * 2 + ["d2"] * 3
    speaker = [name[0] for name in session]
    codes = [rng.integers(0, 4, (int(rng.integers(5, 9)), 1)) for _ in session]
    masks = [np.concatenate([[True], rng.random(len(clip) - 1) < 0.7]) for clip in codes]
    ladder = ladder_of(codes, speaker, session, masks, far=2, size=4)
    kept = [clip[mask, 0].tolist() for clip, mask in zip(codes, masks, strict=True)]
    s_session, s_speaker, s_other = codes_reference.rung_means(kept, speaker, session)
    by_session, by_speaker = ladder.rung("session"), ladder.rung("speaker")
    assert by_session.above[0] == pytest.approx(s_session, rel=1e-12)
    assert by_session.below[0] == by_speaker.above[0] == pytest.approx(s_speaker, rel=1e-12)
    assert by_speaker.below[0] == pytest.approx(s_other, rel=1e-12)
    assert by_speaker.value[0] == pytest.approx(np.log2(s_speaker / s_other), abs=1e-12)
    assert by_speaker.n_speakers == by_session.n_speakers == 3


def test_far_pairs_of_a_session_are_those_of_four_loops():
    rng = np.random.default_rng(1)
    codes = [rng.integers(0, 3, (n, 2)) for n in (9, 14, 6)]
    masks = [rng.random(len(clip)) < 0.8 for clip in codes]
    within, between = far_collisions(codes, masks, 3)
    for layer in range(2):
        clips = [clip[:, layer] for clip in codes]
        assert within[layer] == pytest.approx(codes_reference.far_in_session(clips, masks, 3, True), rel=1e-12)
        assert between[layer] == pytest.approx(codes_reference.far_in_session(clips, masks, 3, False), rel=1e-12)


@pytest.mark.parametrize("n_frames", [10, 100])
def test_the_ladder_is_unbiased_at_any_number_of_frames(n_frames):
    """Mean of 60 worlds against the same worlds' true distributions: S within 4 standard errors, G within .02 bits.

    Plug-in information between speaker and code, which is what one would count instead, is several times its truth.
    """
    s_gap, g_gap, counted, exact = [], [], [], []
    for seed in range(60):
        codes, speaker, session, truth = world(seed, voice=0.4, n_frames=n_frames, shape=(6, 2, 4))
        rung = ladder_of(codes, speaker, session).rung("speaker")
        member = np.unique(session, return_inverse=True)[1]
        # the collisions of different clips need no frame drawn: a million frames of each would give these
        true = session_collisions(np.round(truth * 1e9), member)
        own = np.array([name[:2] for name in np.unique(session)])
        same = (own[:, None] == own) & ~np.eye(len(own), dtype=bool)
        s_speaker, s_other = true[same].mean(), true[own[:, None] != own].mean()
        s_gap.append([rung.above[0] - s_speaker, rung.below[0] - s_other])
        g_gap.append(rung.value[0] - np.log2(s_speaker / s_other))
        counted.append(plug_in(np.stack([np.bincount(c[:, 0], minlength=SIZE) / len(c) for c in codes]), speaker))
        exact.append(plug_in(truth, speaker))
    s_gap, g_gap = np.array(s_gap), np.array(g_gap)
    assert (np.abs(s_gap.mean(0)) < 4 * s_gap.std(0, ddof=1) / np.sqrt(60)).all()
    assert abs(g_gap.mean()) < max(0.02, 4 * g_gap.std(ddof=1) / np.sqrt(60)) < 0.1
    if n_frames == 10:
        assert np.mean(counted) > 2 * np.mean(exact)


def plug_in(share, speaker):
    names = sorted(set(speaker))
    joint = np.stack([share[[s == name for s in speaker]].sum(0) for name in names])
    joint /= joint.sum()
    independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    seen = joint > 0
    return float((joint[seen] * np.log2(joint[seen] / independent[seen])).sum())


def test_p_is_calibrated_where_sessions_differ_and_speakers_do_not():
    """300 worlds, 2 layers, 99 deals: rejections at .05 of p and of the family-wise p in their 99.9 % bands.

    Trap: permuting clips between speakers rejects far too often, as sessions then fall apart.
    """
    ours = adjusted = naive = 0
    for seed in range(300):
        codes, speaker, session, _ = world(seed, shape=(6, 3, 3), n_frames=15, layers=2)
        ladder = ladder_of(codes, speaker, session)
        test = ladder.speaker_test(99, seed)
        ours += test.p_value[0] <= 0.05
        adjusted += test.p_adjusted.min() <= 0.05
        if seed < 40:
            naive += clip_permutation_p(codes, speaker, np.random.default_rng(seed)) <= 0.05
    low, high = binom.interval(0.999, 300, 0.05)
    assert low <= ours <= high
    assert adjusted <= high
    assert naive > 10


def clip_permutation_p(codes, speaker, rng):
    """G with clips as sessions, clips exchanged freely."""
    counts = np.stack([np.bincount(clip[:, 0], minlength=SIZE) for clip in codes])
    between = session_collisions(counts, np.arange(len(codes)))
    names = np.array(speaker)

    def g(owner):
        same = owner[:, None] == owner
        return np.log2(between[same & ~np.eye(len(owner), dtype=bool)].mean() / between[~same].mean())

    return float(p_value([g(names), *(g(rng.permutation(names)) for _ in range(49))]))


def test_a_voice_is_found_in_its_layer():
    codes, speaker, session, _ = world(0, voice=0.8, n_frames=60)
    other = world(1, voice=0.0, n_frames=60)[0]
    both = [np.concatenate([a, b], axis=1) for a, b in zip(codes, other, strict=True)]
    ladder = ladder_of(both, speaker, session)
    test, rung = ladder.speaker_test(999), ladder.rung("speaker")
    assert test.p_value[0] == test.p_adjusted[0] == 0.001 and test.p_adjusted[1] > 0.05
    assert rung.low[0] > 0 and rung.low[1] < 0 < rung.high[1]
    assert abs(test.null_mean[0]) < 0.05


def test_the_jackknife_interval_covers():
    """250 worlds with a voice, 8 speakers: the interval holds the mean G of such worlds in 90 to 99 % of them."""
    rungs = [ladder_of(*world(s, voice=0.5, shape=(8, 2, 3), n_frames=30)[:3]).rung("speaker") for s in range(250)]
    aim = np.mean([rung.value[0] for rung in rungs])
    held = np.mean([rung.low[0] <= aim <= rung.high[0] for rung in rungs])
    assert 0.9 <= held <= 0.995


def test_what_drifts_along_a_sentence_is_no_information_on_the_clip():
    """Trap: clips that start on code 0 and end on code 1. Far pairs of a clip differ by construction, so against all
    pairs of other clips the clip seems to know less than nothing; against far pairs it knows nothing."""  # fmt: skip
    rng = np.random.default_rng(2)
    speaker = np.repeat([f"s{i}" for i in range(6)], 12)
    session = [f"{name}-{i // 6 % 2}" for i, name in enumerate(speaker)]
    ramp = np.linspace(0.05, 0.95, 30)
    codes = [(rng.random(30) < ramp).astype(int)[:, None] for _ in speaker]
    ladder = ladder_of(codes, speaker, session, far=12, size=2)
    rung = ladder.rung("clip")
    assert rung.low[0] < 0 < rung.high[0] and abs(rung.value[0]) < 0.05
    all_pairs = np.nanmean(np.diagonal(ladder.sessions[0]))
    assert np.log2(rung.above[0] / all_pairs) < -0.15


def test_a_clip_of_its_own_is_found():
    codes, speaker, session, _ = world(3, room=0.0, own=1.0, n_frames=60)
    rung = ladder_of(codes, speaker, session, far=5).rung("clip")
    assert rung.low[0] > 0.3
    nothing = ladder_of(codes, speaker, session, far=5).rung("session")
    assert nothing.low[0] < 0 < nothing.high[0]


def test_one_session_each_is_refused_and_the_clip_is_still_told():
    codes, speaker, session, _ = world(0, shape=(5, 1, 4), n_frames=30)
    ladder = ladder_of(codes, speaker, session)
    for rung in ("session", "speaker"):
        with pytest.raises(DesignError, match="cannot be told"):
            ladder.rung(rung)
    with pytest.raises(DesignError, match="speaker and session cannot be told apart"):
        ladder.speaker_test(99)
    assert np.isfinite(ladder.rung("clip").value).all()


def test_too_few_deals_give_no_p():
    codes, speaker, session, _ = world(0, shape=(3, 2, 2))
    ladder = ladder_of(codes, speaker, session)
    with pytest.raises(DesignError, match="in 15 ways only"):
        ladder.speaker_test(99)
    two = ladder_of(*world(0, shape=(2, 2, 2))[:3]).rung("speaker")
    assert np.isfinite(two.value).all() and np.isnan(two.low).all()


@pytest.mark.parametrize("sizes", [[1, 1], [2, 2], [2, 1], [3, 2], [2, 2, 2], [3, 3], [1, 2, 2], [4, 2]])
def test_deals_are_counted_as_by_brute_force(sizes):
    from itertools import permutations

    owner = np.repeat(np.arange(len(sizes)), sizes)
    deals = {
        frozenset(frozenset(np.flatnonzero(np.array(order) == s).tolist()) for s in range(len(sizes)))
        for order in permutations(owner.tolist())
    }
    assert round(n_assignments(sizes)) == len(deals)


def test_a_clip_without_frames_and_a_shared_session_are_refused():
    codes, speaker, session, _ = world(0, shape=(2, 2, 2))
    with pytest.raises(InputError, match="one speaker"):
        ladder_of(codes, speaker, ["x"] * len(codes))
    masks = [np.zeros(len(clip), dtype=bool) for clip in codes]
    with pytest.raises(InputError, match="every clip of a ladder"):
        ladder_of(codes, speaker, session, masks)
