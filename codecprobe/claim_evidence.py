"""What the parts of the analysis measured, turned into the evidence of each claim.

Conventions. Every function returns evidence by the key of its claim (`notes_claims.CLAIMS`). Rows of an ablation say
what a measure gained; here a loss is positive. Differences between layers come from the same folds, resamples or
clips for both layers, never from two intervals.
"""

from collections.abc import Mapping, Sequence

from codecprobe.ablation_bench import FLOOR
from codecprobe.notes_claims import FLIPPED, MARGIN, NOTES_SPEAKERS, OF_A_HALF, TALKER_LAYERS
from codecprobe.probe_ablation import LOSES
from probecore.probes.result import ProbeResult
from probecore.results import Result, Row
from probecore.verdicts import LEVEL, Evidence

BY_T = "p of no difference, t over resampled speakers"
NO_INTERVAL = "the design gives no interval over speakers"
NO_MEASURE = "no clip has this measure"
LEAST_TO_LOSE = 2 * MARGIN  # of an accuracy, a correlation or an error rate
FIRST_LATER = 3  # "later" layers are those from here on


def speaker_evidence(result: Result, single: ProbeResult, so_far: ProbeResult) -> dict[str, Evidence]:
    """Evidence on the speaker in each layer, from the speaker probe and its two kinds of features.

    single, so_far : probes of the embeddings of each layer and of layers 0 to k, with resamples to compare layers by.
    """
    rows = [row for row in result.rows if row["features"] == "embedding"]
    n_speakers = len(single.design.names)
    found = {
        "speaker-0": _above_chance(rows[0], n_speakers),
        "speaker-1": _above_chance(rows[1], n_speakers),
        "speaker-1-size": _accuracy(rows[1], n_speakers),
        "speaker-0-1": _difference(single, 1, 0),
    }
    if len(rows) > 2:
        found["speaker-2"] = _difference(single, 2, 1)
    if len(rows) > FIRST_LATER:
        found["speaker-later"] = _difference(so_far, len(rows) - 1, FIRST_LATER - 1)
    return found


def ablation_evidence(rows: Sequence[Row], kind: str, later: str) -> dict[str, Evidence]:
    """Evidence on what is lost without layers; `kind` is the edit, `later` the set of layers from 3 on ("" if none)."""
    at = {(row["metric"], row["layers"]): row for row in rows if row["kind"] == kind}
    probe = next((row for row in rows if row["kind"] == LOSES and row["layers"] == "0"), None)
    content = next((name for name in ("word error rate", "phone accuracy") if (name, "0") in at), "MFCC agreement")
    floors = {row["metric"]: row["value"] for row in rows if row["kind"] == FLOOR}

    def lost(metric: str, layers: str, *, beyond: bool) -> Evidence:
        return _lost(at.get((metric, layers)), floors.get(metric), beyond=beyond)

    found = {
        "ablation-0-words": lost(content, "0", beyond=True),
        "ablation-0-voice": lost("speaker accuracy", "0", beyond=False),
        "ablation-1-2-voice": lost("speaker accuracy", "1-2", beyond=True),
        "ablation-probe-0": _lost(probe, 1 / probe["n_speakers"] if probe else None, beyond=False),
    }
    if later:
        found["reading-3"] = lost("F0 correlation", later, beyond=True)
    return found


def swap_evidence(rows: Sequence[Row], later: str) -> dict[str, Evidence]:
    """Evidence on what swapped layers carry from one speaker to another; `later` as in `ablation_evidence`."""
    at = {(row["metric"], row["layers"]): row for row in rows}
    content = "phones" if ("phones", "0") in at else "MFCC"
    found = {
        "reading-0": _moved(at.get((content, "0"))),
        "reading-1-2": _moved(at.get(("voice (nats)", "1-2"))),
    }
    if later:
        found["reading-3-pitch"] = _moved(at.get(("pitch (semitones)", later)))
    return found


def lens_evidence(rows: Sequence[Row], n_layers: int) -> dict[str, Evidence]:
    """Evidence on where a style instruction acts in a talker of `n_layers` blocks, from the rows of the lens.

    The share of an early layer in the peak combines the ends of both intervals, so it is longer than a .95 interval.
    """
    effects = {row["layer"]: row for row in rows if row["stack"] == "talker" and row["metric"] == "style effect"}
    peak = next(row for row in rows if row["stack"] == "talker" and row["metric"] == "peak of the effect")
    sure = [layer for layer, row in effects.items() if row["p_adjusted"] is not None and row["p_adjusted"] <= LEVEL]
    sizes = {"n_items": peak["n_frames"], "n_clusters": peak["n_texts"]}
    if peak["value"] is None or not sure:
        reason = "no layer tells the style from another wording of a neutral instruction (adjusted p <= .05)"
        return dict.fromkeys(
            ("lens-early", "lens-peak"),
            Evidence(reason=reason, n_items=sizes["n_items"], n_clusters=sizes["n_clusters"]),
        )
    top = effects[int(peak["value"])]
    said = f"peak at layer {int(peak['value'])} of {n_layers}: {top['value']:.3g} nats"
    found = {"lens-peak": _peak(peak, n_layers, said)}
    last_early = n_layers // 3
    early = [effects[layer] for layer in range(1, last_early + 1)]
    if peak["ci_high"] is not None and peak["ci_high"] <= last_early:
        note = "1 where the peak itself lies early"
        return found | {
            "lens-early": Evidence(1.0, 1.0, 1.0, p_note=note, detail=said, unit="share of the peak", **sizes)
        }
    ends = [(row["ci_low"], row["value"], row["ci_high"]) for row in early]
    if not early or top["ci_low"] is None or top["ci_low"] <= 0 or any(None in each for each in ends):
        reason = "there is no early layer" if not early else "the size of the peak has no interval above 0"
        return found | {"lens-early": Evidence(reason=reason, detail=said, n_items=sizes["n_items"])}
    low, value, high = (max(each) for each in zip(*ends, strict=True))
    found["lens-early"] = Evidence(
        value / top["value"],
        low / (top["ci_high"] if low > 0 else top["ci_low"]),
        high / (top["ci_low"] if high > 0 else top["ci_high"]),
        p_note="a share of the peak is read by its interval",
        detail=said,
        unit="share of the peak",
        n_items=sizes["n_items"],
        n_clusters=sizes["n_clusters"],
    )
    return found


