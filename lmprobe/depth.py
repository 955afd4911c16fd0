"""C6: does a model's answer converge in depth? The distance of each layer's lens from the final distribution.

Conventions. At every prompt's end, KL(final || lens of layer l) in nats for l = embed, block 0, ... The slope is that
of the log distance over the layers before the last (whose distance is 0), per block; below 0 the lens comes closer.
A logit lens reads every layer with the last one's norm and head: a distance says what can be read so, not what is
there. So the slope has no null, and stands among the details.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmprobe.convergence import slope
from lmprobe.entropy_tables import family_interval
from lmprobe.models import LanguageModel
from lmprobe.readout import read_out
from probecore.lens import logit_lens
from probecore.results import Row

ROWS = 64  # read out at once


def depth_rows(
    lm: LanguageModel, states: Mapping[str, NDArray[Any]], families: Sequence[str]
) -> tuple[list[Row], list[Row], str]:
    """Return the row of C6, the mean distance of every layer (a table), and why there is none ("" when there is).

    states : layer -> (prompts, width), every layer of the model in order.
    """
    import torch

    if not lm.certificate.holds("read-out"):
        return [], [], "no C6: the read-out of this model is not certified"
    if len(states) < 3:
        return [], [], "no C6: a slope over depth needs at least 2 layers before the last"
    tensors = [torch.tensor(np.asarray(values)) for values in states.values()]
    lens = logit_lens(tensors, lambda _, part: read_out(lm, part), rows=ROWS)
    distance = lens.kl_to_final[:-1]
    slopes = [slope(np.log(np.maximum(path, 1e-12))) for path in distance.T]
    low, high = family_interval(slopes, families)
    row: Row = {
        "metric": "C6 slope of log KL(final || lens) (a block)", "measure": "convergence", "reading": "C6",
        "layer": None, "value": float(np.mean(slopes)), "ci_low": low, "ci_high": high, "p_value": None,
        "p_note": "no null is fixed for it: read the interval", "n_prompts": len(slopes),
        "n_families": len(set(families)), "detail": True,
    }  # fmt: skip
    table: list[Row] = []
    for name, values in zip(states, lens.kl_to_final, strict=True):
        low, high = family_interval(values, families)
        table.append({
            "layer": name, "kl_to_final": float(values.mean()), "ci_low": None if low is None else max(low, 0.0),
            "ci_high": high, "entropy": float(lens.entropy[len(table)].mean()),
        })  # fmt: skip
    return [row], table, ""
