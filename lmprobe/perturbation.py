"""C4: how a small change of one hidden state fades or grows over the tokens that follow, with all tokens fixed.

Conventions. The text (prompt and continuation) is read twice in one batch of two equal rows, once with
`size x |h| x u` added to the residual state h after block `layer` at position `start` (u a random unit vector). The
distance of both rows' states after the last block is taken at every later position. Before `start` it is exactly 0,
because the model is causal; that is checked on every text. The Lyapunov slope is the least-squares slope of the log
distance over positions start + 1, ...: per token, negative where the change is forgotten.

In a transformer this measures how long the context remembers, not an attractor: the states are no recurrent system.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmprobe.convergence import FEWEST_STATES, slope
from lmprobe.inputs import forward_arguments
from lmprobe.models import LanguageModel
from lmprobe.sites import rows_of, unwrap
from lmprobe.taps import tapped
from probecore.errors import CertificateError, InputError
from probecore.seeds import generator


def distances(
    lm: LanguageModel, text: Sequence[int], start: int, layer: int, *, size: float = 1e-2, seed: int = 0
) -> NDArray[np.float64]:
    """Return the distance of the changed from the clean states after the last block, (tokens of the text,).

    text : token ids. start : position of the changed state. layer : block after which it is changed.
    Raises `InputError` for a position or block that is not there, or states of 16 bits (their rounding is as large as
    the change), `CertificateError` when something changes before `start`.
    """
    n_blocks = len(lm.sites.blocks)
    if not 0 <= start < len(text) or not 0 <= layer < n_blocks - 1:
        raise InputError(
            f"a change needs a position in [0, {len(text)}) and a block before the last, in [0, {n_blocks - 1}); "
            f"got {start} and {layer}"
        )
    if lm.certificate.copies > 1:
        raise InputError(
            f"C4 needs one residual stream; {lm.name} carries {lm.certificate.copies} copies: leave it out"
        )
    if lm.dtype not in (torch.float32, torch.float64):
        raise InputError(f"C4 needs states of float32 or float64; {lm.name} has {lm.dtype}: open it with dtype float32")
    unit = generator(seed, "perturbation", lm.certificate.width).standard_normal(lm.certificate.width)
    direction = torch.tensor(unit / np.linalg.norm(unit))
    found: list[Tensor] = []

    def change(_: object, __: object, output: object) -> object:
        hidden = unwrap(output)
        changed = hidden.clone()
        state = changed[1, start]
        push = size * state.norm() * direction.to(state)
        changed[1, start] = state + push
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    ids = torch.tensor([list(text), list(text)])
    hook = lm.sites.blocks[layer].register_forward_hook(change)
    try:
        last = (lm.layers[-1],)
        with torch.no_grad(), tapped(lm.sites, last, lambda _, hidden: found.append(hidden.clone()), stop=True):
            lm.model(**forward_arguments(lm.model, ids, torch.ones_like(ids)))
    finally:
        hook.remove()
    states = rows_of(found[0]).double().cpu().numpy()
    out = np.linalg.norm(states[1] - states[0], axis=-1)
    if out[:start].any():
        raise CertificateError(f"a causal model must not change before the changed token; {lm.name} does: C4 is void")
    return np.asarray(out)


def lyapunov_slope(
    lm: LanguageModel, text: Sequence[int], start: int, layer: int, *, size: float = 1e-2, seed: int = 0
) -> float | None:
    """Return the C4 slope of one text (see the module), None where fewer than 6 tokens follow or nothing reaches them.

    Raises what `distances` raises.
    """
    after = distances(lm, text, start, layer, size=size, seed=seed)[start + 1 :]
    if len(after) < FEWEST_STATES or not (after > 0).all():
        return None
    return slope(np.log(after))
