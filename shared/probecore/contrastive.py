"""How many directions a contrast has: its singular values beside those that permuted labels give.

Conventions. x (items, features); a contrast matrix is that of `directions.contrastive_svd`: signal items minus the mean
of the reference items ("anchored"), or that times S^(-1/2) with S the Ledoit-Wolf covariance of the reference
("whitened"). It is never centred by its own mean and items are never paired by index. The null exchanges labels between
items and does everything again, whitening included.

signal rank  the number of singular values above the 95th percentile of the LARGEST singular value of the null. Compared
             with the null's value of the same index it over-counts: once the first four are real, the fifth meets the
             null's fifth in the place of its first. Without whitening it misses planted directions that are weaker than
             the common variation. It is too low with few items (64 items of rank 8: 1 to 5), so n stands beside it.
rank q       the number of singular values that hold a share q of the squares. It measures the number of items more than
             anything planted (true rank 4: 15 with 16 items, 114 with 2048), so it has no p here: read its null.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probecore.directions import Contrast, contrastive_svd
from probecore.errors import DesignError, InputError
from probecore.geometry import components_for, participation_ratio
from probecore.results import Row
from probecore.seeds import generator
from probecore.stats.permutation import p_value
from probecore.validation import at_least, finite_matrix, one_per_item

Floats = NDArray[np.float64]
RANKS = (0.9, 0.95, 0.99)


@dataclass(frozen=True)
class ContrastSpectrum:
    """Singular values of a contrast matrix, (r,), and of the same under permuted labels, (permutations, R)."""

    contrast: Contrast
    singular_values: Floats = field(repr=False)
    null: Floats = field(repr=False)
    n_signal: int
    n_reference: int
    n_features: int

    def threshold(self, quantile: float = 0.95) -> float:
        """Return the quantile of the null's largest singular value."""
        return float(np.quantile(self.null[:, 0], quantile))

    def signal_rank(self, quantile: float = 0.95) -> int:
        """Return the number of singular values above `threshold`."""
        return int((self.singular_values > self.threshold(quantile)).sum())

    @property
    def p_value(self) -> float:
        """The p of the largest singular value: that the labels mean nothing."""
        return float(p_value(np.concatenate([self.singular_values[:1], self.null[:, 0]])))

    def rows(self) -> list[Row]:
        """Return one row a measure of dimension: value, null mean, null range (.025 to .975), n, p or its reason."""
        rows: list[Row] = [self._row("signal rank", float(self.signal_rank()), None)]
        rows[0] |= {"threshold": self.threshold(), "largest": float(self.singular_values[0]), "p_value": self.p_value}
        rows[0]["p_note"] = "of the largest singular value"
        measures = [(f"rank {q:.0%}".replace("%", " %"), q) for q in RANKS]
        for name, q in measures:
            rows.append(self._row(name, float(components_for(self.singular_values**2, q)), q))
        rows.append(self._row("participation ratio", participation_ratio(self.singular_values**2), None))
        rows.append(self._row("stable rank", _stable(self.singular_values), None))
        return rows

    def _row(self, name: str, value: float, q: float | None) -> Row:
        def of(values: Floats) -> float:
            if name == "signal rank":
                return float((values > self.threshold()).sum())
            if name == "participation ratio":
                return participation_ratio(values**2)
            return _stable(values) if q is None else float(components_for(values**2, q))

        null = np.array([of(values) for values in self.null])
        low, high = np.quantile(null, [0.025, 0.975])
        return {
            "measure": name, "value": value, "null_mean": float(null.mean()), "null_low": float(low),
            "null_high": float(high), "contrast": self.contrast, "n_signal": self.n_signal,
            "n_reference": self.n_reference, "n_features": self.n_features, "p_value": None,
            "p_note": "it grows with the number of items: compare it with its null and at equal n",
        }  # fmt: skip


def contrast_spectrum(
    x: ArrayLike,
    is_signal: ArrayLike,
    contrast: Contrast = "whitened",
    *,
    labelings: Sequence[ArrayLike] | None = None,
    n_permutations: int = 200,
    seed: int = 0,
) -> ContrastSpectrum:
    """Return the singular values of items (n, features), signal against the rest, with their permutation null.

    is_signal : (n,) booleans. labelings : label vectors (n,) of the null, where items may not be exchanged freely (the
    number of signal items may differ); by default `n_permutations` free exchanges.
    Raises `DesignError` with fewer than 2 items of a kind.
    """
    values = finite_matrix(x, "x").astype(np.float64)
    kinds = np.asarray(one_per_item(is_signal, len(values), "is_signal"), dtype=bool)
    if min(int(kinds.sum()), int((~kinds).sum())) < 2:
        raise DesignError(f"a contrast needs 2 items of each kind; got {kinds.sum()} and {(~kinds).sum()}")
    if labelings is None:
        rng = generator(seed, "contrast spectrum")
        labelings = [rng.permutation(kinds) for _ in range(at_least(n_permutations, 1, "n_permutations"))]
    drawn = [np.asarray(one_per_item(labels, len(values), "labelings"), dtype=bool) for labels in labelings]
    if not drawn or any(min(labels.sum(), (~labels).sum()) < 2 for labels in drawn):
        raise InputError("every labelling must have 2 items of each kind, and there must be at least 1 labelling")

    def singular(labels: NDArray[np.bool_]) -> Floats:
        signal = values[labels]
        return contrastive_svd(signal, values[~labels], min(signal.shape), contrast).singular_values

    found = [singular(labels) for labels in drawn]
    # whole groups that change labels may leave another number of signal items: what is not there is zero
    null = np.zeros((len(found), max(map(len, found))))
    for row, values_of in zip(null, found, strict=True):
        row[: len(values_of)] = values_of
    return ContrastSpectrum(
        contrast, singular(kinds), null, int(kinds.sum()), int((~kinds).sum()), int(values.shape[1])
    )


def _stable(singular: Floats) -> float:
    return float((singular**2).sum() / singular[0] ** 2)
