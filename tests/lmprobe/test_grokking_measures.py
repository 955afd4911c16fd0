"""Measures on states whose directions, ranks and frequencies are planted, and on one trained member."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from lmprobe.grokking import fourier
from lmprobe.grokking.measures import (
    Reading,
    class_means,
    contrast_directions,
    geometry,
    overlaps,
    read,
    removal,
    removal_record,
    require_clean,
)
from lmprobe.grokking.members import Member
from lmprobe.grokking.spec import Spec
from lmprobe.grokking.task import Task
from lmprobe.grokking.training import train
from probecore import DesignError
from probecore.removal import random_frames

P, D = 31, 40


def waves(task: Task, op: str, frequencies: list[int]) -> np.ndarray:
    """Cosine and sine of the answer (N_op, 2 F) on the cycle of an operation; answer 0 of mul has all zeros."""
    order = fourier.cycle(task, op)
    place = np.full(task.p, -1)
    place[order] = np.arange(len(order))
    y = task.answers[task.operation == task.ops.index(op)]
    phase = 2 * np.pi * np.outer(place[y], frequencies) / len(order)
    columns = np.stack([np.cos(phase), np.sin(phase)], axis=2).reshape(len(y), -1)
    return np.where(place[y][:, None] >= 0, columns, 0.0)


def planted(frequencies: dict[str, list[int]], *, shared: bool = False, noise: float = 0.0, seed: int = 0) -> Reading:
    """States with the waves of each operation's answer on directions of its own (or shared), and a head to match."""
    task = Task(P, tuple(frequencies))
    rng = np.random.default_rng(seed)
    frame = random_frames(D, D, 1, seed)[0]
    states, head, start = np.zeros((task.n_inputs, D)), np.zeros((D, P)), 0
    for op, found in frequencies.items():
        directions = frame[start : start + 2 * len(found)]
        start += 0 if shared else 2 * len(found)
        states[task.operation == task.ops.index(op)] = waves(task, op, found) @ directions
        order = fourier.cycle(task, op)
        columns = np.zeros((len(found) * 2, P))
        columns[:, order] = fourier_columns(len(order), found)
        head += directions.T @ columns
    states += noise * rng.normal(size=states.shape)
    head += noise * rng.normal(size=head.shape)  # of full rank: no answer is left to rounding
    held = rng.random(task.n_inputs) < 0.5
    return Reading(task, states + frame[-1], head, np.zeros(P), np.zeros((P, D)), held)


def fourier_columns(n: int, frequencies: list[int]) -> np.ndarray:
    phase = 2 * np.pi * np.outer(frequencies, np.arange(n)) / n
    return np.stack([np.cos(phase), np.sin(phase)], axis=1).reshape(-1, n)


def test_planted_frequencies_give_their_rank_and_shares() -> None:
    """Three frequencies are six directions of equal strength: every rank is 6, every share 1, and the head is found."""
    reading = planted({"add": [2, 5, 11]})
    row = geometry(reading, 0)
    assert (row["rank95"], row["rank99"], row["n_sv"], row["pca_rank99"], row["n_freq"]) == (6, 6, 6, 6, 3)
    assert row["participation"] == pytest.approx(6, abs=1e-9)
    assert row["fourier_answer_r2"] == pytest.approx(1, abs=1e-12)
    assert row["fourier_class_mean_top5"] == pytest.approx(1, abs=1e-12)
    assert row["logit_share"] == pytest.approx(1, abs=1e-12)
    assert row["fourier_floor_top5"] == 5 / 15
    found = removal(reading, 0, k_max=20)
    assert found.own[0] == 1.0 and found.own[6] < 0.1 and found.weakest[-1] == 1.0
    assert found.frequencies[3] < 0.1 and len(found.frequencies) >= 4
    record = removal_record(found)
    assert 1 <= record["k95"] <= record["k50"] <= 6 and not record["k95_censored"]
    assert record["acc10"] < 0.1 < 0.95 < record["random10"]


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_a_planted_rank_is_found(rank: int) -> None:
    """Class means = rank directions of equal strength plus noise of 1e-4 of it: rank99 counts the planted ones."""
    rng = np.random.default_rng(rank)
    task = Task(P)
    scores = np.linalg.qr(rng.normal(size=(P, rank)) - 0.0)[0]
    scores = np.linalg.qr(scores - scores.mean(0))[0]
    means = scores @ random_frames(D, rank, 1)[0] + 1e-4 * rng.normal(size=(P, D))
    reading = Reading(task, means[task.answers], means.T, np.zeros(P), means, np.ones(task.n_inputs, dtype=bool))
    assert geometry(reading, 0)["rank99"] == rank
    assert np.abs(class_means(reading.states, task.answers, P) - means).max() < 1e-12


