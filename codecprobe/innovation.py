"""What a layer says that those before it do not: a bound on shared information that needs no counts of pairs.

Conventions. Bits. A predictor q (multinomial logistic on code vectors, fitted on other clips) guesses the code of a
layer from the layers before it in the same frame, or from its own code in the frame of speech before. By Gibbs'
inequality its cross-entropy on frames it has not seen is at least the conditional entropy, so

    I(c_k; past) >= H(c_k) - CE(q)            a lower bound, whatever the predictor; it can come out below 0
    H(c_k | past) <= H - max(0, that)         what the layer adds at most; over H(c_k): its innovation share

Codes are merged to groups where frames are too few to learn each of them; information only shrinks by that (data
processing). H in the bound is the plug-in of the frames tested, which errs low, so the bound does too. Half of the
clips of each speaker teach, the other half are tested, both ways round: information that two layers share because both
know who speaks is shared information, and a predictor taught on other people could not know it (on the embedded codec
its cross-entropy exceeds the entropy by 5 bits in the layer of the voice). Intervals are those of a jackknife over
speakers with the predictors as they are: they speak about other speakers, not about other predictors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from codecprobe.codecs.codec import Codec
from codecprobe.layer_information import FEWEST_SPEAKERS, Streams
from probecore.codebooks import default_estimator, entropy
from probecore.information import merge_codes
from probecore.progress import progress
from probecore.results import Row
from probecore.seeds import generator
from probecore.stats.bootstrap import jackknife_error, t_quantile

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
FRAMES_PER_GROUP = 20
MOST_GROUPS, FEWEST_GROUPS = 64, 4
MOST_FRAMES = 12_000  # that teach a predictor
WIDTH = 256  # features of all predicting codes together
PENALTIES = (0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 1e-4)  # on half the squared weights; which one, says validation
ITERATIONS = 15  # of quasi-Newton for each, from where the one before ended
MIXTURES = (0.0, 0.01, 0.05, 0.2, 0.5, 1.0)  # share of the plain frequencies in what is predicted
SMALLEST = 0.01  # so that no code that was never taught costs more than its frequency allows
VALIDATION = 5  # every fifth clip that teaches
BY_LAYERS, IN_TIME = "learned information", "learned information in time"
PASTS = {BY_LAYERS: "layers before", IN_TIME: "the frame before"}
ESTIMATOR = "cross-entropy bound"


@dataclass(frozen=True)
class Bound:
    """Lower bound of a layer on information from its past, in bits, with its jackknife interval (NaN without one)."""

    value: float
    low: float
    high: float
    n_groups: int


def innovation_rows(streams: Streams, codec: Codec, *, seed: int, quiet: bool = True) -> list[Row]:
    """Return for every layer the bound from the layers before it (none for layer 0) and from its own frame before.

    Beside each stand the conditional entropy that it leaves at most and the innovation share. A layer whose frames do
    not support 4 groups has no value and says why.
    """
    rows: list[Row] = []
    n_layers = len(streams.layers)
    halves = _halves(streams, seed)
    supported = min(int(half.sum()) for half in halves) // FRAMES_PER_GROUP
    for k in progress(range(n_layers), "what layers add", quiet=quiet):
        size = codec.info.codebook_sizes[k]
        n_groups = min(size, MOST_GROUPS, supported)
        counts = np.bincount(streams.codes[:, k], minlength=size)
        whole = float(entropy(counts, default_estimator(counts)))
        for metric, pasts in ((BY_LAYERS, range(k)), (IN_TIME, (k,))):
            if not len(pasts):
                continue
            facts: Row = {
                "metric": metric, "layer": streams.layers[k], "unit": "bits", "activity": "speech",
                "estimator": ESTIMATOR, "most": whole, **streams.facts(),
            }  # fmt: skip
            if n_groups < FEWEST_GROUPS:
                reason = (
                    f"{supported * FRAMES_PER_GROUP} frames in a half of the clips do not teach {FEWEST_GROUPS} "
                    f"groups of codes: {FEWEST_GROUPS * FRAMES_PER_GROUP} needed"
                )
                rows.append({**facts, "value": None, "value_note": reason, "detail": True})
                continue
            bound = past_bound(streams, codec, k, tuple(pasts), n_groups, in_time=metric == IN_TIME, seed=seed)
            rows += _rows(facts, bound, whole, size)
    return rows


def past_bound(
    streams: Streams, codec: Codec, layer: int, pasts: Sequence[int], n_groups: int, *, in_time: bool, seed: int
) -> Bound:
    """Return the bound for one layer from the codes of `pasts`, in the same frame or in the frame before."""
    halves = _halves(streams, seed)
    place = np.arange(len(streams.codes))
    starts = np.zeros(len(place), dtype=np.bool_)
    starts[np.concatenate([[0], np.cumsum(streams.lengths)[:-1]])] = True
    usable = ~starts if in_time else np.ones(len(place), dtype=np.bool_)
    source = place - 1 if in_time else place
    clip = np.repeat(np.arange(len(streams.lengths)), streams.lengths)
    tested: list[tuple[Floats, Ints, Ints]] = []
    for teach, test in (halves, halves[::-1]):
        table = codec.codebook(layer)
        counts = np.bincount(streams.codes[teach, layer], minlength=len(table))
        groups = merge_codes(table, counts, n_groups, seed) if n_groups < len(table) else np.arange(len(table))
        target = groups[streams.codes[:, layer]]
        learn, try_on = _drawn(np.flatnonzero(teach & usable), clip, seed), np.flatnonzero(test & usable)
        vectors = [(codec.codebook(j), streams.codes[source, j]) for j in pasts]
        loss = _cross_entropy(vectors, target, learn, try_on, clip, int(groups.max()) + 1)
        tested.append((loss, target[try_on], streams.of_frame[try_on]))
    value = _bound(tested, None)
    names = np.unique(streams.of_frame)
    if len(names) < FEWEST_SPEAKERS:
        return Bound(value, np.nan, np.nan, n_groups)
    deleted = np.array([_bound(tested, int(name)) for name in names])
    half = t_quantile(len(names) - 1) * jackknife_error(deleted, np.zeros(len(names), dtype=np.int64))
    return Bound(value, value - half, value + half, n_groups)


def _halves(streams: Streams, seed: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the frames of either half of each speaker's clips, (frames,) each; the odd clips go either way in turn."""
    order = generator(seed, "clips that teach and clips that are tested").permutation(len(streams.lengths))
    ranked = order[np.argsort(streams.speaker[order], kind="stable")]
    first = np.zeros(len(ranked), dtype=np.bool_)
    first[ranked[::2]] = True
    in_first = np.repeat(first, streams.lengths)
    return in_first, ~in_first


