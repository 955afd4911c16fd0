"""What a style instruction does to a stack of layers beyond what another wording of a neutral instruction does.

Conventions. `kl` (texts, layers, instructions, instructions) is the mean over frames of KL(lens under a || lens under
b), nats, for one text and the same frames; the first `n_styles` instructions are wordings of the style, the others
neutral. Layer 0 is the input, where all are 0 by construction. Per text and layer

    style_kl = mean of KL(style || neutral) over all such pairs
    null_kl  = mean of KL(neutral || another neutral)
    effect   = style_kl - null_kl                             0 in the mean where the style is one more neutral wording
    rise(l)  = effect(l) - effect(l - 1)                      what block l adds

* Intervals speak about other texts, with these instructions: t with texts - 1 degrees of freedom.
* p: the role of the style is given to every other choice of as many instructions (all choices up to 10,000, else
  random ones), because the instruction is the unit that was chosen; with one style and m neutrals no p lies below
  1 / (m + 1). Flipping signs over texts would call almost any two instructions different. Adjusted over layers: max-T.
* The peak is the layer with the largest effect averaged over texts, the first of equals; its interval holds 95 % of the
  peaks of texts drawn again with replacement.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probecore.errors import DesignError
from probecore.seeds import generator
from probecore.stats.bootstrap import t_quantile
from probecore.stats.permutation import max_t, p_value

Floats = NDArray[np.float64]
EXHAUSTIVE_UP_TO = 10_000
RANDOM_CHOICES = 4999
NULL_SHARE = 0.95  # of the neutral instructions, each against the others, lie between null_low and null_high


@dataclass(frozen=True)
class LayerEffect:
    """One measure of all layers: value and interval over texts, range of the neutrals, p; arrays (layers,).

    p and p_adjusted are NaN in layer 0. Intervals are NaN with one text.
    """

    value: Floats
    ci_low: Floats
    ci_high: Floats
    null_low: Floats
    null_high: Floats
    p_value: Floats
    p_adjusted: Floats


@dataclass(frozen=True)
class Peak:
    """The layer of the largest value, an interval over texts, and the share of resamples that have it there.

    Interval and share are None with one text or without resamples.
    """

    layer: int
    ci_low: int | None = None
    ci_high: int | None = None
    share: float | None = None


@dataclass(frozen=True)
class StyleEffect:
    """The effect of a style by layer; `style_kl` and `null_kl` (texts, layers) are what it is made of, in nats."""

    effect: LayerEffect
    rise: LayerEffect
    peak: Peak | None
    peak_of_rise: Peak | None
    style_kl: Floats
    null_kl: Floats
    n_choices: int
    smallest_p: float


def style_effect(kl: Floats, n_styles: int, *, n_bootstrap: int = 2000, seed: int = 0) -> StyleEffect:
    """Return effect and rise of every layer, with intervals, nulls, p and peaks (see the module's docstring).

    Raises `DesignError` with fewer than 2 neutral instructions to compare: their distance is the null.
    """
    n_instructions = kl.shape[-1]
    n_neutral = n_instructions - n_styles
    if n_styles < 1 or n_neutral < 2:
        raise DesignError(
            f"a style needs at least 1 wording and 2 neutral instructions beside it; got {n_styles} and {n_neutral}: "
            "give more --neutral"
        )
    roles = choices(n_instructions, n_styles, seed)
    style, null = parts_of(kl, roles[:1])
    by_text = (style - null)[..., 0]
    labelings = np.subtract(*parts_of(kl.mean(axis=0, keepdims=True), roles))[0]
    alone = neutral_effects(kl.mean(axis=0), n_styles)
    weights = _resamples(len(kl), n_bootstrap, seed)
    return StyleEffect(
        effect=_layers(by_text, labelings, alone),
        rise=_layers(_rise(by_text), _rise(labelings, 0), _rise(alone, 0)),
        peak=peak_of(by_text, weights),
        peak_of_rise=peak_of(_rise(by_text), weights),
        style_kl=style[..., 0],
        null_kl=null[..., 0],
        n_choices=len(roles),
        smallest_p=1 / len(roles),
    )


def choices(n: int, k: int, seed: int) -> Floats:
    """Return who plays the style, (choices, n) of 0 and 1: the first k first, then all others or random ones."""
    if math.comb(n, k) <= EXHAUSTIVE_UP_TO:
        chosen = list(itertools.combinations(range(n), k))
    else:
        rng = generator(seed, "who plays the style")
        chosen = [tuple(range(k)), *(tuple(rng.permutation(n)[:k]) for _ in range(RANDOM_CHOICES))]
    roles = np.zeros((len(chosen), n))
    for row, names in zip(roles, chosen, strict=True):
        row[list(names)] = 1
    return roles


def parts_of(kl: Floats, roles: Floats) -> tuple[Floats, Floats]:
    """Return style_kl and null_kl (texts, layers, choices) of kl (texts, layers, n, n) for each choice of roles."""
    rest = 1 - roles
    k, m = roles[0].sum(), rest[0].sum()
    style = ((roles @ kl) * rest).sum(axis=-1) / (k * m)
    null = ((rest @ kl) * rest).sum(axis=-1) / (m * (m - 1))  # the diagonal is 0
    return style, null


def neutral_effects(kl: Floats, n_styles: int) -> Floats:
    """Return the effect each neutral has against the other neutrals, (layers, neutrals), of kl (layers, n, n)."""
    among = kl[:, n_styles:, n_styles:]
    m = among.shape[-1]
    own = among.sum(axis=-1) / (m - 1)
    if m < 3:
        centred: Floats = own - own.mean(axis=-1, keepdims=True)
        return centred
    others = among.sum(axis=(-2, -1))[:, None] - among.sum(axis=-1) - among.sum(axis=-2)
    effects: Floats = own - others / ((m - 1) * (m - 2))
    return effects


def peak_of(by_text: Floats, weights: Floats) -> Peak | None:
    """Return where the mean over texts of (texts, layers) is largest; None where nothing is above 0."""
    mean = by_text.mean(axis=0)
    if not mean.max() > 0:
        return None
    layer = int(_first_largest(mean[None])[0])
    if len(by_text) < 2 or not len(weights):
        return Peak(layer)
    drawn = _first_largest(weights @ by_text)
    low, high = np.quantile(drawn, (0.025, 0.975), method="inverted_cdf")
    return Peak(layer, min(int(low), layer), max(int(high), layer), float((drawn == layer).mean()))


def text_interval(by_text: Floats) -> tuple[Floats, Floats]:
    """Return the 95 % t interval of the mean over texts of (texts, ...); NaN with one text."""
    n = len(by_text)
    mean = by_text.mean(axis=0)
    if n < 2:
        return np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    half = t_quantile(n - 1) * by_text.std(axis=0, ddof=1) / np.sqrt(n)
    return mean - half, mean + half


def _layers(by_text: Floats, labelings: Floats, alone: Floats) -> LayerEffect:
    low, high = text_interval(by_text)
    tails = (1 - NULL_SHARE) / 2
    null_low, null_high = np.quantile(alone, (tails, 1 - tails), axis=-1)
    tested = labelings.copy()
    tested[0] = np.nan
    return LayerEffect(by_text.mean(axis=0), low, high, null_low, null_high, p_value(tested), max_t(tested))


def _rise(values: Floats, axis: int = 1) -> Floats:
    """Return differences along the layers, 0 in layer 0."""
    first = np.take(values, [0], axis=axis)
    rises: Floats = np.diff(values, axis=axis, prepend=first)
    return rises


def _first_largest(values: Floats) -> NDArray[np.int64]:
    """Return the first of the largest entries of each row, equal up to 1e-9 of the largest."""
    top = values.max(axis=1, keepdims=True)
    first: NDArray[np.int64] = (values >= top - 1e-9 * np.abs(top)).argmax(axis=1)
    return first


def _resamples(n: int, n_bootstrap: int, seed: int) -> Floats:
    return generator(seed, "texts drawn again").multinomial(n, np.full(n, 1 / n), size=n_bootstrap) / n
