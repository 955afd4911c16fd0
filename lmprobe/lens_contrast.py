"""Lens contrast: where, over the layers, two sets of prompts come to be told apart in what a layer would say.

Conventions. One distribution p per prompt and layer: the lens at the last token of the prompt. H2(p, q) = 1 - sum_v
sqrt(p_v q_v) is the squared Hellinger distance, 0 (the same) to 1 (nothing in common); unlike KL, no single rare token
decides it. The contrast of a layer is

    H2 between the sets - (H2 within the first + H2 within the second) / 2,   means over pairs of different prompts

which is 0 on average where the sets are drawn alike, whatever their spread, and half the squared distance of their mean
sqrt(p) (an unbiased MMD: Gretton et al. 2012). Its p exchanges categories as the design allows (`lmprobe.contrasts`),
adjusted over the layers (max-T); its interval is t with the delete-one-family jackknife, which errs to the wide side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from lmprobe.capture import capture
from lmprobe.contrast_statistics import Statistic
from lmprobe.contrasts import Contrast
from lmprobe.lens_reading import LOGITS_AT_ONCE, Translate
from lmprobe.models import LanguageModel, Template
from lmprobe.readout import tail_of
from probecore.lens import Lens, logit_lens
from probecore.stats.bootstrap import jackknife_error, t_quantile

Floats = NDArray[np.float64]
MOST = 3  # tokens named on each side


@dataclass(frozen=True, eq=False)
class SetReading:
    """The lens at the last token of N prompts.

    lens : by layer and prompt. overlap : (layers, N, N) sum_v sqrt(p_v q_v) of every pair of prompts.
    more, less : per layer the ids whose mean probability differs most between the sets, with that difference.
    """

    layers: tuple[str, ...]
    lens: Lens = field(repr=False)
    overlap: Floats = field(repr=False)
    more: tuple[tuple[tuple[int, float], ...], ...] = field(repr=False)
    less: tuple[tuple[tuple[int, float], ...], ...] = field(repr=False)


def read_prompts_ends(
    lm: LanguageModel,
    texts: Sequence[str],
    sets: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    *,
    template: Template = "auto",
    translate: Translate | None = None,
    targets: Sequence[int] = (),
) -> SetReading:
    """Return the lens at the last token of prompts, on every layer; sets : (N,) flags of the two that are contrasted.

    Raises `CertificateError` where taps or read-out are not certified.
    """
    tail = tail_of(lm)
    acts = capture(lm, texts, at="last", template=template)
    states = [torch.from_numpy(np.array(acts.values(layer))) for layer in lm.layers]
    vocabulary = int(tail(states[0][:1]).shape[-1])
    rows = max(1, LOGITS_AT_ONCE // vocabulary)

    def read(layer: int, part: torch.Tensor) -> torch.Tensor:
        return tail(part if translate is None else translate(layer, part))

    lens = logit_lens(states, read, rows=rows, targets=targets)
    overlap, more, less = [], [], []
    for layer, state in enumerate(states):
        p = torch.cat([torch.softmax(read(layer, part).double(), -1).cpu() for part in state.split(rows)])
        roots = p.sqrt()
        overlap.append((roots @ roots.T).clamp(max=1).numpy())
        gap = p[torch.from_numpy(sets[0])].mean(0) - p[torch.from_numpy(sets[1])].mean(0)
        more.append(_largest(gap))
        less.append(_largest(-gap))
    return SetReading(lm.layers, lens, np.stack(overlap), tuple(more), tuple(less))


def hellinger_contrast(overlap: Floats) -> Statistic:
    """Return the contrast of one layer as a statistic of weights (n, K) of 0 and 1; overlap : (n, n).

    The pair of a prompt with itself is left out. A category needs at least 2 prompts.
    """
    distance = 1.0 - overlap
    np.fill_diagonal(distance, 0.0)

    def statistic(first: Floats, second: Floats) -> Floats:
        n, m = first.sum(0), second.sum(0)
        toward = distance @ first
        between = np.einsum("nk,nk->k", second, toward) / (n * m)
        own = np.einsum("nk,nk->k", first, toward) / (n * (n - 1))
        other = np.einsum("nk,nk->k", second, distance @ second) / (m * (m - 1))
        return np.asarray(between - (own + other) / 2)

    return statistic


def jackknife_interval(contrast: Contrast, statistic: Statistic, level: float = 0.95) -> tuple[float, float] | None:
    """Return the t interval of a statistic with the error of leaving out one family at a time; None where undefined."""
    families = np.unique(contrast.families)
    kept = np.stack([contrast.families != family for family in families], axis=1).astype(np.float64)
    first = kept * contrast.is_first[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.asarray(statistic(first, kept - first))
    error = jackknife_error(values, np.zeros(len(families), dtype=np.int64)) if len(families) > 2 else float("nan")
    if not np.isfinite(error):
        return None
    half = t_quantile(len(families) - 1, 1 - level) * error
    centre = contrast.observed(statistic)
    return centre - half, centre + half


def _largest(gap: torch.Tensor) -> tuple[tuple[int, float], ...]:
    best = gap.topk(min(MOST, len(gap)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return tuple((i, value) for i, value in pairs if value > 0)