def _peak(row: Row, n_layers: int, said: str) -> Evidence:
    if n_layers != TALKER_LAYERS:
        return Evidence(reason=f"the claim speaks of {TALKER_LAYERS} layers, this talker has {n_layers}", detail=said)
    return Evidence(
        float(row["value"]), row["ci_low"], row["ci_high"], p_note="a place is read by its interval", detail=said,
        reason=str(row.get("ci_note") or ""), unit="layer", n_items=row["n_frames"], n_clusters=row["n_texts"],
    )  # fmt: skip


def _above_chance(row: Row, n_speakers: int) -> Evidence:
    if row["accuracy"] is None:
        return Evidence(reason=row["p_note"])
    note = str(row["p_note"] or "p of a speaker that the layer does not know, adjusted over layers (max-T)")
    detail = f"accuracy {row['accuracy']:.3f}, chance {row['chance']:.3f}"
    return _of_row(row, row["chance"], row["p_adjusted"], note, detail, n_speakers)


def _accuracy(row: Row, n_speakers: int) -> Evidence:
    if row["accuracy"] is None or n_speakers != NOTES_SPEAKERS:
        told = f"an accuracy among {n_speakers} speakers is not comparable with one among {NOTES_SPEAKERS}"
        return Evidence(reason=row["p_note"] if row["accuracy"] is None else told)
    return _of_row(row, 0.0, None, "a size is read by its interval", "", n_speakers)


def _of_row(row: Row, less: float, p: float | None, p_note: str, detail: str, n_speakers: int) -> Evidence:
    low, high = (None if row[end] is None else row[end] - less for end in ("ci_low", "ci_high"))
    return Evidence(
        row["accuracy"] - less, low, high, p, p_note, reason=NO_INTERVAL if low is None else "", detail=detail,
        unit="accuracy", n_items=row["n_items"], n_clusters=n_speakers,
    )  # fmt: skip


def _difference(result: ProbeResult, first: int, second: int) -> Evidence:
    a, b = (result.rows[k] for k in (first, second))
    step = result.compare(str(a["layer"]), str(b["layer"]))
    if step["difference"] is None:
        return Evidence(reason=str(step["p_note"]))
    detail = f"{a['layer']}: {a['accuracy']:.3f}, {b['layer']}: {b['accuracy']:.3f}"
    return Evidence(
        step["difference"], step["ci_low"], step["ci_high"], step["p_value"], BY_T,
        detail=detail, unit="accuracy", n_items=a["n_items"], n_clusters=step["n_clusters"],
    )  # fmt: skip


def _lost(row: Mapping[str, object] | None, floor: float | None, *, beyond: bool) -> Evidence:
    """Return a loss, positive, from a row that says what the measure gained.

    floor : the measure where nothing is left of it (another speaker's clip, a guess). Where all layers give hardly
        more, there is nothing to lose, and neither a loss nor its absence says anything of the layer.
    """
    if row is None or floor is None:
        return Evidence(reason=NO_MEASURE)
    gain = row["metric"] == "word error rate"  # more of it is the loss
    whole = _number(row["unablated_value"])
    if whole is None or abs(whole - floor) < LEAST_TO_LOSE:
        known = "nothing" if whole is None else f"{whole:.2f} with all layers"
        return Evidence(reason=f"nothing to lose: {row['metric']} is {known}, {floor:.2f} where nothing is left of it")
    names = ("beyond_control", "beyond_low", "beyond_high") if beyond else ("effect", "effect_low", "effect_high")
    value, low, high = (_number(row.get(name)) for name in names)
    p_name = "p_control_adjusted" if beyond else "p_adjusted"
    note = str(row.get("p_control_note" if beyond else "p_note") or FLIPPED)
    if row.get("kind") == LOSES:
        note = BY_T
    if value is None:
        return Evidence(reason=NO_MEASURE)
    plain = _number(row.get("effect_high" if gain else "effect_low")) if beyond else None
    if not gain:
        value, low, high = -value, None if high is None else -high, None if low is None else -low
        plain = None if plain is None else -plain
    against = "control_value" if beyond else "unablated_value"
    own, other = _number(row["value"]), _number(row.get(against))
    detail = f"{row['metric']}: {own:.3f} against {other:.3f}" if own is not None and other is not None else ""
    return Evidence(
        value, low, high, _number(row[p_name]), note, detail=detail, unit=str(row["metric"]), plain_high=plain,
        n_items=_count(row["n_clips"]), n_clusters=_count(row["n_speakers"]),
    )  # fmt: skip


def _moved(row: Mapping[str, object] | None) -> Evidence:
    if row is None:
        return Evidence(reason=NO_MEASURE)
    value, low, high = (_number(row[name]) for name in ("moved", "moved_low", "moved_high"))
    return Evidence(
        value, low, high, None, OF_A_HALF,
        reason="" if value is not None else "clips of two speakers do not surely differ in it: a share of nothing",
        detail=f"measured by {row['metric']}", unit="share of the way", n_items=_count(row["n_clips"]),
        n_clusters=_count(row["n_speakers"]),
    )  # fmt: skip


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) else None
