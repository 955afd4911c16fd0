"""Rows of the convergence readings C1-C5 over the states at the tokens a model generated (`lmprobe.convergence`).

Conventions. Layers are the embedding (a control: its states depend on the words alone) and the blocks at 25, 50 and
75 % of the depth. A prompt takes part when it has at least `FEWEST_STATES` states. Values are means over prompts with
t intervals over families; slopes are per token.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from lmprobe.convergence import (
    FEWEST_STATES,
    end_slope,
    fraction_closer,
    mean_slope,
    path_efficiency,
    slope,
    step_test,
)
from lmprobe.entropy_tables import family_interval
from lmprobe.generate import Generation
from lmprobe.models import LanguageModel
from lmprobe.perturbation import lyapunov_slope
from probecore.errors import InputError
from probecore.results import Row

Floats = NDArray[np.float64]
DEPTHS = (25, 50, 75)
NO_NULL = "no usable null exists: a pure random walk gives a slope of -0.046 and 87 % of steps closer"
NO_FIXED_NULL = "no null is fixed for it: read the interval"
BIASED: dict[str, Callable[[Floats], float]] = {
    "C2 end slope": end_slope,
    "C2 fraction closer to the end": fraction_closer,
    "C3 path efficiency": path_efficiency,
    "C3 slope of the distance to the mean": mean_slope,
}


def depth_layers(n_blocks: int) -> dict[int, str]:
    """Return the blocks at 25, 50 and 75 % of the depth, by percent.

    >>> depth_layers(4), depth_layers(28)[50]
    ({25: 'block 0', 50: 'block 1', 75: 'block 2'}, 'block 13')
    """
    return {depth: f"block {max(0, min(n_blocks - 1, round(depth * n_blocks / 100) - 1))}" for depth in DEPTHS}


def convergence_rows(
    generation: Generation,
    families: Sequence[str],
    n_blocks: int,
    *,
    n_permutations: int = 999,
    seed: int = 0,
) -> tuple[list[Row], str]:
    """Return rows of C1, C2, C3 and C5, and a note on prompts left out ("" when none were).

    generation : with the states at the tokens of "embed" and of `depth_layers` kept.
    """
    long = np.flatnonzero(generation.lengths >= FEWEST_STATES).tolist()
    left_out = generation.n_prompts - len(long)
    note = f"convergence leaves out {left_out} prompts with fewer than {FEWEST_STATES} tokens" if left_out else ""
    if not long:
        return [], note
    blocks = [families[i] for i in long]
    rows: list[Row] = []
    for depth, layer in {0: "embed", **depth_layers(n_blocks)}.items():
        paths = [np.asarray(generation.trajectory(i, layer), dtype=np.float64) for i in long]
        test = step_test(paths, n_permutations=n_permutations, seed=seed)
        where = "embedding (control)" if depth == 0 else f"{depth} % depth"
        row = _row(f"C1 step slope, {where}", "C1", layer, test.slopes, blocks, detail=depth != 50)
        row |= {"p_value": test.p_value, "null_low": test.null_low, "null_high": test.null_high}
        rows.append(row | ({"p_note": "no permutations were asked for"} if test.p_value is None else {}))
        if depth == 50:
            for name, reading in BIASED.items():
                row = _row(f"{name}, {where}", name[:2], layer, [reading(path) for path in paths], blocks, detail=True)
                rows.append(row | {"p_value": None, "p_note": NO_NULL})
    slopes = [slope(generation.entropy[i, : generation.lengths[i]]) for i in long]
    row = _row("C5 entropy slope (nats a token)", "C5", None, slopes, blocks, detail=True)
    return [*rows, row | {"p_value": None, "p_note": NO_FIXED_NULL}], note


def lyapunov_rows(
    lm: LanguageModel, generation: Generation, families: Sequence[str], *, seed: int = 0
) -> tuple[list[Row], str]:
    """Return the row of C4 at 50 % depth, changed at the prompt's end, and why there is none ("" when there is)."""
    n_blocks = len(lm.sites.blocks)
    layer = int(depth_layers(n_blocks)[50].removeprefix("block "))
    found: list[tuple[float, str]] = []
    try:
        for i, (prompt, tokens) in enumerate(zip(generation.prompts, generation.tokens, strict=True)):
            value = lyapunov_slope(lm, [*prompt, *tokens], len(prompt) - 1, layer, seed=seed)
            if value is not None:
                found.append((value, families[i]))
    except InputError as error:
        return [], f"no C4: {error}"
    if not found:
        return [], f"no C4: no prompt has {FEWEST_STATES} tokens after it"
    slopes, blocks = [value for value, _ in found], [family for _, family in found]
    name = "C4 Lyapunov slope, 50 % depth"
    return [_row(name, "C4", f"block {layer}", slopes, blocks, detail=True) | {
        "p_value": None, "p_note": NO_FIXED_NULL,
    }], ""  # fmt: skip


def _row(
    metric: str,
    reading: str,
    layer: str | None,
    values: Sequence[float] | Floats,
    families: Sequence[str],
    *,
    detail: bool,
) -> Row:
    low, high = family_interval(values, families)
    row: Row = {"metric": metric, "measure": "convergence", "reading": reading, "layer": layer}
    row |= {"value": float(np.mean(values)), "ci_low": low, "ci_high": high}
    return row | {"n_prompts": len(values), "n_families": len(set(families)), "detail": detail}
