"""Parameters of a member: one flat vector, its views by name, and its initial values.

Conventions. A pack keeps the parameters of E members as one array (E, n); `views` gives them by name as (E, *shape)
without copying. Initial values come from a counter-based generator (Philox) keyed by the member's seed and the name of
the parameter: neither pack nor device nor the other parameters change them.
"""

import math

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lmprobe.grokking.spec import Shape, Spec
from probecore.seeds import seed_for


def philox(seed: int, *names: str | int) -> np.random.Generator:
    """Return the counter-based generator of one named use of chance of a seed."""
    return np.random.Generator(np.random.Philox(key=seed_for(seed, "grokking", *names)))


def views(flat: Tensor, shape: Shape) -> dict[str, Tensor]:
    """Return the parameters by name, (E, *shape), as views of a flat array (E, n)."""
    found, start = {}, 0
    for name, size in shape.parameters.items():
        n = math.prod(size)
        found[name] = flat[:, start : start + n].view(len(flat), *size)
        start += n
    return found


def initial(spec: Spec) -> NDArray[np.float32]:
    """Return the initial parameters of a member, (n,).

    `normal:s` and `fan-in` draw every matrix from N(0, s²) and N(0, 1/width), gains are 1, biases 0. `torch` follows
    torch.nn: embeddings N(0, 1), the joint query-key-value matrix Glorot uniform with zero bias, linear maps and their
    biases uniform within 1 / sqrt(inputs), the output map of attention without bias. `init_scale` multiplies matrices.
    """
    return np.concatenate([_draw(spec, name, size).ravel() for name, size in spec.shape.parameters.items()])


def _draw(spec: Spec, name: str, size: tuple[int, ...]) -> NDArray[np.float32]:
    rng = philox(spec.seed, "initial", name)
    if name.endswith(".gain"):
        return np.ones(size, dtype=np.float32)
    bound = _uniform_bound(spec, name, size) if spec.init == "torch" else None
    if name.endswith(".bias"):
        drawn = rng.uniform(-bound, bound, size) if bound else np.zeros(size)
        return drawn.astype(np.float32)
    if bound:
        return (spec.init_scale * rng.uniform(-bound, bound, size)).astype(np.float32)
    sd = {"torch": 1.0, "fan-in": spec.width**-0.5}.get(spec.init) or float(spec.init.removeprefix("normal:"))
    return (spec.init_scale * rng.normal(0.0, sd, size)).astype(np.float32)


def _uniform_bound(spec: Spec, name: str, size: tuple[int, ...]) -> float | None:
    """Return the bound of torch.nn's uniform initialisation, None where it is another or zero."""
    d = spec.width
    layer = name.split(".")[-2] if "." in name else name
    if layer == "qkv":
        return math.sqrt(6 / (d + 3 * d)) if name.endswith("weight") else None
    if layer == "out":
        return d**-0.5 if name.endswith("weight") else None
    return {"up": d**-0.5, "down": (4 * d) ** -0.5, "head": d**-0.5}.get(layer)
