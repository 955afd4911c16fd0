"""Fourier shares: how much of a matrix or a state lies on few frequencies of the numbers.

Conventions. Addition is a cycle of p numbers; multiplication is one of the p - 1 numbers without 0, in the order of
their discrete logarithms (`cycle`). Power is that of the discrete Fourier transform over the cycle, the constant left
out, summed over features; frequencies 1 .. n // 2. The top-K share of a random matrix is about K / (n // 2), its floor.

Two columns go by the name "Fourier %" in the literature and are not the same:
    fourier_embed_topK   power of the number embedding in its K strongest frequencies
    fourier_answer_r2    share of the variance of states that is a function of the answer; for addition this is the
                         share on the diagonal (k, k) of the two-dimensional transform over (a, b)

>>> wave = np.cos(2 * np.pi * 3 * np.arange(11) / 11)[:, None]
>>> round(top_share(frequency_power(wave), 1), 12)
1.0
"""

import numpy as np
from numpy.typing import NDArray

from lmprobe.grokking.task import Task, discrete_logarithms

Floats = NDArray[np.float64]


def cycle(task: Task, op: str) -> NDArray[np.int64]:
    """Return the numbers of an operation in the order in which it is a cycle: (p,) for add, (p - 1,) for mul."""
    if op == "add":
        return np.arange(task.p)
    return np.argsort(discrete_logarithms(task.p)) + 1


def frequency_power(matrix: Floats) -> Floats:
    """Return the power (n // 2,) of frequencies 1 .. n // 2 of a matrix (n, features) over its rows."""
    n = len(matrix)
    power = (np.abs(np.fft.rfft(matrix, axis=0)) ** 2).sum(1)[1:] * 2 / n
    if n % 2 == 0:
        power[-1] /= 2  # this frequency has no partner
    return np.asarray(power)


def top_share(power: Floats, k: int) -> float:
    """Return the share of the k strongest frequencies."""
    return float(np.sort(power)[::-1][:k].sum() / power.sum()) if power.sum() > 0 else float("nan")


def frequencies_in_use(power: Floats, least: float = 0.01) -> int:
    """Return how many frequencies hold more than `least` of the power."""
    return int((power > least * power.sum()).sum())


def frequency_directions(means: Floats) -> tuple[Floats, list[int]]:
    """Return orthonormal rows, strongest frequency of the class means (n, d) first, and how many belong to the first m.

    A frequency has two rows, cosine and sine; what adds nothing to the rows before is left out. Entry m of the list,
    from 0, is the number of rows that span the m strongest frequencies.
    """
    transform = np.fft.rfft(means, axis=0)[1:]
    order = np.argsort(-frequency_power(means), kind="stable")
    found: list[Floats] = []
    ends = [0]
    size = float(np.abs(transform).max())
    for f in order:
        for part in (transform[f].real, transform[f].imag):
            rest = part.copy()
            for _ in range(2):  # twice is enough (Kahan)
                for row in found:
                    rest = rest - (rest @ row) * row
            if np.linalg.norm(rest) > 1e-9 * max(size, 1e-300):
                found.append(rest / np.linalg.norm(rest))
        ends.append(len(found))
    return np.asarray(found), ends


def answer_r2(states: Floats, answers: NDArray[np.int64]) -> float:
    """Return the share of the variance of states (items, d) that is a function of the answer."""
    centred = states - states.mean(0)
    total = float((centred**2).sum())
    classes, codes = np.unique(answers, return_inverse=True)
    sums = np.zeros((len(classes), states.shape[1]))
    np.add.at(sums, codes, centred)
    counts = np.bincount(codes)
    return float(((sums**2).sum(1) / counts).sum() / total) if total > 0 else float("nan")


def diagonal_share(states: Floats, p: int) -> float:
    """Return the share of the variance of states (p², d), ordered by a and b, on the diagonal of their transform."""
    power = (np.abs(np.fft.fft2((states - states.mean(0)).reshape(p, p, -1), axes=(0, 1))) ** 2).sum(2)
    return float(np.diagonal(power).sum() / power.sum())


def difference_share(logits: Floats, answers: NDArray[np.int64], order: NDArray[np.int64]) -> float:
    """Return the share of centred logits that is a function of (answer - class) on the cycle `order`.

    logits (items, p), answers (items,); items whose answer and classes that are not on the cycle are left out.
    """
    place = np.full(logits.shape[1], -1)
    place[order] = np.arange(len(order))
    kept = place[answers] >= 0
    values = logits[kept][:, order]
    values = values - values.mean(1, keepdims=True)
    offset = (place[answers[kept]][:, None] - np.arange(len(order))) % len(order)
    profile = np.bincount(offset.ravel(), weights=values.ravel(), minlength=len(order)) / len(values)
    total = float((values**2).sum())
    return float((profile**2).sum() * len(values) / total) if total > 0 else float("nan")
