"""Measures of one member at one step: directions of what it learned, what their removal does, ranks and Fourier shares.

Conventions. h (N, d) float64 is the state that the head reads at "=" (after the final norm), over all inputs; accuracy
is that of held-out inputs, per operation. The contrast matrix of an operation holds its class means, one row an answer,
minus the mean over answers: every answer counts once, as answer 0 of multiplication has twice the inputs of any other.
Its right singular vectors, strongest first, are the directions; removal is h - QQ'h before the head, which equals
folding I - QQ' into the head. Every operation is centred by its own mean. (The paired difference of two operations is
no contrast: both operations would get the same directions.)

A step inside a loss spike is refused. A curve that starts near chance has no k@q.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lmprobe.grokking import fourier
from lmprobe.grokking.data import training_mask
from lmprobe.grokking.forward import forward
from lmprobe.grokking.history import CLEAN
from lmprobe.grokking.members import Member
from lmprobe.grokking.task import Task
from probecore.errors import DesignError
from probecore.geometry import components_for, covariance_spectrum, participation_ratio, subspace_overlap
from probecore.removal import Crossing, head_curves, k_at, last_at, random_frames, require_above_chance, selective_kill
from probecore.validation import at_least, one_of

Floats = NDArray[np.float64]
CONTRASTS = ("class-mean", "pca", "head")
K_MAX, N_RANDOM, OVERLAP_AT = 64, 5, (5, 10, 30)


@dataclass(frozen=True)
class Reading:
    """What a member computes on all inputs: states, head, answers, and which inputs were held out."""

    task: Task
    states: Floats = field(repr=False)
    head: Floats = field(repr=False)
    bias: Floats = field(repr=False)
    embed: Floats = field(repr=False)
    held_out: NDArray[np.bool_] = field(repr=False)

    @property
    def logits(self) -> Floats:
        """Return the logits (N, p)."""
        return self.states @ self.head + self.bias

    @property
    def train_accuracy(self) -> float:
        """Return the accuracy on training inputs."""
        return float((self.logits.argmax(1) == self.task.answers)[~self.held_out].mean())


def read(member: Member, step: int | None = None) -> Reading:
    """Return the reading of a member at a kept step (None: its last)."""
    parameters = member.parameters(step)
    task = member.spec.shape.task
    final: list[torch.Tensor] = []
    with torch.no_grad():
        for tokens in torch.from_numpy(task.tokens).split(4096):
            states: dict[str, torch.Tensor] = {}
            forward(member.spec.shape, parameters, tokens, states)
            final.append(states["final"][0])

    def array(t: torch.Tensor) -> Floats:
        return np.asarray(t.double().numpy())

    return Reading(
        task,
        array(torch.cat(final)),
        array(parameters["head.weight"][0]),
        array(parameters["head.bias"][0]),
        array(parameters["embed"][0, : task.p]),
        ~training_mask(member.spec),
    )


def class_means(states: Floats, answers: NDArray[np.int64], p: int) -> Floats:
    """Return the mean state of each answer, (p, d)."""
    sums = np.zeros((p, states.shape[1]))
    np.add.at(sums, answers, states)
    counts = np.bincount(answers, minlength=p)
    if not counts.all():
        raise DesignError(f"class means need inputs of every answer; {int((counts == 0).sum())} have none")
    return np.asarray(sums / counts[:, None])


def contrast_directions(reading: Reading, op: int, contrast: str = "class-mean") -> tuple[Floats, Floats]:
    """Return singular values and a whole orthonormal basis (d, d), strongest first, of an operation's contrast matrix.

    "class-mean" as above; "pca": the operation's states minus their mean; "head": the columns of the head minus theirs.
    """
    one_of(contrast, CONTRASTS, "contrast")
    own = reading.task.operation == op
    states = reading.states[own]
    if contrast == "class-mean":
        matrix = class_means(states, reading.task.answers[own], reading.task.p)
    else:
        matrix = states if contrast == "pca" else reading.head.T
    _, singular, rows = np.linalg.svd(matrix - matrix.mean(0), full_matrices=len(matrix) < matrix.shape[1])
    return singular, rows


@dataclass(frozen=True)
class Removal:
    """Curves of one operation when its own directions, and controls of equal size, are removed.

    own (K + 1,), others {operation: (K + 1,)} : accuracy of this and of the other operations. random (n, K + 1).
    weakest (K + 1,) : the last directions first. frequencies (m + 1,) : m whole answer-frequencies, strongest first.
    """

    op: str
    own: Floats
    others: dict[str, Floats]
    random: Floats
    weakest: Floats
    frequencies: Floats
    p: int

    def crossing(self, q: float, *, relative: bool = True) -> Crossing:
        """Return k@q; raises `DesignError` where the curve starts near chance."""
        require_above_chance(float(self.own[0]), 1 / self.p)
        return k_at(self.own, q, relative=relative)


def removal(
    reading: Reading,
    op: int,
    *,
    k_max: int = K_MAX,
    n_random: int = N_RANDOM,
    contrast: str = "class-mean",
    seed: int = 0,
) -> Removal:
    """Return the removal curves of one operation with their controls."""
    task, d = reading.task, reading.states.shape[1]
    k_max = min(at_least(k_max, 1, "k_max"), d - 1)
    subsets = [reading.held_out & (task.operation == i) for i in range(len(task.ops))]
    _, basis = contrast_directions(reading, op, contrast)

    def curves(directions: Floats, which: Sequence[NDArray[np.bool_]], most: int) -> Floats:
        picked = np.flatnonzero(np.any(which, axis=0))
        local = [np.flatnonzero(mask[picked]) for mask in which]
        return head_curves(
            reading.states[picked], directions, reading.head, reading.bias, task.answers[picked], local, most
        )

    everything = curves(basis, subsets, k_max)
    mine = [subsets[op]]
    random = np.array([curves(f, mine, k_max)[0] for f in random_frames(d, k_max, n_random, seed)])
    own = task.operation == op
    order = fourier.cycle(task, task.ops[op])
    means = class_means(reading.states[own], task.answers[own], task.p)[order]
    rows, ends = fourier.frequency_directions(means - means.mean(0))
    ends = [end for end in ends if end <= k_max]
    whole = curves(rows, mine, ends[-1])[0][ends]
    return Removal(
        task.ops[op],
        everything[op],
        {name: everything[i] for i, name in enumerate(task.ops) if i != op},
        random.reshape(n_random, -1),
        curves(basis[::-1], mine, k_max)[0],
        whole,
        task.p,
    )


def geometry(reading: Reading, op: int) -> dict[str, Any]:
    """Return ranks and Fourier shares of one operation as a flat record.

    rank95, rank99, participation, n_sv (singular values above a tenth of the first) : of the class-mean matrix.
    pca_rank95, pca_rank99 : of the operation's states, which also hold what is memorised. n_freq : answer frequencies
    with more than 1 % of the power of the class means. fourier_* and logit_share : see `fourier`.
    """
    task = reading.task
    own, name = task.operation == op, task.ops[op]
    states, answers = reading.states[own], task.answers[own]
    singular, _ = contrast_directions(reading, op)
    power = singular**2
    order = fourier.cycle(task, name)
    means = class_means(states, answers, task.p)[order]
    on_cycle = np.isin(answers, order)
    spectrum = covariance_spectrum(states)
    row: dict[str, Any] = {
        "rank95": components_for(power, 0.95),
        "rank99": components_for(power, 0.99),
        "n_sv": int((singular > 0.1 * singular[0]).sum()),
        "participation": participation_ratio(power),
        "pca_rank95": components_for(spectrum, 0.95),
        "pca_rank99": components_for(spectrum, 0.99),
    }
    by_mean = fourier.frequency_power(means - means.mean(0))
    row["n_freq"] = fourier.frequencies_in_use(by_mean)
    embed, head = reading.embed[order], reading.head.T[order]
    powers = {
        "embed": fourier.frequency_power(embed - embed.mean(0)),
        "unembed": fourier.frequency_power(head - head.mean(0)),
        "class_mean": by_mean,
    }
    for k in (5, 10):
        row[f"fourier_floor_top{k}"] = min(1.0, k / len(by_mean))
        row |= {f"fourier_{which}_top{k}": fourier.top_share(value, k) for which, value in powers.items()}
    row["fourier_answer_r2"] = fourier.answer_r2(states[on_cycle], answers[on_cycle])
    row["logit_share"] = fourier.difference_share(reading.logits[own], answers, order)
    return row


def overlaps(reading: Reading, at: Sequence[int] = OVERLAP_AT) -> list[dict[str, Any]]:
    """Return how the first k directions of the two operations overlap, with the chance level k / d, one row a k."""
    if len(reading.task.ops) != 2:
        raise DesignError(
            f"overlap compares two operations; this member has {len(reading.task.ops)}: train add and mul"
        )
    first, second = (contrast_directions(reading, op)[1] for op in (0, 1))
    rows = []
    for k in at:
        if k <= first.shape[1]:
            found = subspace_overlap(first[:k], second[:k])
            cosine = float(np.cos(found.angles).mean())
            rows.append({"k": k, "overlap": found.overlap, "chance": found.chance, "mean_cosine": cosine})
    return rows


def removal_record(removal: Removal) -> dict[str, Any]:
    """Return the numbers read off the curves of an operation as a flat record.

    k95, k50 : smallest k below .95 and .5 of the accuracy with nothing removed; censored ones are None, with
    k95_censored. last95, survives95 : see `probecore.removal`. k95_absolute : against .95 itself.
    acc10, acc30 ; random10, random30 ; random_k95 : the mean control. collateral10, selective_kill : other operations.
    """
    k_max = len(removal.own) - 1
    row: dict[str, Any] = {"accuracy": float(removal.own[0]), "k_max": k_max, "k_note": ""}
    try:
        require_above_chance(float(removal.own[0]), 1 / removal.p)
    except DesignError as error:
        row |= dict.fromkeys(("k95", "k50", "k95_absolute", "last95", "survives95", "random_k95"))
        return row | {"k95_censored": False, "k50_censored": False, "k_note": str(error)}
    for name, q, relative in (("k95", 0.95, True), ("k50", 0.5, True), ("k95_absolute", 0.95, False)):
        found = k_at(removal.own, q, relative=relative)
        row |= {name: found.k, f"{name}_censored": found.censored}
    row["last95"], row["survives95"] = last_at(removal.own, 0.95), k_at(removal.own, 0.95).survives
    random = k_at(removal.random.mean(0), 0.95)
    row |= {"random_k95": random.k, "random_k95_censored": random.censored}
    for k in (10, 30):
        if k <= k_max:
            row |= {f"acc{k}": float(removal.own[k]), f"random{k}": float(removal.random[:, k].mean())}
            row[f"weakest{k}"] = float(removal.weakest[k])
    frequencies = k_at(removal.frequencies, 0.95)
    row |= {"frequencies95": frequencies.k, "frequencies95_censored": frequencies.censored}
    for other, curve in removal.others.items():
        kill = selective_kill(removal.own, curve) if removal.own[0] >= 0.5 else None
        row |= {
            "other": other,
            "selective_kill": kill and kill.k,
            "selective_kill_censored": bool(kill and kill.censored),
        }
        if k_max >= 10:
            row["collateral10"] = float(curve[10] / curve[0]) if curve[0] > 0 else None
        if row["k50"] is not None and curve[0] > 0:
            row["collateral_k50"] = float(curve[row["k50"]] / curve[0])
    return row


def require_clean(reading: Reading, what: str) -> None:
    """Raise `DesignError` where a member is inside a loss spike, or does not know its training inputs."""
    accuracy = reading.train_accuracy
    if accuracy < CLEAN:
        raise DesignError(
            f"a member is analysed outside loss spikes, with training accuracy of {CLEAN:g} or more; {what} has "
            f"{accuracy:.3f}: take another step"
        )
