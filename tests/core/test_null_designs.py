"""Traps 1 to 4: without an effect, the permutation that mirrors the design rejects at .05, the naive ones do not.

Features are speaker offsets (sd 1), chapter (.7) or item offsets (1) and noise, d = 64, n = 100, alpha 50, and know
nothing about the label. 400 nulls of 199 permutations: binomial band .03 to .0725. The right procedure must lie inside
it (accuracy has few values and may lie below); the naive ones must lie above it, which guards the simulator.
"""

import numpy as np
import pytest
import torch
from reference.nulls import band, rejections

from probecore.probes.design import Design
from probecore.probes.layers import choose_folds
from probecore.probes.permutation import draw_labelings
from probecore.probes.ridge import ridge_decisions
from probecore.probes.scores import score
from probecore.splits import group_folds, item_folds, leave_one_group_out
from probecore.stats.permutation import p_value

D, SPEAKER, CHAPTER = 64, np.repeat(np.arange(10), 10), np.repeat(np.arange(20), 5)
TEMPLATE, ITEM = np.repeat(np.arange(5), 20), np.tile(np.arange(20), 5)
ROWS = np.arange(100)


def speech(chapter_sd):
    def features(rng, y):
        offsets = rng.normal(size=(10, D))[SPEAKER] + chapter_sd * rng.normal(size=(20, D))[CHAPTER]
        return rng.normal(size=(100, D)) + offsets

    return features


def prompts(rng, y):
    return rng.normal(size=(100, D)) + rng.normal(size=(5, D))[TEMPLATE] + rng.normal(size=(20, D))[ITEM]


def by_speaker(rng):
    return rng.permutation(np.arange(10) % 2)[SPEAKER]


def by_chapter(rng):
    return np.concatenate([rng.permutation(2) for _ in range(10)])[CHAPTER]


def by_clip(rng):
    while True:
        y = (rng.random(100) < rng.beta(0.7, 0.7, size=10)[SPEAKER]).astype(int)
        if 0 < y.sum() < 100:
            return y


def by_item(rng):
    return rng.permutation(np.arange(20) % 2)[ITEM]


def free(y):
    return Design.of(y)


LOW, HIGH = band(400)
RIGHT = {
    "D1 label per speaker": (speech(0.7), by_speaker, SPEAKER, lambda y: Design.of(y, SPEAKER)),
    "D2 label per chapter": (speech(0.7), by_chapter, SPEAKER, lambda y: Design.of(y, SPEAKER, CHAPTER)),
    "D3 label per clip": (speech(0.0), by_clip, SPEAKER, lambda y: Design.of(y, SPEAKER)),
    "D4 label per item": (prompts, by_item, ITEM, lambda y: Design.of(y, ITEM)),
}


@pytest.mark.parametrize("name", RIGHT)
def test_the_default_design_rejects_at_its_level(name):
    features, labels, groups, design_of = RIGHT[name]
    by_accuracy, by_margin, _ = rejections(features, labels, design_of, group_folds(groups, 5), seed=1)
    assert LOW <= by_margin <= HIGH, (by_accuracy, by_margin)
    assert by_accuracy <= HIGH, (by_accuracy, by_margin)


NAIVE = {
    "D1 rows, free": (speech(0.7), by_speaker, None, free, 0.95),
    "D1 by speaker, free": (speech(0.7), by_speaker, SPEAKER, free, HIGH),
    "D2 rows, free": (speech(0.7), by_chapter, None, free, 0.8),
    "D2 by speaker, free": (speech(0.7), by_chapter, SPEAKER, free, HIGH),
    "D2 by speaker, rows within speaker": (
        speech(0.7),
        by_chapter,
        SPEAKER,
        lambda y: Design.of(y, SPEAKER, ROWS, SPEAKER),
        HIGH,
    ),
    "D3 rows, free": (speech(0.0), by_clip, None, free, 0.6),
    "D4 by template, free": (prompts, by_item, TEMPLATE, free, 0.95),
    "D4 by template, rows within template": (
        prompts,
        by_item,
        TEMPLATE,
        lambda y: Design.of(y, TEMPLATE, ROWS, TEMPLATE),
        0.95,
    ),
}


