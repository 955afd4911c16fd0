"""From what was measured under each arm to rows: effects, intervals, levels and p-values.

Conventions. A row is one measure under one kind of edit of one set of layers. `value`, `unablated_value` and
`control_value` are means over clips; `effect` is value - unablated_value and `beyond_control` value - control_value,
both paired by clip. p is adjusted over the sets of one kind of edit: another kind changes nothing. Rows that are not
headlines carry `detail` true: they are in every file, not in the printed table.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from codecprobe.ablation_bench import CEILING, FLOOR, UNABLATED, Arm, Bench
from codecprobe.latent_edits import SWAP
from codecprobe.layer_sets import name_of
from codecprobe.scorers import Measure, measures
from codecprobe.swap_measures import SWAP_MEASURES
from probecore.ablation.paired import pair_weights, paired_effects, ratio_with_interval
from probecore.results import Row
from probecore.stats.multiple import holm
from probecore.validation import codes_of

Measured = Mapping[Arm, NDArray[np.float64]]
NOTHING_TO_MOVE = "swapping everything does not move this measure by more than its interval"
NO_SUCH_MEASURE = "no clip has this measure under this edit (as a pitch where nothing is voiced)"
NOT_TESTED = "a level to compare with, not an ablation"
COLUMNS = (
    "metric", "kind", "layers", "value", "ci_low", "ci_high", "unablated_value", "control_value",
    "p_adjusted", "p_control_adjusted", "n_clips", "n_speakers",
)  # fmt: skip
SWAP_COLUMNS = (
    "metric", "layers", "value", "ci_low", "ci_high", "unablated_value", "all_swapped_value", "control_value",
    "moved", "moved_low", "moved_high", "p_adjusted", "n_clips", "n_speakers",
)  # fmt: skip


def ablation_rows(
    bench: Bench, arms: Sequence[Arm], measured: Measured, *, n_bootstrap: int = 2000, seed: int = 0
) -> list[Row]:
    """Return a row per measure, level and arm; a measure that no clip has gives no rows."""
    rows: list[Row] = []
    plain = measured[Arm(UNABLATED)][0]
    n_layers = len(bench.names) - len(measures(0))
    words = _headline_of_content(bench.names, plain)
    kinds = [tuple(arm for arm in arms if arm.kind == kind) for kind in dict.fromkeys(arm.kind for arm in arms)]
    for m, measure in enumerate(measures(n_layers)):
        families = [((Arm(CEILING), Arm(FLOOR)), NOT_TESTED), *((kind, measure.untested) for kind in kinds)]
        if np.isnan(plain[:, m]).all():
            continue
        shown = measure.headline and measure.name not in words
        for made, untested in families:
            values, controls = (np.stack([measured[arm][which, :, m] for arm in made]) for which in (0, 1))
            effects = paired_effects(
                values,
                plain[:, m],
                controls,
                clusters=bench.speakers,
                share=measure.share,
                untested=untested,
                n_bootstrap=n_bootstrap,
                seed=seed,
            )
            rows += [_row(arm, measure, effect, shown) for arm, effect in zip(made, effects, strict=True)]
    return rows


def swap_rows(
    bench: Bench, arms: Sequence[Arm], measured: Measured, *, n_bootstrap: int = 2000, seed: int = 0
) -> list[Row]:
    """Return a row per measure and set of layers, with the share of the way from A to B in `moved`.

    p tests whether anything moved: moved = 0, by t with both speakers resampled, adjusted over the sets. The last arm
    must swap all layers. Clips without a partner have no values and do not count.
    """
    paired = bench.partner >= 0
    speakers, others = bench.speakers[paired], bench.speakers[bench.partner[paired]]
    codes = codes_of(speakers)[0]
    weights = pair_weights(speakers, others, n_bootstrap, seed)
    rows: list[Row] = []
    for m, measure in enumerate(SWAP_MEASURES):
        plain, everything = (measured[arm][0, paired, m] for arm in (Arm(SWAP), arms[-1]))
        if np.isnan(plain).all():
            continue
        values, controls = (np.stack([measured[arm][which][paired, m] for arm in arms]) for which in (0, 1))
        effects = paired_effects(
            values,
            plain,
            controls,
            clusters=speakers,
            partners=others,
            share=measure.share,
            n_bootstrap=n_bootstrap,
            seed=seed,
        )
        shares = [ratio_with_interval(own - plain, everything - plain, codes, weights) for own in values]
        adjusted = holm([p for *_, p in shares])
        for arm, effect, share, p_adjusted in zip(arms, effects, shares, adjusted, strict=True):
            moved, low, high, p = share
            why = NOTHING_TO_MOVE if np.isnan(moved) else "1 by construction" if np.isnan(p) else ""
            row = _row(arm, measure, effect, measure.headline)
            row |= {"all_swapped_value": float(np.nanmean(everything)), "p_value": p, "p_adjusted": p_adjusted}
            row |= {"moved": moved, "moved_low": low, "moved_high": high, "moved_note": why if np.isnan(moved) else ""}
            rows.append({key: _known(value) for key, value in row.items()} | {"p_note": why, "p_adjusted_note": why})
    return rows


def _known(value: object) -> object:
    return None if isinstance(value, float) and np.isnan(value) else value


def _headline_of_content(names: Sequence[str], plain: NDArray[np.float64]) -> tuple[str, ...]:
    """Return the measures of content that need not be shown because a better one is there."""
    there = {name for m, name in enumerate(names) if not np.isnan(plain[:, m]).all()}
    return ("MFCC agreement",) if there & {"phone accuracy", "word error rate"} else ()


def _row(arm: Arm, measure: Measure, effect: Row, shown: bool) -> Row:
    n_clips, n_speakers = effect.pop("n_items"), effect.pop("n_clusters")
    return {
        "kind": arm.kind,
        "layers": name_of(arm.layers) if arm.layers else None,
        "metric": measure.name,
        **effect,
        "value_note": "" if n_clips else NO_SUCH_MEASURE,
        "n_clips": n_clips,
        "n_speakers": n_speakers,
        "detail": not shown,
    }
