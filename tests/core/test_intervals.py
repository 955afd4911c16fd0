"""Intervals: closed-form resamples equal refits on repeated items; coverage of the truth (trap 11)."""

import numpy as np
import pytest
import torch
from reference import ridge_reference

from probecore.probes.design import Design
from probecore.probes.intervals import Resampling, class_scores, plan_resampling, resampled_scores
from probecore.probes.layers import choose_folds
from probecore.probes.scores import score
from probecore.probes.solvers import ProbeSpec, decide
from probecore.seeds import generator
from probecore.splits import group_folds, leave_one_group_out
from probecore.stats.bootstrap import cluster_weights, share_interval
from probecore.stats.effects import wilson_interval

SPEAKER = np.repeat(np.arange(10), 5)


def refits_on_repeated_items(x, y, folds, weights, n_classes, alpha):
    """Return accuracy when items are really repeated: training and test rows appear as often as they were drawn."""
    right = total = 0.0
    for train, test in folds:
        rows = np.repeat(train, weights[train].astype(int))
        if len(np.unique(y[rows])) < 2:
            continue
        f = ridge_reference.decisions(
            np.concatenate([x[rows], x[test]]),
            [(np.arange(len(rows)), len(rows) + np.arange(len(test)))],
            np.concatenate([y[rows], y[test]])[:, None],
            n_classes,
            alpha,
        )[0][:, 0]
        predicted = (f > 0).astype(int) if n_classes == 2 else f.argmax(1)
        right += ((predicted == y[test]) * weights[test]).sum()
        total += weights[test].sum()
    return right / total


@pytest.mark.parametrize("n_classes, d", [(2, 80), (2, 12), (3, 80), (3, 12)])
def test_bootstrap_equals_refits_on_repeated_items(n_classes, d):
    """The share right is a count, so it must be equal, not close."""
    rng = generator(0, "bootstrap test", n_classes, d)
    y = np.concatenate([rng.permutation(np.arange(5) % n_classes) for _ in range(10)])
    x = rng.normal(size=(50, d)) + 0.8 * y[:, None] * rng.normal(size=d) / np.sqrt(d) * 3
    design, folds, spec = Design.of(y, SPEAKER), group_folds(SPEAKER, 5), ProbeSpec("ridge", 7.0, "none")
    plan = plan_resampling(design, folds, None, spec, 30, 1)
    assert plan.method == "bootstrap"
    got = resampled_scores(torch.tensor(x), design, folds, spec, plan)
    for value, weights in zip(got, plan.weights, strict=True):
        assert value == pytest.approx(refits_on_repeated_items(x, y, folds.pairs, weights, n_classes, 7.0), abs=1e-12)


def test_bootstrap_of_pairs_of_groups_weighs_a_pair_by_both_counts():
    rng = generator(1, "pairs")
    y = (np.arange(10) % 2)[SPEAKER]
    x = rng.normal(size=(50, 30)) + 0.5 * (2 * y - 1)[:, None]
    design = Design.of(y, SPEAKER)
    folds, spec = choose_folds(design, "auto"), ProbeSpec("ridge", 3.0, "none")
    plan = plan_resampling(design, folds, None, spec, 10, 2)
    got = resampled_scores(torch.tensor(x), design, folds, spec, plan)
    for value, weights in zip(got, plan.weights, strict=True):
        right = total = 0.0
        for train, test in folds.pairs:
            if len(np.unique(y[test])) < 2 or len(np.unique(y[train[weights[train] > 0]])) < 2:
                continue
            rows = np.repeat(train, weights[train].astype(int))
            w, b = ridge_reference.fit(x[rows], 2.0 * y[rows] - 1, 3.0)
            first, last = weights[test[0]], weights[test[-1]]
            right += ((((x[test] @ w + b) > 0) == y[test]) * first * last).sum()
            total += len(test) * first * last
        assert value == pytest.approx(right / total, abs=1e-12)