def _rows(facts: Row, bound: Bound, whole: float, size: int) -> list[Row]:
    few = None if np.isfinite(bound.low) else f"fewer than {FEWEST_SPEAKERS} speakers: no interval over speakers"
    merged = f"{bound.n_groups} groups" if bound.n_groups < size else "all codes"
    row = {
        **facts, "value": bound.value, "ci_low": bound.low, "ci_high": bound.high, "ci_note": few,
        "note": "<= 0" if bound.value <= 0 else "", "target": merged, "n_groups": bound.n_groups,
        "detail": facts["metric"] != BY_LAYERS,
    }  # fmt: skip
    past = PASTS[facts["metric"]]
    left, low, high = (whole - max(0.0, end) for end in (bound.value, bound.high, bound.low))
    upper = {**row, "note": "", "estimator": "entropy less that bound (upper bound)", "detail": True}
    ends = {"ci_low": low, "ci_high": high} if few is None else {"ci_low": None, "ci_high": None}
    rows = [row, {**upper, "metric": f"conditional entropy given {past}", "value": left, **ends}]
    if whole > 0:
        share = {key: None if value is None else value / whole for key, value in ends.items()}
        rows.append(
            {**upper, "metric": f"innovation share given {past}", "value": left / whole, **share, "unit": "share",
             "most": 1.0}
        )  # fmt: skip
    return rows


def _bound(tested: Sequence[tuple[Floats, Ints, Ints]], without: int | None) -> float:
    """Return plug-in entropy of the groups less the mean loss, averaged over both directions by frames."""
    total, n = 0.0, 0
    for loss, target, speaker in tested:
        kept = speaker != without if without is not None else np.ones(len(loss), dtype=np.bool_)
        if kept.any():
            alone = float(entropy(np.bincount(target[kept])))
            total, n = total + float(kept.sum()) * (alone - float(loss[kept].mean())), n + int(kept.sum())
    return total / n if n else float("nan")


def _drawn(frames: Ints, clip: Ints, seed: int) -> Ints:
    """Return the frames of whole clips drawn at random, at most MOST_FRAMES (at least one clip)."""
    if len(frames) <= MOST_FRAMES:
        return frames
    order = generator(seed, "clips that teach").permutation(np.unique(clip[frames]))
    sizes = np.cumsum(np.bincount(clip[frames], minlength=int(clip.max()) + 1)[order])
    return frames[np.isin(clip[frames], order[: max(1, int(np.searchsorted(sizes, MOST_FRAMES, side="right")))])]


