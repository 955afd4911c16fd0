"""What was measured, turned into the evidence of the post's claims, and the artefact that each could be.

Conventions. Evidence is returned by the key of its claim. An artefact is a record of a table: claim, what else could
give such a value, and the number measured for that; `beside` puts it into words. Tokens are an artefact here and never
a test: a p over tokens stands beside that over prompts to show what it would have claimed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmprobe.contrast_statistics import alpha, between_variance
from lmprobe.contrasts import Contrast
from lmprobe.convergence import fraction_closer
from lmprobe.post_claims import ALPHAS, EFFECTS, N_CLASS, ROLES
from probecore.results import Result, Row
from probecore.seeds import generator
from probecore.stats.effects import effect_from_d, welch
from probecore.stats.variance_ratio import alpha_null_interval, alpha_p_value
from probecore.verdicts import Evidence

Floats = NDArray[np.float64]
BY_EXCHANGE = "p of exchanged categories, prompts"
BY_INTERVAL = "a size is read by its interval"
WALKS, STEPS, WIDTH = 200, 30, 64


def terrain_evidence(result: Result, names: Mapping[str, str]) -> tuple[dict[str, Evidence], list[Row]]:
    """Evidence of the claims about single models, and their artefacts; names : role -> name of the model."""
    at = {(row["model"], row["metric"]): row for row in result.rows}
    found: dict[str, Evidence] = {}
    artefacts: list[Row] = []
    for role, name in names.items():

        def row(metric: str, of: str = name) -> Row:
            return at[of, metric]

        found[f"regions-{role}"] = _beyond(row("separability, best layer"), row_or(at, name, "best control"))
        artefacts += _controls(f"regions-{role}", at, name)
        gap, d = row("gap, own text (nats)"), row("Cohen's d, own text")
        a1 = row("alpha A1, between prompts")
        evidence = _of(gap, BY_EXCHANGE, "nats", p="p_adjusted")
        found[f"gap-{role}"] = found[f"gap-size-{role}"] = evidence
        found[f"d-{role}"] = _of(_longer(d), BY_INTERVAL, "standard deviations")
        found[f"alpha-{role}"] = _of(a1, BY_EXCHANGE, "alpha", p="p_adjusted")
        artefacts += _tokens(f"gap-{role}", result, name, gap)
        artefacts += [
            _artefact(f"gap-{role}", f"gap given {words}", row(f"gap given {words}, own text (nats)"))
            for words in ("length", "length and wording")
        ]
        published = effect_from_d(EFFECTS[role], N_CLASS, N_CLASS)
        artefacts.append(_record(f"d-{role}", "the printed d with 20 + 20 prompts", published.value, published.ci_low,
                                 published.ci_high))  # fmt: skip
        artefacts += _nulls(f"alpha-{role}", a1, ALPHAS[role])
    found["universal"] = _smallest([found[f"regions-{role}"] for role in names])
    found["alpha-shows"] = found["alpha-aligned"]
    artefacts += [{**one, "claim": "alpha-shows"} for one in artefacts if one["claim"] == "alpha-aligned"]
    base, aligned = names["base"], names["aligned"]
    layer = str(at[base, _starting(at, base, "PC1 share, ")]["layer"])
    for key, measure in (("pc1", "PC1 share"), ("five", "share of 5 components")):
        one = at[base, f"{measure}, {layer}"]
        found[key] = _of(one, BY_INTERVAL, "share of the variance")
        if one.get("control") is not None:
            artefacts.append(_record(key, "random weights of the same configuration", one["control"]))
    for metric, words in (
        (f"PC1 share of tokens with position 0, {layer}", "tokens as items, position 0 among them"),
        (f"PC1 share of tokens without position 0, {layer}", "tokens as items, without position 0"),
    ):
        artefacts.append(_record("pc1", words, at[base, metric]["value"]))
    for (name, _), one in at.items():
        if name == base and one["measure"] == "PC1 share" and one.get("variant") and one["layer"] == layer:
            artefacts.append(_record("pc1", f"coordinates {one['variant']}", one["value"]))
    c1 = at.get((aligned, "C1 step slope, 50 % depth"))
    found["converges"] = (
        Evidence(reason="no prompt has enough tokens for a trajectory")
        if c1 is None
        else _of(c1, "p of exchanged increments", "per token", p="p_value")
    )
    closer = at.get((aligned, "C2 fraction closer to the end, 50 % depth"))
    if closer is not None:
        artefacts.append(_artefact("converges", "steps that come closer to the end (C2)", closer))
    artefacts.append(_record("converges", f"the same of a random walk of {STEPS} steps, simulated", random_walk()))
    control = at.get((aligned, "C1 step slope, embedding (control)"))
    if control is not None:
        artefacts.append(_artefact("converges", "slope of the embeddings: word order alone", control))
    return found, artefacts


def order_evidence(means: Mapping[str, Floats], main: Contrast) -> Evidence:
    """Evidence that alpha grows: aligned minus base on the same prompts and resamples; means : role -> (n,)."""
    one, other = (alpha(between_variance(means[role])) for role in ("aligned", "base"))

    def statistic(first: Floats, second: Floats) -> Floats:
        return np.asarray(one(first, second) - other(first, second))

    value, ends = main.observed(statistic), main.interval(statistic)
    if not np.isfinite(value):
        return Evidence(reason="alpha is not defined: the entropies of a category do not vary")
    sizes = {"n_items": main.n_prompts, "n_clusters": main.n_families}
    if ends is None:
        return Evidence(value, reason="alpha is undefined in some resamples, or none were asked for", unit="alpha",
                        n_items=sizes["n_items"], n_clusters=sizes["n_clusters"])  # fmt: skip
    low, high = min(ends[0], value), max(ends[1], value)
    detail = ", ".join(f"{role} {main.observed(alpha(between_variance(means[role]))):.3f}" for role in means)
    return Evidence(value, low, high, None, BY_INTERVAL, detail=detail, unit="alpha", **sizes)  # type: ignore[arg-type]


def order_artefacts() -> list[Row]:
    """Return what three models can show: the smallest p of a rank correlation, and that of the printed values."""
    from lmprobe.lineage import order_p

    return [
        _record("alpha-grows", "p of a rank correlation in perfect order, 3 models", order_p([1.0, 2.0, 3.0])),
        _record("alpha-grows", "p of the printed alphas", order_p([ALPHAS[role] for role in ROLES])),
    ]


def pair_evidence(result: Result) -> tuple[dict[str, Evidence], list[Row]]:
    """Evidence on lambda and additivity, from the rows of `potential` on the model before the anchor."""
    place, off = (
        next(row for row in result.rows if row["metric"] == metric and row.get("anchor") != row["model"])
        for metric in ("lambda L4, relative", "share of KL off the path")
    )
    found = {"lambda": _of(place, BY_INTERVAL, "of the path"), "additive": _of(off, BY_INTERVAL, "share of KL")}
    artefacts = [
        _record(key, f"floor: the same for {row['floor_name']}", row["floor"], row["floor_low"], row["floor_high"])
        for key, row in (("lambda", place), ("additive", off)) if row.get("floor_name")
    ]  # fmt: skip
    return found, artefacts


def random_walk(seed: int = 0) -> float:
    """Return the mean share of steps of a pure random walk that come closer to its own end."""
    rng = generator(seed, "terrain post", "random walk")
    walks = rng.standard_normal((WALKS, STEPS, WIDTH)).cumsum(axis=1)
    return float(np.mean([fraction_closer(walk) for walk in walks]))


def published() -> tuple[Row, ...]:
    """Return the printed numbers of every role with what 20 + 20 prompts allow: intervals, null and p."""
    from lmprobe.post_claims import GAPS, MODELS

    low, high = alpha_null_interval(N_CLASS, N_CLASS)
    rows: list[Row] = []
    for role in ROLES:
        d = effect_from_d(EFFECTS[role], N_CLASS, N_CLASS)
        t = EFFECTS[role] * np.sqrt(N_CLASS / 2)
        rows.append({
            "role": role, "model": MODELS[role], "gap": GAPS[role], "cohen_d": d.value, "d_low": d.ci_low,
            "d_high": d.ci_high, "p_implied_by_d": _p_of_t(float(t), 2 * N_CLASS - 2),
            "sd_implied": GAPS[role] / EFFECTS[role], "alpha": ALPHAS[role], "null_low": low, "null_high": high,
            "p_of_alpha": alpha_p_value(ALPHAS[role], N_CLASS, N_CLASS),
        })  # fmt: skip
    return tuple(rows)


def beside(artefacts: Sequence[Row], claim: str) -> str:
    """Return the artefacts of a claim in words."""
    return "; ".join(_words(one) for one in artefacts if one["claim"] == claim and one["value"] is not None)


def row_or(at: Mapping[tuple[str, str], Row], name: str, control: str) -> Row | None:
    """Return the row of a separability control, None where there is none."""
    return at.get((name, f"separability, {control}"))


def _beyond(best: Row, control: Row | None) -> Evidence:
    """Return accuracy minus its best control; the ends combine both intervals, so it is longer than a .95 interval."""
    if best["value"] is None:
        return Evidence(reason=str(best.get("p_note") or "the design gives no accuracy"))
    level = 0.5 if control is None else float(control["value"])
    ends = [
        level if control is None or control.get(key) is None else float(control[key]) for key in ("ci_low", "ci_high")
    ]
    low = None if best["ci_low"] is None else best["ci_low"] - ends[1]
    high = None if best["ci_high"] is None else best["ci_high"] - ends[0]
    value = best["value"] - level
    name = best.get("control_name") or "chance"
    return Evidence(
        value, None if low is None else min(low, value), None if high is None else max(high, value), best["p_adjusted"],
        str(best.get("p_note") or "p of no separability, adjusted over layers (max-T)"),
        reason="" if low is not None else "the design gives no interval over families",
        detail=f"{best['layer']}: {best['value']:.3f}; {name}: {level:.3f}", unit="accuracy",
        n_items=best["n_prompts"], n_clusters=best.get("n_families"),
    )  # fmt: skip


def _smallest(each: Sequence[Evidence]) -> Evidence:
    """Return the smallest of several differences: it is above 0 where all are (Berger 1982); p is the largest."""
    if any(one.value is None or one.low is None or one.high is None for one in each):
        return Evidence(reason="a model has no value or no interval")
    values = [(float(o.value or 0), float(o.low or 0), float(o.high or 0)) for o in each]
    value, low, high = (min(column) for column in zip(*values, strict=True))
    p_values = [one.p_value for one in each]
    known = None if None in p_values else max(p for p in p_values if p is not None)
    return Evidence(value, low, high, known, "the largest of their p", unit="accuracy", n_items=each[0].n_items,
                    n_clusters=each[0].n_clusters)  # fmt: skip


def _of(row: Row, note: str, unit: str, p: str | None = None) -> Evidence:
    """Return the evidence of a row as it is."""
    if row["value"] is None:
        return Evidence(reason=str(row.get("value_note") or row.get("p_note") or "not measured"))
    value, low, high = row["value"], row.get("ci_low"), row.get("ci_high")
    return Evidence(
        value, None if low is None else min(low, value), None if high is None else max(high, value),
        None if p is None else row.get(p), str(row.get("p_note") or note) if p else note,
        reason="" if low is not None else str(row.get("ci_note") or "there is no interval"),
        detail="" if row.get("planted") is None else f"planted {row['planted']:.3f}", unit=unit,
        n_items=row.get("n_prompts"), n_clusters=row.get("n_families"),
    )  # fmt: skip


def _longer(row: Row) -> Row:
    """Return a row of d whose interval holds that of independent prompts and that over families."""
    if row["ci_low"] is None or row.get("family_low") is None:
        return row
    return {**row, "ci_low": min(row["ci_low"], row["family_low"]), "ci_high": max(row["ci_high"], row["family_high"])}


def _tokens(claim: str, result: Result, name: str, gap: Row) -> list[Row]:
    """Return the gap by Welch's test that takes every token for an observation, and that of the prompts."""
    first, second = str(gap["contrast"]).split(" - ")
    traces = [row for row in result.tables["traces"] if row["model"] == name]
    one, other = ([row["entropy"] for row in traces if row["category"] == c] for c in (first, second))
    if len(one) < 2 or len(other) < 2 or not np.ptp(one) + np.ptp(other) > 0:
        return []
    wrong = welch(one, other)
    n = len(one) + len(other)
    return [
        _record(
            claim, f"{n} tokens taken for independent", wrong.difference, wrong.ci_low, wrong.ci_high, wrong.p_value
        ),
        _artefact(claim, f"{gap['n_prompts']} prompts", gap),
    ]