def test_the_large_class_of_multiplication_counts_once() -> None:
    """With weights by inputs, class 0 (61 of 961 inputs, others 30) would pull the centre; class means are the same
    whatever the number of inputs."""
    reading = planted({"mul": [3, 7]}, noise=0.0)
    twice = np.concatenate([np.arange(reading.task.n_inputs), np.flatnonzero(reading.task.answers == 0).repeat(3)])
    means = class_means(reading.states, reading.task.answers, P)
    assert np.allclose(means, class_means(reading.states[twice], reading.task.answers[twice], P))
    row = geometry(reading, 0)
    assert row["n_freq"] == 2 and row["fourier_answer_r2"] == pytest.approx(1)
    assert row["logit_share"] == pytest.approx(1, abs=1e-9)


def test_a_pure_cosine_has_share_1_and_noise_its_floor() -> None:
    for n in (31, 30):
        for f in (1, 7, 15):
            wave = np.cos(2 * np.pi * f * np.arange(n) / n + 0.3)[:, None]
            power = fourier.frequency_power(wave)
            assert fourier.top_share(power, 1) == pytest.approx(1, abs=1e-12) and power.argmax() == f - 1
            assert power.sum() == pytest.approx(((wave - wave.mean()) ** 2).sum())  # Parseval
    noise = np.random.default_rng(0).normal(size=(97, 4000))
    assert fourier.top_share(fourier.frequency_power(noise), 10) == pytest.approx(10 / 48, abs=0.02)


def test_the_two_computations_of_the_answers_share_agree() -> None:
    """For addition: R² of the answer = power on the diagonal of the 2-D transform. Exact, for any states."""
    rng = np.random.default_rng(0)
    task = Task(13)
    states = rng.normal(size=(169, 5)) + rng.normal(size=(13, 5))[task.answers]
    share = fourier.answer_r2(states, task.answers)
    assert 0.2 < share < 0.8 and share == pytest.approx(fourier.diagonal_share(states, 13), abs=1e-12)
    r2 = (
        1
        - sum(((states[task.answers == y] - states[task.answers == y].mean(0)) ** 2).sum() for y in range(13))
        / ((states - states.mean(0)) ** 2).sum()
    )
    assert share == pytest.approx(r2, abs=1e-12)


def test_frequency_directions_span_their_frequencies_and_count_rows() -> None:
    rng = np.random.default_rng(0)
    rows, ends = fourier.frequency_directions(rng.normal(size=(30, D)))
    assert np.abs(rows @ rows.T - np.eye(len(rows))).max() < 1e-9
    assert ends[0] == 0 and ends[1] in (1, 2) and ends[-1] == len(rows) == 29  # 14 pairs and the middle one alone
    reading = planted({"add": [2, 5, 11]})
    means = class_means(reading.states, reading.task.answers, P)
    rows, ends = fourier.frequency_directions(means - means.mean(0))
    assert ends[:4] == [0, 2, 4, 6] and len(rows) == 6


def test_overlap_stands_beside_its_chance_and_random_bases_have_it() -> None:
    apart = overlaps(planted({"add": [2, 5, 11], "mul": [3, 7, 9]}), (5, 6))
    assert apart[1]["overlap"] < 1e-9 and apart[1]["chance"] == 6 / D
    shared = overlaps(planted({"add": [2, 5, 11], "mul": [3, 7, 9]}, shared=True), (6,))
    assert shared[0]["overlap"] == pytest.approx(1) and shared[0]["mean_cosine"] == pytest.approx(1)
    with pytest.raises(DesignError, match="two operations"):
        overlaps(planted({"add": [2]}))


