"""The collision ladder of a tokenized corpus, as rows: three rungs per layer, and the test of the speaker's.

Conventions. Bits; see `probecore.collisions` for S and G. Clips without a frame that counts take no part. A rung that
the data cannot show has no value and says why.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codecprobe.tokenization import TokenizedCorpus
from codecprobe.voice_activity import ACTIVITIES
from probecore.collisions import FEWEST_FOR_INTERVAL, RUNGS, CollisionLadder, SpeakerTest
from probecore.errors import DesignError
from probecore.results import Row

SAID = {
    "clip": ("same clip", "same session"),
    "session": ("same session", "same speaker"),
    "speaker": ("same speaker", "other speaker"),
}


@dataclass(frozen=True)
class LadderReading:
    """Rows of all rungs, those that the figure shows, and notes."""

    rows: list[Row]
    figure: list[Row]
    notes: list[str]


def read_ladder(
    tokenized: TokenizedCorpus,
    masks: Sequence[NDArray[np.bool_]],
    far: int,
    activity: str,
    *,
    n_permutations: int,
    seed: int,
) -> LadderReading:
    """Return the ladder on the frames that count; `far` is the largest lag in frames that is not yet far."""
    kept = [i for i, mask in enumerate(masks) if mask.any()]
    ladder, n_frames = _climb(tokenized, masks, kept, far)
    test, no_test = None, None
    try:
        test = ladder.speaker_test(n_permutations, seed) if n_permutations else None
        no_test = None if test else "no permutations were asked for"
    except DesignError as error:
        no_test = str(error)
    sizes = {"n_frames": n_frames, "n_clips": len(kept), "activity": activity}
    rows: list[Row] = []
    for name in RUNGS:
        rows += _rows_of(ladder, name, tokenized.codec.layers, sizes, test, no_test)
    shown = [row for row in rows if row["metric"].startswith("G ") and row["value"] is not None]
    return LadderReading(rows, shown, _notes(tokenized, kept, test))


def _climb(
    tokenized: TokenizedCorpus, masks: Sequence[NDArray[np.bool_]], kept: Sequence[int], far: int
) -> tuple[CollisionLadder, int]:
    ladder = CollisionLadder(
        [tokenized.codes[i] for i in kept],
        [masks[i] for i in kept],
        [tokenized.clips[i].speaker for i in kept],
        [tokenized.clips[i].session for i in kept],
        sizes=tokenized.codec.codebook_sizes,
        far=far,
    )
    return ladder, sum(int(masks[i].sum()) for i in kept)


def _rows_of(
    ladder: CollisionLadder, name: str, layers: Sequence[str], sizes: Row, test: SpeakerTest | None, no_test: str | None
) -> list[Row]:
    detail = sizes["activity"] != ACTIVITIES[0]
    common = {"unit": "bits", "estimator": "log2 of unbiased collision rates", **sizes, "detail": detail}
    try:
        rung = ladder.rung(name)
    except DesignError as error:
        nothing = {"value": None, "ci_low": None, "ci_high": None, "value_note": str(error), **common}
        nothing |= {"p_value": None, "p_adjusted": None, "p_note": no_test} if name == "speaker" else {}
        return [{"metric": f"G {name}", "layer": layer, **nothing} for layer in layers]
    few = rung.n_speakers < FEWEST_FOR_INTERVAL
    rows: list[Row] = []
    for k, layer in enumerate(layers):
        row = {
            "metric": f"G {name}", "layer": layer, "value": rung.value[k], "ci_low": rung.low[k],
            "ci_high": rung.high[k], "ci_note": f"fewer than {FEWEST_FOR_INTERVAL} speakers" if few else None,
            "value_note": None if np.isfinite(rung.value[k]) else "no two frames of one kind carry the same code",
            "n_speakers": rung.n_speakers, "above": rung.above[k], "below": rung.below[k], **common,
        }  # fmt: skip
        if name == "speaker":
            row |= {"p_value": None, "p_adjusted": None, "p_note": no_test}
        if name == "speaker" and test is not None:
            row |= {
                "p_value": test.p_value[k], "p_adjusted": test.p_adjusted[k], "null_mean": test.null_mean[k],
                "n_permutations": test.n_permutations, "smallest_p": test.smallest_p,
            }  # fmt: skip
        rows.append(row)
    for which, said in zip(("above", "below"), SAID[name], strict=True):
        rows += [
            {
                "metric": f"S {said}, of G {name}", "layer": layer, "value": getattr(rung, which)[k],
                "ci_note": "the interval stands at G", **common, "n_speakers": rung.n_speakers, "unit": "share",
                "estimator": "collision rate", "detail": True,
            }
            for k, layer in enumerate(layers)
        ]  # fmt: skip
    return rows


def _notes(tokenized: TokenizedCorpus, kept: Sequence[int], test: SpeakerTest | None) -> list[str]:
    notes = []
    if len(kept) < len(tokenized.clips):
        notes.append(f"{len(tokenized.clips) - len(kept)} clips without a frame that counts take no part in the ladder")
    if test is not None:
        notes.append(
            f"p of G speaker: {test.n_permutations} deals of whole sessions to speakers, one-sided, (b + 1) / (m + 1), "
            f"adjusted over layers by max-T; smallest possible p {test.smallest_p:.2g}"
        )
    return notes