@pytest.mark.parametrize("name", NAIVE)
def test_naive_procedures_reject_too_often(name):
    features, labels, groups, design_of, at_least = NAIVE[name]
    folds = item_folds(100, 5) if groups is None else group_folds(groups, 5)
    by_accuracy, by_margin, _ = rejections(
        features, labels, design_of, folds, seed=2, nulls=200 if at_least > 0.5 else 400
    )
    assert max(by_accuracy, by_margin) > at_least, (by_accuracy, by_margin)


def test_the_right_exchange_gives_a_valid_p_but_leaking_folds_still_inflate_accuracy():
    """D4 with templates as folds: p is right at .05, accuracy without any effect is .80; by item it is below .5."""
    item_level = lambda y: Design.of(y, TEMPLATE, ITEM)  # noqa: E731
    _, by_margin, leaking = rejections(prompts, by_item, item_level, group_folds(TEMPLATE, 5), nulls=200, seed=3)
    assert by_margin <= band(200)[1] and leaking > 0.7
    _, _, honest = rejections(prompts, by_item, lambda y: Design.of(y, ITEM), group_folds(ITEM, 5), nulls=100, seed=3)
    assert 0.4 < honest < 0.52


def test_leaving_a_chapter_out_removes_the_class_that_balances_it():
    """D2 by chapter: accuracy without an effect is near .2, which is why chance is the mean over permutations."""
    design_of = lambda y: Design.of(y, CHAPTER, CHAPTER, SPEAKER)  # noqa: E731
    _, by_margin, accuracy = rejections(speech(0.7), by_chapter, design_of, group_folds(CHAPTER, 5), nulls=100, seed=4)
    assert accuracy < 0.3 and by_margin <= band(100)[1]


def test_speaker_identity_exchanges_whole_sessions():
    """8 speakers x 3 sessions x 5 clips, session offsets and no speaker: both schemes of folds are in the band.

    Accuracy without an effect is 1/8 with a session of each speaker per fold, .06 when one session is left out, because
    that thins its own class. Clips as folds and units (textlesslib's split) reject nearly always.
    """
    session = np.repeat(np.arange(24), 5)
    speaker = session // 3
    x_of = lambda rng: rng.normal(size=(120, 32)) + 0.7 * rng.normal(size=(24, 32))[session]  # noqa: E731

    def run(make, nulls):
        rejected, accuracy = [], []
        for seed in range(nulls):
            design, folds = make(seed)
            x = torch.tensor(x_of(np.random.default_rng(seed)))
            labels = torch.tensor(draw_labelings(design, 199, seed=seed, folds=folds).values)
            rows = torch.tensor(np.concatenate(folds.tests()))
            scores = score(torch.cat(ridge_decisions(x, folds.pairs, labels, 8)), labels[rows], 8)
            rejected.append(p_value(torch.stack([scores.value, scores.margin]).numpy()) <= 0.05 + 1e-12)
            accuracy.append(float(scores.value[0]))
        return np.mean(rejected, axis=0), np.mean(accuracy)

    def dealt(seed):
        folds = choose_folds(Design.of(speaker, session), "auto", seed)
        assert folds.stratified and len(folds) == 3
        return Design.of(speaker, session, session, folds.fold_of(120)), folds

    low, high = band(200)
    for make, expected in (
        (dealt, 1 / 8),
        (lambda _: (Design.of(speaker, session), leave_one_group_out(session)), 0.06),
    ):
        (by_accuracy, by_margin), accuracy = run(make, 200)
        assert low <= by_margin <= high and by_accuracy <= high, (by_accuracy, by_margin)
        assert abs(accuracy - expected) < 0.015, accuracy
    (_, naive), accuracy = run(lambda seed: (Design.of(speaker), item_folds(120, 5, seed=seed)), 40)
    assert naive > 0.9 and accuracy > 0.2