def test_the_paired_contrast_of_two_operations_is_degenerate_and_not_on_offer() -> None:
    """h_add - h_mul and its negative have the same right singular vectors, so their overlap is 1 by construction."""
    reading = planted({"add": [2, 5], "mul": [3, 7]}, noise=0.1)
    paired = reading.states[reading.task.operation == 0] - reading.states[reading.task.operation == 1]
    bases = [np.linalg.svd(m, full_matrices=False)[2][:4] for m in (paired, -paired)]
    assert ((bases[0] @ bases[1].T) ** 2).sum() / 4 == pytest.approx(1)
    with pytest.raises(ValueError, match="contrast must be one of class-mean, pca, head"):
        contrast_directions(reading, 0, "paired")


def test_operations_on_directions_of_their_own_are_killed_one_by_one() -> None:
    apart = planted({"add": [2, 5, 11], "mul": [3, 7, 9]})
    for op in (0, 1):
        row = removal_record(removal(apart, op, k_max=20))
        assert row["selective_kill"] is not None and row["collateral_k50"] == 1.0


@pytest.mark.parametrize("contrast", ["class-mean", "pca", "head"])
def test_every_contrast_finds_the_planted_directions(contrast: str) -> None:
    reading = planted({"add": [2, 5, 11]}, noise=0.01)
    _, basis = contrast_directions(reading, 0, contrast)
    assert np.abs(basis @ basis.T - np.eye(D)).max() < 1e-9 and basis.shape == (D, D)
    assert removal(reading, 0, k_max=8, contrast=contrast, n_random=2).own[6] < 0.15


def test_a_model_near_chance_gets_no_k() -> None:
    reading = planted({"add": [2]}, noise=0.0)
    row = removal_record(removal(dataclasses.replace(reading, head=0 * reading.head), 0, k_max=8))
    assert row["k95"] is None and not row["k95_censored"] and "chance" in row["k_note"]


SMOKE = Spec(p=31, layers=1, width=64, fraction=0.7, batch=256, steps=1500, extra=300)


@pytest.fixture(scope="module")
def grokked(tmp_path_factory: pytest.TempPathFactory) -> Member:
    """A member that groks in a second or two; which seeds do may differ between versions of torch."""
    for seed in (2, 1, 3, 4, 5):
        spec = dataclasses.replace(SMOKE, seed=seed, data_seed=seed)
        (member,) = train([spec], tmp_path_factory.mktemp("members"))
        if member.status == "grokked":
            return member
    pytest.fail("none of five seeds grokked")


def test_a_grokked_member_is_taken_apart_by_its_directions_alone(grokked: Member) -> None:
    step = grokked.analysis_step(300)
    reading = read(grokked, step)
    require_clean(reading, "member")
    assert np.allclose(reading.train_accuracy, grokked.evaluation(step)["train_acc"])
    assert (reading.logits.argmax(1) == reading.task.answers)[reading.held_out].mean() == pytest.approx(
        grokked.evaluation(step)["val_acc"]
    )
    found, row = removal(reading, 0), geometry(reading, 0)
    record = removal_record(found)
    assert record["k95"] < row["rank99"] <= row["pca_rank99"] + 5 and record["k50"] <= row["rank99"]
    middle = row["rank99"] - 1
    assert found.random.mean(0)[middle] > found.own[middle] + 0.2
    assert found.own[min(row["rank99"] + 10, 63)] < 0.2  # all it uses is gone
    assert row["fourier_answer_r2"] > 0.5 and row["n_freq"] < 15


def test_a_step_in_a_spike_and_one_too_early_are_refused(grokked: Member) -> None:
    reading = read(grokked)
    noisy = dataclasses.replace(reading, head=np.random.default_rng(0).normal(size=reading.head.shape))
    with pytest.raises(DesignError, match="spikes"):
        require_clean(noisy, "seed 2")
    with pytest.raises(DesignError, match="extra"):
        grokked.analysis_step(5000)


def test_parameters_come_back_by_step(grokked: Member, tmp_path: Path) -> None:
    first, last = grokked.snapshots[0], grokked.snapshots[-1]
    assert grokked.phases.grok == first and last == grokked.step
    assert not np.array_equal(grokked.parameters(first)["embed"], grokked.parameters(last)["embed"])
    assert np.array_equal(grokked.parameters()["embed"], grokked.parameters(last)["embed"])
    with pytest.raises(ValueError, match="kept"):
        grokked.parameters(1)