def _controls(claim: str, at: Mapping[tuple[str, str], Row], name: str) -> list[Row]:
    found = []
    for control in ("bag of words", "length"):
        row = at.get((name, f"separability control, {control}"))
        if row is not None:
            found.append(_artefact(claim, control, row))
    best = at[name, "separability, best layer"]["layer"]
    blank = at.get((name, f"separability control, random weights, {best}"))
    return [*found, *([] if blank is None else [_artefact(claim, "random weights, same layer", blank)])]


def _nulls(claim: str, row: Row, printed: float) -> list[Row]:
    found = []
    if row.get("null_low") is not None:
        found.append(_record(claim, "alpha when categories are exchanged", 0.0, row["null_low"], row["null_high"]))
    if row.get("alpha_swapped") is not None:
        found.append(_record(claim, "alpha with the categories swapped", row["alpha_swapped"]))
    if row.get("mean_coupled") is not None:
        found.append(_record(claim, "coupled to the mean (1 yes)", float(row["mean_coupled"])))
    p = alpha_p_value(printed, N_CLASS, N_CLASS)
    return [*found, _record(claim, "p of the printed alpha, 20 + 20 normal values", p)]


def _artefact(claim: str, words: str, row: Row) -> Row:
    return _record(claim, words, row["value"], row.get("ci_low"), row.get("ci_high"), row.get("p_value"))


def _record(
    claim: str, words: str, value: float | None, low: float | None = None, high: float | None = None,
    p: float | None = None,
) -> Row:  # fmt: skip
    return {"claim": claim, "artefact": words, "value": value, "ci_low": low, "ci_high": high, "p_value": p}


def _words(one: Row) -> str:
    def short(value: Any) -> str:  # noqa: ANN401
        return f"{value:.3g}"

    ends = "" if one["ci_low"] is None else f" [{short(one['ci_low'])}, {short(one['ci_high'])}]"
    p = "" if one["p_value"] is None else f", p {one['p_value']:.2g}"
    return f"{one['artefact']}: {short(one['value'])}{ends}{p}"


def _starting(at: Mapping[tuple[str, str], Row], name: str, start: str) -> str:
    return next(metric for of, metric in at if of == name and metric.startswith(start))


def _p_of_t(t: float, freedom: int) -> float:
    from probecore.stats.bootstrap import t_p_value

    return t_p_value(t, freedom)