@pytest.mark.parametrize("kind", ["ridge", "lda"])
def test_jackknife_equals_refits_without_a_cluster(kind):
    """Speakers with several sessions, each deleted with its class. Ridge in closed form, LDA by refits."""
    rng = generator(2, "jackknife")
    session = np.repeat(np.arange(15), 4)
    speaker = session // 3
    x = rng.normal(size=(60, 40)) + rng.normal(size=(5, 40))[speaker]
    design, folds = Design.of(speaker, session), leave_one_group_out(session)
    spec = ProbeSpec(kind, 5.0, "none")
    plan = Resampling("jackknife", "", speaker, np.zeros(5, dtype=np.int64))
    got = resampled_scores(torch.tensor(x), design, folds, spec, plan)
    for s in range(5):
        kept = np.flatnonzero(speaker != s)
        labels = torch.tensor(np.unique(speaker[kept], return_inverse=True)[1])[:, None]
        sub = leave_one_group_out(session[kept])
        decisions = torch.cat(decide(spec, torch.tensor(x[kept]), sub.pairs, labels, 4, torch.tensor(session[kept])))
        rows = torch.tensor(np.concatenate(sub.tests()))
        assert got[s] == pytest.approx(float(score(decisions, labels[rows], 4).value[0]), abs=1e-12)


def test_real_labels_are_resampled_as_r2():
    rng = generator(3, "real")
    y = rng.normal(size=50)
    x = rng.normal(size=(50, 20)) + y[:, None]
    design, folds, spec = Design.of(y, SPEAKER, real=True), group_folds(SPEAKER, 5), ProbeSpec("ridge", 3.0, "none")
    plan = plan_resampling(design, folds, None, spec, 5, 0)
    z = (y - y.mean()) / y.std()
    for value, weights in zip(resampled_scores(torch.tensor(x), design, folds, spec, plan), plan.weights, strict=True):
        error, tested = 0.0, []
        for train, test in folds.pairs:
            rows = np.repeat(train, weights[train].astype(int))
            w, b = ridge_reference.fit(x[rows], z[rows], 3.0)
            error += (weights[test] * (x[test] @ w + b - z[test]) ** 2).sum()
            tested.append(test)
        total = (weights * (z - np.average(z, weights=weights)) ** 2).sum()
        assert value == pytest.approx(1 - error / total, abs=1e-9)


