"""Checkpoints of one lineage: how a measure of the terrain moves from base to aligned, step by step.

Conventions. Steps are counted 0, 1, ... in the order given. A trend is the least-squares slope of a measure over the
steps. Its interval draws whole prompt families, the same for all checkpoints: it is about these checkpoints and new
prompts. p is that of Spearman's rank correlation of measure and step over all orders of the checkpoints, two-sided and
exact: it asks whether the checkpoints themselves are in order, and k of them can give no p below 2 / k!
(3: .33, 4: .083, 5: .017). One lineage means one tokenizer and one architecture; anything else is refused, because
models of different families differ in everything.
"""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from lmprobe.contrast_statistics import Statistic, between_variance, gap, log_variance_ratio
from lmprobe.contrasts import Contrast
from lmprobe.entropy import FIRST_MODE, MODES
from probecore.errors import DesignError, InputError
from probecore.results import Row

Floats = NDArray[np.float64]
FEWEST = 3
MOST_EXACT = 8  # 8! = 40,320 orders
SAME = ("architecture", "tokenizer_hash", "parameters")


def check_lineage(facts: Sequence[Row]) -> None:
    """Refuse what cannot be one lineage: `facts` of the models, as a result's provenance holds them."""
    if len(facts) < FEWEST:
        raise DesignError(
            f"a trend over steps needs at least {FEWEST} checkpoints; got {len(facts)}: give more, or leave lineage out"
        )
    for key in SAME:
        found = list(dict.fromkeys(str(fact[key]) for fact in facts))
        if len(found) > 1:
            raise InputError(
                f"checkpoints of one lineage must share their {key.replace('_', ' ')}; got {', '.join(found)}: "
                "leave lineage out to set other models side by side"
            )


def trend_rows(means: Sequence[Mapping[str, Floats]], contrast: Contrast, name: str) -> list[Row]:
    """Return the trend of the gap in every mode and of LVR A1 over checkpoints.

    means : of each checkpoint, mode -> (prompts of the set,) mean entropies. name : shown as the model.
    """
    rows = []
    for mode in MODES:
        values = [each[mode][contrast.items] for each in means]
        rows.append(_trend(f"trend of the gap, {mode} (nats a step)", [gap(v) for v in values], contrast, name, mode))
    own = [each[FIRST_MODE][contrast.items] for each in means]
    ratios = [log_variance_ratio(between_variance(v)) for v in own]
    return [*rows, _trend("trend of LVR A1 (a step)", ratios, contrast, name, FIRST_MODE)]


def order_p(values: Sequence[float]) -> float:
    """Return the exact two-sided p of Spearman's correlation of values with their order.

    >>> order_p([1.0, 2.0, 3.0]), order_p([1.0, 2.0, 3.0, 4.0, 5.0])
    (0.3333333333333333, 0.016666666666666666)
    """
    ranks = rankdata(np.round(np.asarray(values, dtype=np.float64), 12))
    steps = np.arange(len(ranks)) - (len(ranks) - 1) / 2
    if len(ranks) > MOST_EXACT:
        raise DesignError(f"an exact p over orders takes at most {MOST_EXACT} checkpoints; got {len(ranks)}")
    sizes = [abs(float(steps @ np.asarray(order))) for order in itertools.permutations(ranks)]
    return float(np.mean(np.asarray(sizes) >= sizes[0] - 1e-9))


def _trend(metric: str, statistics: Sequence[Statistic], contrast: Contrast, name: str, mode: str) -> Row:
    k = len(statistics)
    steps = np.arange(k) - (k - 1) / 2

    def statistic(first: Floats, second: Floats) -> Floats:
        return np.asarray(steps @ np.stack([one(first, second) for one in statistics]) / (steps @ steps))

    each = [contrast.observed(one) for one in statistics]
    value = contrast.observed(statistic)
    row: Row = {"metric": metric, "measure": "trend", "model": name, "mode": mode, "n_prompts": contrast.n_prompts}
    row |= {"n_families": contrast.n_families, "n_steps": k, "steps": each, "detail": False}
    if not np.isfinite(value):
        note = "not defined: the entropies of a category do not vary at some step"
        return row | {"value": None, "ci_low": None, "ci_high": None, "p_value": None, "p_note": note}
    found = contrast.interval(statistic)
    row |= {
        "value": value,
        "ci_low": None if found is None else found[0],
        "ci_high": None if found is None else found[1],
    }
    if found is None:
        row["ci_note"] = "no interval: none was asked for, or undefined in some resamples"
    if k > MOST_EXACT:
        return row | {"p_value": None, "p_note": f"an exact p over orders takes at most {MOST_EXACT} checkpoints"}
    return row | {"p_value": order_p(each), "smallest_p": 2 / math.factorial(k)}
