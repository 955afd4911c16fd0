"""What `lmprobe potential` adds up over contexts, and the weights that turn sums into estimates with intervals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lmprobe.strength import Moments, Path, log_ratio
from probecore.stats.bootstrap import expanded_interval

if TYPE_CHECKING:
    from lmprobe.potential import Setting

Floats = NDArray[np.float64]
Estimator = Callable[[Floats], Floats]
ALL = "all"


@dataclass(frozen=True, eq=False)
class Measured:
    """Sums of one aligned model over all contexts, by mode; base_strength, strength : planted ones, None if unknown.

    taken : (N,) log-ratio of the tokens of the text, summed over it.
    """

    name: str
    base_strength: float | None
    strength: float | None
    moments: dict[str, Moments] = field(default_factory=dict, repr=False)
    paths: dict[str, Path] = field(default_factory=dict, repr=False)
    taken: dict[str, Floats] = field(default_factory=dict, repr=False)

    def start(self, mode: str, n: int, *, reward: bool, path: bool) -> None:
        """Make room for a mode of n prompts, with a reward and a path where they are wanted."""
        self.moments[mode] = Moments.empty(n, reward=reward)
        self.taken[mode] = np.zeros(n)
        if path:
            self.paths[mode] = Path.empty(n)

    def add(
        self, mode: str, prompt: int, log_m: Tensor, log_b: Tensor, log_anchor: Tensor, tokens: Tensor,
        reward: Tensor | None,
    ) -> None:  # fmt: skip
        """Add the contexts of one prompt: log-probabilities (contexts, vocabulary), tokens (contexts,)."""
        self.moments[mode].add(prompt, log_m, log_b, reward)
        ell = log_ratio(log_m, log_b).gather(1, tokens.to(log_m.device)[:, None])
        self.taken[mode][prompt] += float(ell.sum())
        if mode in self.paths:
            self.paths[mode].add(prompt, log_m, log_b, log_anchor)


@dataclass(frozen=True)
class Sums:
    """Weights of the prompts of some categories: (N, 1 + B), column 0 all of them once."""

    words: str
    weights: Floats = field(repr=False)
    n_prompts: int
    n_families: int

    def estimate(self, estimator: Estimator) -> tuple[float | None, float | None, float | None]:
        """Return value and family bootstrap interval."""
        values = estimator(self.weights)
        value = float(values[0]) if np.isfinite(values[0]) else None
        if value is None or values.shape[0] < 3 or not np.isfinite(values).all():
            return value, None, None
        low, high = expanded_interval(values[1:], self.n_families)
        return value, min(low, value), max(high, value)


def groups_of(setting: Setting) -> dict[str, Sums]:
    """Return the weights of every category's prompts, and of all."""
    categories = np.asarray(setting.prompts.categories)
    families = np.asarray(setting.prompts.families)
    groups: dict[str, Sums] = {}
    for name in (*setting.prompts.counts, ALL):
        mask = np.ones(len(categories), dtype=bool) if name == ALL else categories == name
        weights = setting.weights * mask[:, None]
        keep = weights.sum(0) > 0  # a resample may hold no prompt of a small category
        groups[name] = Sums(name, weights[:, keep], int(mask.sum()), len(np.unique(families[mask])))
    return groups