def test_which_resampling():
    """Bootstrap where classes survive it, jackknife where classes have few clusters, none below 3."""
    spec = ProbeSpec()
    session = np.repeat(np.arange(24), 2)
    identity = Design.of(session // 3, session)
    folds = leave_one_group_out(session)
    assert plan_resampling(identity, folds, None, spec, 100, 0).method == "jackknife"
    own = plan_resampling(identity, folds, session // 3, spec, 100, 0)
    assert own.method == "classes" and own.freedom == 7
    sex = Design.of((np.arange(10) % 2)[SPEAKER], SPEAKER)
    plan = plan_resampling(sex, choose_folds(sex, "auto"), None, spec, 100, 0)
    assert plan.method == "bootstrap" and plan.freedom == 8
    drawn = plan.weights[:, ::5]
    assert (drawn[:, ::2].sum(1) == 5).all() and (drawn[:, 1::2].sum(1) == 5).all()  # class by class
    two = Design.of([0, 0, 1, 1, 0, 0, 1, 1], [0, 0, 1, 1, 2, 2, 3, 3])
    assert "needs 3 of each class" in plan_resampling(two, folds, None, spec, 100, 0).reason
    assert plan_resampling(sex, folds, None, spec, 0, 0).reason.startswith("no interval was asked for")


def test_weights_are_whole_draws_of_clusters():
    weights = cluster_weights(SPEAKER, 500, seed=1)
    assert weights.shape == (500, 50) and (weights.sum(1) == 50).all()
    assert (weights.reshape(500, 10, 5) == weights.reshape(500, 10, 5)[:, :, :1]).all()
    assert abs(weights.var() - 0.9) < 0.1  # multinomial: 1 - 1/10
    assert (cluster_weights(SPEAKER, 500, seed=1) == weights).all()


def test_interval_of_a_perfect_share_does_not_claim_certainty():
    """All right in 10 clusters: the lower end is the exact bound .025^(1/10) = .69, not 1."""
    low, high = share_interval(1.0, 0.0, 9, 50, 10)
    assert low == pytest.approx(0.025**0.1) and high == 1.0
    low, high = share_interval(0.0, 0.0, 9, 50, 10)
    assert low == 0.0 and high == pytest.approx(1 - 0.025**0.1)
    low, high = share_interval(1.0, 0.05, 9, 180, 10, measured_at=0.99)  # a few resamples fall far below
    assert low == pytest.approx(0.025**0.1) and high == 1.0
    low, high = share_interval(0.98, 0.05, 9, 180, 10, measured_at=0.99)
    assert 0.75 < low < 0.98 - 2 * 0.05 and 0.98 < high < 1
    low, high = share_interval(0.7, 0.1, 9, 50, 10)
    assert low < 0.7 < high and high - 0.7 < 0.7 - low + 0.1
    assert np.isnan(share_interval(0.7, float("nan"), 9, 50, 10)).all()


def simulate(make, replicates, resamples, seed):
    """Return (estimates, intervals, standard errors) of ridge probes in `replicates` fresh data sets."""
    rng = np.random.default_rng(seed)
    estimates, intervals, errors = [], [], []
    for r in range(replicates):
        x, design, clusters = make(rng)
        folds, spec = choose_folds(design, "auto"), ProbeSpec("ridge", float(x.shape[1]), "none")
        plan = plan_resampling(design, folds, clusters, spec, resamples, r)
        labels = torch.tensor(design.y)[:, None]
        decisions = torch.cat(decide(spec, torch.tensor(x), folds.pairs, labels, design.n_classes, labels[:, 0]))
        rows = torch.tensor(np.concatenate(folds.tests()))
        weights = None
        if folds.by_class:
            opposite = [float(len(np.unique(design.y[test])) == 2) for test in folds.tests()]
            weights = torch.tensor(np.repeat(opposite, [len(test) for test in folds.tests()]))[:, None]
        value = float(score(decisions, labels[rows], design.n_classes, weights).value[0])
        if plan.method == "classes":
            tested = rows.numpy()
            resampled = class_scores(decisions[:, 0].numpy(), design.y[tested], plan.clusters[tested])
        else:
            resampled = resampled_scores(torch.tensor(x), design, folds, spec, plan)
        estimates.append(value)
        intervals.append(plan.interval(value, resampled, share=True, n_items=len(x)))
        errors.append(plan.error(resampled))
    return np.array(estimates), np.array(intervals), np.array(errors)


def label_within_speakers(effect, clips=5):
    def make(rng, d=64):
        speaker = np.repeat(np.arange(10), clips)
        y = np.concatenate([rng.permutation((np.arange(clips) + rng.integers(2)) % 2) for _ in range(10)])
        u = rng.normal(size=d)
        strength = effect * (1 + 0.8 * rng.normal(size=10))[speaker]
        x = rng.normal(size=(len(y), d)) + 0.5 * rng.normal(size=(10, d))[speaker]
        return x + (strength / 2 * (2 * y - 1))[:, None] * u / np.linalg.norm(u), Design.of(y, speaker), None

    return make


@pytest.mark.parametrize("effect", [2.2, 4.5])
def test_trap_11_coverage_with_10_speakers_of_5_clips(effect):
    """200 replicates: at least .93 of the .95 intervals hold the truth; Wilson on clips fewer than .85 of the same."""
    estimates, intervals, errors = simulate(label_within_speakers(effect), 200, 100, 11)
    truth = estimates.mean()
    covered = (intervals[:, 0] <= truth) & (truth <= intervals[:, 1])
    assert covered.mean() >= 0.93
    assert 0.9 < errors.mean() / estimates.std() < 1.3
    wilson = np.array([wilson_interval(round(p * 50), 50) for p in estimates])
    assert ((wilson[:, 0] <= truth) & (truth <= wilson[:, 1])).mean() < 0.85


def test_trap_11_coverage_of_a_label_that_is_constant_per_speaker():
    """5 v 5 speakers, leave one of each class out, drawn class by class: at least .9 of 100 (sd .03)."""

    def make(rng, d=64):
        y = rng.permutation(np.arange(10) % 2)[SPEAKER]
        u = rng.normal(size=d)
        x = rng.normal(size=(50, d)) + 0.5 * rng.normal(size=(10, d))[SPEAKER]
        return x + 2.0 * (2 * y - 1)[:, None] * u / np.linalg.norm(u), Design.of(y, SPEAKER), None

    estimates, intervals, _ = simulate(make, 100, 60, 12)
    truth = estimates.mean()
    assert 0.75 < truth < 0.95
    assert ((intervals[:, 0] <= truth) & (truth <= intervals[:, 1])).mean() >= 0.9


@pytest.mark.parametrize("spread", [0.0, 0.3, 0.6, 1.5])
def test_coverage_of_speaker_identity_for_new_speakers(spread):
    """8 speakers x 3 sessions x 10 clips, fresh speakers each time: clusters = speakers cover at least .93 of 200.

    From no speaker effect to nearly none mistaken. The intervals stay useful: shorter than .5 on average.
    """

    def make(rng, d=32):
        session = np.repeat(np.arange(24), 10)
        speaker = session // 3
        x = (
            rng.normal(size=(240, d))
            + spread * rng.normal(size=(8, d))[speaker]
            + 0.5 * rng.normal(size=(24, d))[session]
        )
        return x, Design.of(speaker, session), speaker

    estimates, intervals, _ = simulate(make, 200, 1, 13)
    truth = estimates.mean()
    assert ((intervals[:, 0] <= truth) & (truth <= intervals[:, 1])).mean() >= 0.93
    assert (intervals[:, 1] - intervals[:, 0]).mean() < 0.5


def test_class_scores_are_the_classes_own_when_they_are_equally_large():
    decisions = np.eye(3)[[0, 1, 0, 1, 2, 0]]
    y = np.array([0, 0, 1, 1, 2, 2])
    np.testing.assert_allclose(class_scores(decisions, y, y), [0.5, 0.5, 0.5])
    unequal = class_scores(np.eye(3)[[0, 0, 0, 1, 0, 0]], np.array([0, 0, 0, 1, 2, 2]), np.array([0, 0, 0, 1, 2, 2]))
    assert unequal.mean() == pytest.approx(4 / 6)


def test_the_closed_form_jackknife_equals_refits(monkeypatch):
    """The route for many items (refits) and the closed form give the same values; alpha is a number, scaling none."""
    from probecore.probes import intervals

    rng = generator(4, "routes")
    session = np.repeat(np.arange(15), 4)
    speaker = session // 3
    x = torch.tensor(rng.normal(size=(60, 40)) + rng.normal(size=(5, 40))[speaker])
    design, spec = Design.of(speaker, session), ProbeSpec("ridge", 5.0, "none")
    folds = choose_folds(design, "auto")
    plan = Resampling("jackknife", "", speaker, np.zeros(5, dtype=np.int64))
    closed = resampled_scores(x, design, folds, spec, plan)
    monkeypatch.setattr(intervals, "MOST_ITEMS_KERNEL", 10)
    np.testing.assert_allclose(resampled_scores(x, design, folds, spec, plan), closed, atol=1e-12)


def test_trap_12_two_equal_layers_are_told_apart_in_at_most_5_percent():
    """10 speakers x 5 clips, both layers at effect 2.2: 150 replicates reject at most .08; McNemar on clips above .1.

    The same resamples serve both layers, the standard error of the difference matches its standard deviation.
    """
    from probecore.stats.bootstrap import t_quantile
    from probecore.stats.effects import mcnemar_exact

    rng = np.random.default_rng(14)
    folds, spec = group_folds(SPEAKER, 5), ProbeSpec("ridge", 64.0, "none")
    rows = torch.tensor(np.concatenate(folds.tests()))
    differences, errors, rejected, mcnemar = [], [], [], []
    for r in range(150):
        y = np.concatenate([rng.permutation((np.arange(5) + rng.integers(2)) % 2) for _ in range(10)])
        design = Design.of(y, SPEAKER)
        plan = plan_resampling(design, folds, None, spec, 80, r)
        right, resampled = [], []
        for _ in range(2):
            u = rng.normal(size=64)
            strength = 2.2 * (1 + 0.8 * rng.normal(size=10))[SPEAKER]
            x = rng.normal(size=(50, 64)) + 0.5 * rng.normal(size=(10, 64))[SPEAKER]
            x = torch.tensor(x + (strength / 2 * (2 * y - 1))[:, None] * u / np.linalg.norm(u))
            f = torch.cat(decide(spec, x, folds.pairs, torch.tensor(y)[:, None], 2, torch.tensor(SPEAKER)))[:, 0]
            right.append(((f > 0).long() == torch.tensor(y)[rows]).numpy())
            resampled.append(resampled_scores(x, design, folds, spec, plan))
        differences.append(right[0].mean() - right[1].mean())
        errors.append(plan.error(resampled[0] - resampled[1]))
        rejected.append(abs(differences[-1]) > t_quantile(plan.freedom) * errors[-1])
        mcnemar.append(mcnemar_exact(int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())) <= 0.05)
    assert np.mean(rejected) <= 0.08 and np.mean(mcnemar) > 0.1, (np.mean(rejected), np.mean(mcnemar))
    assert 0.85 < np.mean(errors) / np.std(differences) < 1.3
