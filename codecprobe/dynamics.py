"""How long the codes of each layer stay, and what they know of clip, session and speaker without training anything.

Conventions. Times in ms, beside them in frames; `activity` says whether frames of speech or all frames count.
`shuffled` is the same quantity with the frames of every clip in random order: what the clips' histograms alone give.
Pairs of frames of one clip more than `far_s` apart are the baseline of the autocorrelation, so these times are those of
what changes within `far_s`; what stays longer (a voice, a room) is the ladder's. Intervals of times are expanded
percentiles over resampled speakers, those of the ladder t intervals of the jackknife over speakers.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codecprobe.codecs.codec import Codec, CodecInfo
from codecprobe.codecs.registry import open_codec
from codecprobe.corpora.corpus import Corpus
from codecprobe.corpora.registry import open_corpus
from codecprobe.ladder import read_ladder
from codecprobe.pace import Pace, Times, far_frames, in_time, measure_pace, shuffle_frames
from codecprobe.tokenization import describe, facts_of, tokenize
from codecprobe.voice_activity import ACTIVITIES, activity_masks, describe_activity
from probecore.devices import device_of
from probecore.progress import progress
from probecore.provenance import provenance
from probecore.results import Figure, Result, Row
from probecore.seeds import generator
from probecore.stats.bootstrap import cluster_weights, expanded_interval
from probecore.store import ArrayCache, cache_dir
from probecore.timescales import survival
from probecore.validation import at_least, codes_of

Floats = NDArray[np.float64]
COLUMNS = (
    "metric", "layer", "value", "ci_low", "ci_high", "in_frames", "shuffled", "note", "p_value", "p_adjusted",
    "n_frames", "n_clips", "n_speakers",
)  # fmt: skip
FEWEST_SPEAKERS = 3
N_SHUFFLES = 3
SHORT_CURVE = 0.002  # a curve of run lengths ends where so few runs are left
ESTIMATORS = {
    "repeat rate": "share of neighbouring frames",
    "run length": "median, kaplan-meier",
    "integrated time": "sokal window 5",
    "e-fold time": "linear interpolation",
    "mean run from repeats": "1 / (1 - repeat rate)",
}
DESCRIBED = "described, not tested: read it by its interval, and beside 'shuffled' where that stands"
LOST = 0.05  # share of resamples without a value above which there is no interval


def code_timescales(
    corpus: str | Path | Corpus = "embedded",
    codec: str | Path | Codec = "embedded",
    *,
    speakers: int | None = None,
    clips: int | None = None,
    far_s: float = 1.0,
    n_permutations: int = 1999,
    n_bootstrap: int = 1000,
    seed: int = 0,
    device: str = "auto",
    cache: Path | None = None,
    quiet: bool = True,
) -> Result:
    """Measure how long codes stay, layer by layer, and climb the collision ladder from clip to speaker.

    Parameters
    ----------
    corpus, codec, speakers, clips, device, cache : as `speaker_probe` takes them.
    far_s : seconds; frames of one clip further apart are the baseline of the autocorrelation, and the pairs of S_clip.
    n_permutations : times whole sessions are dealt anew to speakers for the p of G speaker.
    n_bootstrap : resamples of speakers behind the intervals of times.

    Returns
    -------
    Result of kind "timescales", a row per metric, layer and activity. Where no two speakers have two sessions, the
    rungs that need them have no value and say why.

    Raises
    ------
    InputError : far_s is below one frame, or no clip has a frame that counts.
    """
    at_least(n_bootstrap, 2, "--bootstrap")
    source = corpus if isinstance(corpus, Corpus) else open_corpus(corpus, quiet=quiet)
    opened = open_codec(codec, device) if isinstance(codec, str | Path) else codec
    far = far_frames(far_s, opened.info.frame_rate_hz)
    root = cache or cache_dir()
    tokenized = tokenize(source.sample(speakers, clips, seed), opened, cache=ArrayCache(root / "codes"), quiet=quiet)
    masks = activity_masks(tokenized, ArrayCache(root / "activity"), quiet=quiet)
    speaker, _ = codes_of([clip.speaker for clip in tokenized.clips])
    rows: list[Row] = []
    tables: dict[str, list[Row]] = {"autocorrelation": [], "runs": [], "times": [], "ladder": []}
    notes: list[str] = []
    for activity in progress(ACTIVITIES, "timescales and ladder", quiet=quiet):
        pace = measure_pace(tokenized.codes, masks[activity], speaker, far)
        rng = generator(seed, "shuffled frames", activity)
        mixed = [shuffle_frames(tokenized.codes, masks[activity], rng) for _ in range(N_SHUFFLES)]
        shuffled = [measure_pace(codes, masks[activity], speaker, far) for codes in mixed]
        found = time_rows(pace, shuffled, opened.info, activity, far=far, n_bootstrap=n_bootstrap, seed=seed)
        ladder = read_ladder(tokenized, masks[activity], far, activity, n_permutations=n_permutations, seed=seed)
        rows += [*found, *ladder.rows]
        notes += [f"{activity}: {note}" for note in ladder.notes]
        tables["times"] += [row for row in found if row["metric"] == "integrated time"]
        if activity == ACTIVITIES[0]:
            tables["autocorrelation"] += _autocorrelation(pace, opened.info, 2 * far)
            tables["runs"] += _run_curves(pace, opened.info)
            tables["ladder"] += ladder.figure
            notes += _run_notes(pace)
    return Result(
        kind="timescales",
        title=f"Timescales (ms) and collision ladder (bits): codec {opened.info.name}, corpus {source.name}",
        rows=tuple({"p_value": None, "p_adjusted": None, "p_note": DESCRIBED} | row for row in _in_reading_order(rows)),
        columns=tuple(name for name in COLUMNS if any(name in row for row in rows)),
        notes=(
            *describe(tokenized),
            *tokenized.notes,
            describe_activity(masks),
            f"one frame is {1000 / opened.info.frame_rate_hz:g} ms; '< 1 frame': codes change faster than a frame can "
            "show; white codes have an integrated time of half a frame",
            f"autocorrelation against pairs of one clip more than {far} frames ({far_s:g} s) apart",
            *notes,
        ),
        provenance=provenance(
            seed=seed,
            device=str(device_of(device)),
            command="codecprobe timescales",
            settings={"far_s": far_s, "permutations": n_permutations, "bootstrap": n_bootstrap},
            **facts_of(tokenized),
        ),
        tables={name: tuple(table) for name, table in tables.items()},
        figures=_figures(opened.info.name),
    )


def time_rows(
    pace: Pace, shuffled: Sequence[Pace], info: CodecInfo, activity: str, *, far: int, n_bootstrap: int, seed: int
) -> list[Row]:
    """Return repeat rate, run length, integrated and e-fold time of every layer, each beside its shuffled baseline."""
    everyone = np.ones(pace.n_speakers)
    seen = in_time(pace, everyone)
    mixed = [in_time(each, everyone) for each in shuffled]
    drawn = cluster_weights(np.arange(pace.n_speakers), n_bootstrap, seed=seed)
    spread = in_time(pace, drawn) if pace.n_speakers >= FEWEST_SPEAKERS else None
    no_far = not pace.pairs.far_total.any()
    frame_ms = 1000 / info.frame_rate_hz
    rows = []
    for metric, name, in_ms, detail in (
        ("repeat rate", "repeat_rate", False, False),
        ("run length", "median", True, False),
        ("integrated time", "integrated", True, False),
        ("e-fold time", "e_fold", True, True),
        ("mean run from repeats", "repeat_rate", True, True),
    ):
        first_order = metric == "mean run from repeats"
        values, base = getattr(seen, name), np.mean([getattr(each, name) for each in mixed], axis=0)
        boot = None if spread is None else getattr(spread, name)
        if first_order:
            values, base = _mean_run(values), _mean_run(base)
            boot = None if boot is None else _mean_run(boot)
        for k, layer in enumerate(info.layers):
            value, note, why = _reading(metric, float(values[k]), seen, k, far, no_far)
            low, high, ci_note = _interval_of(boot, k, pace.n_speakers)
            scale = frame_ms if in_ms else 1.0
            row = {
                "metric": metric, "layer": layer, "activity": activity, "value": _times(value, scale),
                "ci_low": _times(low, scale), "ci_high": _times(high, scale), "shuffled": _times(float(base[k]), scale),
                "unit": "ms" if in_ms else "share", "note": note, "value_note": why, "ci_note": ci_note,
                "estimator": ESTIMATORS[metric], "n_frames": pace.n_frames, "n_clips": pace.n_clips,
                "n_speakers": pace.n_speakers, "detail": detail or activity != ACTIVITIES[0],
            }  # fmt: skip
            if in_ms:
                row["in_frames"] = value
            if metric == "run length":
                row |= {f"n_{what}": int(getattr(pace, what)[:, k].sum()) for what in ("ended", "cut_off", "dropped")}
            rows.append(row)
    return rows


def _reading(
    metric: str, value: float, seen: Times, k: int, far: int, no_far: bool
) -> tuple[float | None, str, str | None]:
    """Return the value to show, a word on it, and where there is none the reason."""
    correlated = metric in ("integrated time", "e-fold time")
    if correlated and no_far:
        return None, "", "no clip has frames as far apart as --far: lower it"
    if metric == "e-fold time" and seen.rho_1[k] < 1 / np.e:
        return None, "< 1 frame", f"the autocorrelation at one frame is {seen.rho_1[k]:.2f}, below 1/e"
    if not np.isfinite(value):
        if metric == "run length":
            return None, "", "more than half of the runs outlast what clips show of them"
        return None, "", "one code only, or slower than the lags reach: raise --far"
    if metric == "integrated time" and seen.window[k] > far:
        return value, "at least", None
    if correlated and value < 1:
        return value, "< 1 frame", None
    return value, "", None


def _interval_of(boot: Floats | None, k: int, n_speakers: int) -> tuple[float | None, float | None, str | None]:
    if boot is None:
        return None, None, f"fewer than {FEWEST_SPEAKERS} speakers: no interval over speakers"
    values = boot[:, k]
    if not np.isfinite(values).mean() > 1 - LOST:
        return None, None, "too many resamples of speakers have no value"
    low, high = expanded_interval(values, n_speakers)
    return low, high, None


def _mean_run(repeat_rate: Floats) -> Floats:
    with np.errstate(divide="ignore"):
        out: Floats = np.where(repeat_rate < 1, 1 / (1 - repeat_rate), np.nan)
    return out


def _times(value: float | None, scale: float) -> float | None:
    return None if value is None else value * scale


def _autocorrelation(pace: Pace, info: CodecInfo, n_lags: int) -> list[Row]:
    rho = pace.pairs.pooled(np.ones(pace.n_speakers)).autocorrelation
    frame_ms = 1000 / info.frame_rate_hz
    return [
        {"layer": layer, "lag_frames": lag, "lag_ms": lag * frame_ms, "autocorrelation": float(rho[lag, k])}
        for k, layer in enumerate(info.layers)
        for lag in range(min(n_lags, len(rho) - 1) + 1)
    ]


def _run_curves(pace: Pace, info: CodecInfo) -> list[Row]:
    lasting = survival(pace.ended.sum(axis=0), pace.cut_off.sum(axis=0))
    frame_ms = 1000 / info.frame_rate_hz
    return [
        {"layer": layer, "frames": n, "ms": n * frame_ms, "share": float(lasting[k, n])}
        for k, layer in enumerate(info.layers)
        for n in range(lasting.shape[1])
        if np.isfinite(lasting[k, n]) and (n == 0 or lasting[k, n - 1] > SHORT_CURVE)
    ]


def _run_notes(pace: Pace) -> list[str]:
    ended, cut_off, dropped = (int(part.sum()) for part in (pace.ended, pace.cut_off, pace.dropped))
    return [
        f"runs of speech, all layers: {ended} ended, {cut_off} cut off by the end of the speech (Kaplan-Meier), "
        f"{dropped} left out, because nobody saw them start"
    ]


def _in_reading_order(rows: Sequence[Row]) -> list[Row]:
    """Put the rows of one metric together, in the order in which metrics first occur; details last."""
    place = {metric: i for i, metric in enumerate(dict.fromkeys(row["metric"] for row in rows))}
    return sorted(rows, key=lambda row: (row["detail"], place[row["metric"]], row["activity"] != ACTIVITIES[0]))


def _figures(codec: str) -> tuple[Figure, ...]:
    return (
        Figure(
            "integrated-time", "layer_profile", "times", f"How long codes stay correlated, codec {codec}",
            "Integrated autocorrelation time against frames of the same clip far apart; dashed: frames in random "
            "order, half a frame. Bands are 95 % intervals over speakers.",
            {"y": "value", "facet": "activity", "chance": "shuffled", "chance_title": "frames in random order",
             "p": None, "y_title": "Integrated time (ms)"},
        ),
        Figure(
            "autocorrelation", "lines", "autocorrelation", "Autocorrelation of the codes",
            "How much more often than chance inside a clip two frames carry the same code, by their distance (speech).",
            {"x": "lag_ms", "y": "autocorrelation", "series": "layer", "reference": 0.0, "x_title": "Lag (ms)",
             "y_title": "Autocorrelation"},
        ),
        Figure(
            "run-lengths", "lines", "runs", "How many runs of one code last longer",
            "Kaplan-Meier share of runs that last longer than this (speech); runs cut off by the end of the speech "
            "count as long as they were seen.",
            {"x": "ms", "y": "share", "series": "layer", "zero": True, "x_title": "Longer than (ms)",
             "y_title": "Share of runs"},
        ),
        Figure(
            "ladder", "layer_profile", "ladder", "Collision ladder",
            "Bits that two frames share because they are of one clip (G clip), of one session (G session), of one "
            "speaker (G speaker), each beyond the next. Only G speaker has a p. Bands are 95 % jackknife intervals.",
            {"y": "value", "series": "metric", "chance": None, "p": "p_adjusted", "y_title": "Bits", "zero": True},
        ),
    )  # fmt: skip