def _cross_entropy(
    vectors: Sequence[tuple[NDArray[np.floating], Ints]], target: Ints, learn: Ints, try_on: Ints, clip: Ints,
    n_classes: int,
) -> Floats:  # fmt: skip
    """Return the loss in bits of every frame of `try_on`, by a predictor taught on `learn`.

    Of the predictors from all vectors, from the first and from the last, the one that validation prefers: where frames
    are few, many predicting layers cost more than they tell.
    """
    held_out = clip[learn] % VALIDATION == VALIDATION - 1
    if held_out.all() or not held_out.any():
        held_out = np.arange(len(learn)) % VALIDATION == VALIDATION - 1
    fit, check = learn[~held_out], learn[held_out]
    y = torch.tensor(target)
    plain = torch.tensor(np.bincount(target[learn], minlength=n_classes) + 0.5, dtype=torch.float64)
    plain = plain / plain.sum()
    least, loss = np.inf, np.empty(0)
    for chosen in dict.fromkeys((tuple(range(len(vectors))), (0,), (len(vectors) - 1,))):
        x = torch.tensor(_features([vectors[i] for i in chosen], learn), dtype=torch.float32)
        w = _fit(x[fit], y[fit], x[check], y[check], plain.log().float())
        mixtures = [float(_losses(x[check], y[check], w, plain, share).mean()) for share in MIXTURES]
        best = int(np.argmin(mixtures))
        if mixtures[best] < least:
            least = mixtures[best]
            loss = _losses(x[try_on], y[try_on], w, plain, max(MIXTURES[best], SMALLEST)).numpy()
    return loss


def _features(vectors: Sequence[tuple[NDArray[np.floating], Ints]], learn: Ints) -> NDArray[np.float32]:
    """Return principal components of the code vectors, side by side and of variance 1 together, (frames, features)."""
    each = max(8, WIDTH // len(vectors))
    parts = []
    for table, codes in vectors:
        centred = table.astype(np.float64) - table[codes[learn]].mean(axis=0, dtype=np.float64)
        counts = np.bincount(codes[learn], minlength=len(table))
        _, scale, axes = np.linalg.svd(centred * np.sqrt(counts / counts.sum())[:, None], full_matrices=False)
        axes = axes[: min(each, int((scale > 1e-9 * max(scale[0], 1e-30)).sum()))]
        scores = centred @ axes.T
        spread = np.sqrt((counts[:, None] * scores**2).sum(axis=0) / counts.sum())
        parts.append((scores / np.where(spread > 0, spread, 1.0))[codes])
    return np.concatenate(parts, axis=1).astype(np.float32)


def _fit(
    x: torch.Tensor, y: torch.Tensor, x_check: torch.Tensor, y_check: torch.Tensor, start: torch.Tensor
) -> torch.Tensor:
    """Return weights (features + 1, classes), those of the penalty with the least loss on the frames held out."""
    w = torch.zeros(x.shape[1] + 1, len(start))
    w[-1] = start
    best, least = w.clone(), _plain_loss(x_check, y_check, w).item()
    w.requires_grad_(True)
    worse = 0
    for penalty in PENALTIES:
        optimiser = torch.optim.LBFGS([w], max_iter=ITERATIONS, history_size=8, line_search_fn="strong_wolfe")

        def closure(penalty: float = penalty, optimiser: torch.optim.LBFGS = optimiser) -> torch.Tensor:
            optimiser.zero_grad()
            loss = _plain_loss(x, y, w) + penalty / 2 * w[:-1].square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimiser.step(closure)  # type: ignore[arg-type]
        with torch.no_grad():
            found = _plain_loss(x_check, y_check, w).item()
        if found < least:
            best, least, worse = w.detach().clone(), found, 0
        elif (worse := worse + 1) == 2:
            break
    return best


def _plain_loss(x: torch.Tensor, y: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(x @ w[:-1] + w[-1], y)


def _losses(x: torch.Tensor, y: torch.Tensor, w: torch.Tensor, plain: torch.Tensor, share: float) -> torch.Tensor:
    """Return -log2 of the probability given to each frame's group, `share` of it the plain frequencies, (frames,)."""
    with torch.no_grad():
        p = torch.softmax((x @ w[:-1] + w[-1]).double(), dim=-1)
        own = p.gather(1, y[:, None])[:, 0]
        return -torch.log2((1 - share) * own + share * plain[y])
