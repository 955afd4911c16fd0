"""Minimum description length of labels given features: online (prequential) code of a logistic probe.

The items come in blocks of growing prefixes (1, 2, 4, ... 100 %); each block is coded with probes fitted on all earlier
blocks, the first with log2 K bits an item (Voita and Titov 2020). Blocks are made of whole groups in random order.

A logistic probe with one fixed penalty overfits early blocks and can need more bits than no probe at all, so the code
is a mixture: uniform code, class frequencies, and probes of several penalties, each block weighted by how well they did
before, with a share 1 / (t + 1) given back to all after block t (fixed share, Herbster and Warmuth 1998). That costs at
most log2(experts) + log2(blocks) bits more than the best single one. Class frequencies are Krichevsky and Trofimov's;
the probes see half an item of each class at the mean, so that no probability is 0.

The null is the code length of exchanged labels (units and blocks of the design); without structure in x it is about
n H(labels), and exactly n log2 K for constant x and equal classes in every prefix.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from probecore.errors import DesignError, InputError
from probecore.probes.coordinates import chunks, coordinates
from probecore.probes.design import Design
from probecore.probes.logistic import fit_logistic, logistic_penalty
from probecore.probes.permutation import draw_labelings
from probecore.results import Row
from probecore.seeds import generator
from probecore.validation import finite_matrix

Floats = NDArray[np.float64]

PORTIONS = (1, 2, 4, 8, 16, 32, 64, 100)
PENALTIES = (0.1, 1.0, 10.0, 100.0)


@dataclass(frozen=True)
class DescriptionLength:
    """Bits that code the labels given the features.

    bits : of the mixture. uniform_bits : n log2 K. frequency_bits : class frequencies alone. compression :
    uniform_bits / bits. null_mean, null_sd, p_value : of the exchanged labelings, p = (b + 1) / (m + 1) for fewer bits;
    None where the design has no exchange, and p_note says why. fixed_bits : of each code alone, observed labels.
    curve : one row per block: n_train, n_items, bits_per_item, uniform_bits_per_item (the learning curve).
    """

    bits: float
    uniform_bits: float
    frequency_bits: float
    compression: float
    null_mean: float | None
    null_sd: float | None
    p_value: float | None
    p_note: str
    fixed_bits: dict[str, float]
    curve: tuple[Row, ...]
    n_items: int
    n_groups: int
    n_classes: int
    n_permutations: int


def description_length(
    x: ArrayLike,
    labels: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    units: ArrayLike | None = None,
    blocks: ArrayLike | None = None,
    penalties: Sequence[float] = PENALTIES,
    portions: Sequence[float] = PORTIONS,
    standardize: bool = True,
    n_permutations: int = 99,
    seed: int = 0,
) -> DescriptionLength:
    """Return the description length of class labels (items,) given x (items, features).

    groups, units, blocks (items,) : as in `probe_layers`. penalties : times a quarter of tr(S_t) / n of each prefix.
    portions : ends of the blocks in per cent of the items. Raises `DesignError` with fewer than 2 groups.
    """
    values = finite_matrix(x, "x").astype(np.float64)
    design = Design.of(labels, groups, units, blocks)
    if design.n_items != len(values):
        raise InputError(f"labels must have one value per item, {len(values)}; got {design.n_items}")
    if not penalties or min(penalties) <= 0:
        raise InputError(f"penalties must be positive numbers; got {list(penalties)}")
    labelings = draw_labelings(design, n_permutations, seed=seed, enumerate_up_to=max(1, n_permutations))
    order, ends = _prefixes(design, portions, seed)
    features, codes = torch.as_tensor(values[order]), torch.as_tensor(labelings.values[order])
    k, n = design.n_classes, len(values)
    names = ["uniform", "frequencies", *(f"penalty {p:g}" for p in penalties)]
    weight = torch.full((len(names), codes.shape[1]), 1 / len(names), dtype=torch.float64)
    total = torch.zeros(codes.shape[1], dtype=torch.float64)
    fixed = torch.zeros(len(names), codes.shape[1], dtype=torch.float64)
    first = ends[0] * math.log2(k)
    total += first
    fixed += first
    curve: list[Row] = [_row(0, ends[0], first, k)]
    for t, (start, end) in enumerate(pairwise(ends), 1):
        bits = _block_bits(features, codes, start, end, k, penalties, standardize)
        mixed = -torch.logsumexp(torch.log(weight) - bits * math.log(2), 0) / math.log(2)
        posterior = torch.softmax(torch.log(weight) - bits * math.log(2), 0)
        weight = (1 - 1 / (t + 1)) * posterior + 1 / (t + 1) / len(names)
        total += mixed
        fixed += bits
        curve.append(_row(start, end - start, float(mixed[0]), k))
    null = total[1:].numpy()
    observed = float(total[0])
    reached = int((null <= observed * (1 + 1e-9)).sum())
    return DescriptionLength(
        bits=observed,
        uniform_bits=n * math.log2(k),
        frequency_bits=float(fixed[1, 0]),
        compression=n * math.log2(k) / observed,
        null_mean=float(null.mean()) if len(null) else None,
        null_sd=float(null.std(ddof=1)) if len(null) > 1 else None,
        p_value=(reached + 1) / (len(null) + 1) if len(null) else None,
        p_note=labelings.reason,
        fixed_bits={name: float(b) for name, b in zip(names, fixed[:, 0], strict=True)},
        curve=tuple(curve),
        n_items=n,
        n_groups=design.n_groups,
        n_classes=k,
        n_permutations=len(null),
    )


def _block_bits(
    x: Tensor, codes: Tensor, start: int, end: int, k: int, penalties: Sequence[float], standardize: bool
) -> Tensor:
    """Return the bits of items start..end under each expert fitted on the items before, (experts, labelings)."""
    fold = coordinates(x[:start], standardize)
    projected, base = fold.project(x[start:end]), logistic_penalty(fold, "trace")
    rank = len(fold.strength)
    features = torch.cat([fold.train, torch.zeros(k, rank, dtype=x.dtype)])
    item = torch.cat([torch.ones(start, dtype=x.dtype), torch.full((k,), 0.5, dtype=x.dtype)])
    out = []
    for columns in chunks(start, codes.shape[1], k):
        own, new = codes[:start, columns], codes[start:end, columns]
        every = torch.arange(k)[:, None].expand(k, own.shape[1])
        with_one_of_each = torch.cat([own, every])
        count = torch.stack([(own == c).sum(0) for c in range(k)]).to(x.dtype) + 0.5
        share = torch.log(count / count.sum(0))
        experts = [torch.full((own.shape[1],), (end - start) * math.log(k), dtype=x.dtype)]
        experts.append(-torch.gather(share, 0, new).sum(0))
        for penalty in penalties:
            w, intercept = fit_logistic(features, with_one_of_each, k, penalty * base, weights=item, tol=1e-6)
            logits = (projected @ w.flatten(1)).unflatten(1, w.shape[1:]) + intercept
            if k == 2:
                logits = torch.cat([torch.zeros_like(logits), logits], -1)
            chosen = torch.gather(torch.log_softmax(logits, -1), 2, new[..., None])
            experts.append(-chosen.sum((0, 2)))
        out.append(torch.stack(experts) / math.log(2))
    return torch.cat(out, 1)


def _prefixes(design: Design, portions: Sequence[float], seed: int) -> tuple[NDArray[np.intp], list[int]]:
    """Return an order of the items in which groups stay together, and the ends of the blocks, whole groups each."""
    if design.n_groups < 2:
        raise DesignError("a description length needs at least 2 groups: blocks are made of whole groups")
    rank = generator(seed, "description length").permutation(design.n_groups)
    order = np.argsort(rank[design.groups], kind="stable")
    sizes = np.bincount(design.groups)[np.argsort(rank)]
    possible = np.cumsum(sizes)
    if list(portions) != sorted(set(portions)) or not portions or portions[0] <= 0 or portions[-1] != 100:
        raise InputError(f"portions must rise from above 0 to 100; got {list(portions)}")
    wanted = [math.ceil(p / 100 * len(order) - 1e-9) for p in portions]
    ends = sorted({int(possible[np.searchsorted(possible, w)]) for w in wanted})
    return order, ends


def _row(n_train: int, n_items: int, bits: float, k: int) -> Row:
    return {
        "n_train": n_train,
        "n_items": n_items,
        "bits_per_item": bits / n_items,
        "uniform_bits_per_item": math.log2(k),
    }
