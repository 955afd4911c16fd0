"""Spec: everything a trained member depends on. Two equal specs give the same weights on the same machine.

A pack is a set of members of one static shape and batch size (`Spec.shape`); weight decay, learning rate, data
fraction, seeds, the adversarial weight and the initialisation are each member's own.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from itertools import product
from typing import Any

from lmprobe.grokking.task import LENGTH, Task
from probecore.errors import InputError
from probecore.provenance import digest_of_record
from probecore.validation import at_least, one_of

BASES = ("class-mean", "random")
INITIALISATIONS = "normal:SD (as normal:0.02), fan-in (SD 1/sqrt(width)) or torch (the defaults of torch.nn)"


@dataclass(frozen=True)
class Shape:
    """What members of one pack share: the arrays have the same sizes and a step does the same work."""

    p: int
    ops: tuple[str, ...]
    layers: int
    width: int
    heads: int
    norm: str
    activation: str

    @property
    def task(self) -> Task:
        """The inputs."""
        return Task(self.p, self.ops)

    @cached_property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter, in the order in which they lie in a flat vector.

        A linear map is stored as (inputs, outputs). 12 d² + 13 d in each block; with 99 tokens, 4 positions and a head
        with biases the sizes of the research log come out: 422.5K, 224.2K, 63.0K, 19.3K.
        """
        d, p, v = self.width, self.p, self.task.vocabulary
        found: dict[str, tuple[int, ...]] = {"embed": (v, d), "position": (LENGTH, d)}
        for i in range(self.layers):
            for name, size in (("norm1", d), ("norm2", d)):
                found |= {f"{i}.{name}.gain": (size,), f"{i}.{name}.bias": (size,)}
            for name, inputs, outputs in (("qkv", d, 3 * d), ("out", d, d), ("up", d, 4 * d), ("down", 4 * d, d)):
                found |= {f"{i}.{name}.weight": (inputs, outputs), f"{i}.{name}.bias": (outputs,)}
        if self.norm == "pre":
            found |= {"norm.gain": (d,), "norm.bias": (d,)}
        return found | {"head.weight": (d, p), "head.bias": (p,)}

    @property
    def n_parameters(self) -> int:
        """Number of parameters."""
        total = 0
        for shape in self.parameters.values():
            size = 1
            for n in shape:
                size *= n
            total += size
        return total


@dataclass(frozen=True)
class Spec:
    """One member: task, model, initialisation, data, optimiser, removal-resistant loss, and when it stops.

    p, ops : the task. layers, width, heads, norm (pre, post), activation (gelu, relu) : the model.
    init : `normal:0.02`, `fan-in` or `torch`; init_scale multiplies every initial matrix. seed : of the initialisation.
    fraction : share of the inputs that is trained on. data_seed : of the split and the order of batches; None = seed.
    batch, lr, betas, eps, weight_decay, warmup, clip : AdamW with decoupled decay of every parameter, linear warm-up
        of the step size, clipping of the gradient's norm (0: none); batches without replacement.
    adversarial : weight lambda of the loss after `adversarial_k` directions are removed, added every
        `adversarial_every` steps after `adversarial_after`; 0 leaves it out. adversarial_basis : which directions, the
        first `class-mean` ones of the batch, or `random` ones, new at every such step (the control of the former).
    steps : at most. evaluate_every : steps between evaluations on all inputs. extra : steps that follow the grok step.
    stuck_after : a member with a training accuracy below .2 after so many steps is given up; 0 never.
    """

    p: int = 97
    ops: tuple[str, ...] = ("add",)
    layers: int = 2
    width: int = 128
    heads: int = 4
    norm: str = "pre"
    activation: str = "gelu"
    init: str = "normal:0.02"
    init_scale: float = 1.0
    seed: int = 0
    data_seed: int | None = None
    fraction: float = 0.5
    batch: int = 512
    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-8
    weight_decay: float = 1.0
    warmup: int = 10
    clip: float = 0.0
    adversarial: float = 0.0
    adversarial_k: int = 10
    adversarial_basis: str = "class-mean"
    adversarial_every: int = 10
    adversarial_after: int = 10_000
    steps: int = 50_000
    evaluate_every: int = 100
    extra: int = 500
    stuck_after: int = 20_000

    def __post_init__(self) -> None:
        object.__setattr__(self, "ops", tuple(self.ops))
        if self.data_seed is None:
            object.__setattr__(self, "data_seed", self.seed)
        for name in ("layers", "heads", "batch", "steps", "evaluate_every", "adversarial_every", "adversarial_k"):
            at_least(getattr(self, name), 1, name)
        for name in ("seed", "warmup", "extra", "stuck_after", "adversarial_after"):
            at_least(getattr(self, name), 0, name)
        at_least(self.width, 2 * self.heads, "width")
        one_of(self.norm, ("pre", "post"), "norm")
        one_of(self.activation, ("gelu", "relu"), "activation")
        one_of(self.adversarial_basis, BASES, "adversarial_basis")
        if self.width % self.heads:
            raise InputError(f"the width must be a multiple of the heads; got {self.width} and {self.heads}")
        if not re.fullmatch(r"torch|fan-in|normal:\d*\.?\d+(e-?\d+)?", self.init):
            raise InputError(f"init must be {INITIALISATIONS}; got {self.init!r}")
        for name in ("lr", "eps", "init_scale"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be above 0; got {getattr(self, name)}")
        for name in ("weight_decay", "clip", "adversarial"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} must be at least 0; got {getattr(self, name)}")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise InputError(f"betas must lie in [0, 1); got {self.beta1} and {self.beta2}")
        if self.adversarial and self.adversarial_k >= self.width:
            raise InputError(f"adversarial_k must be below the width {self.width}; got {self.adversarial_k}")
        n_inputs = self.shape.task.n_inputs
        if not 0 < self.fraction < 1 or not self.batch <= self.n_train < n_inputs:
            raise InputError(
                f"a batch of {self.batch} must fit into the training inputs and leave inputs to hold out; fraction "
                f"{self.fraction:g} of {n_inputs} gives {self.n_train}: take a smaller batch or another fraction"
            )

    @property
    def shape(self) -> Shape:
        """Return what a pack shares."""
        return Shape(self.p, self.ops, self.layers, self.width, self.heads, self.norm, self.activation)

    @property
    def n_train(self) -> int:
        """Number of inputs trained on."""
        return int(self.fraction * len(self.ops) * self.p**2 + 1e-6)

    @property
    def batches_per_epoch(self) -> int:
        """Batches made of one shuffle of the training inputs; what is left over waits for the next shuffle."""
        return self.n_train // self.batch

    @property
    def key(self) -> str:
        """Return a hash of everything in the spec: the name of the member's folder."""
        return digest_of_record(asdict(self))

    def record(self) -> dict[str, Any]:
        """Return the spec as JSON types."""
        return {**asdict(self), "ops": list(self.ops)}

    @property
    def size(self) -> str:
        """Return the size as the log writes it: 2L d128."""
        return f"{self.layers}L d{self.width}"


def spec_of(record: Mapping[str, Any]) -> Spec:
    """Return the spec of a record made by `Spec.record`; raises `InputError` for fields it does not have."""
    unknown = sorted(set(record) - {field.name for field in fields(Spec)})
    if unknown:
        raise InputError(f"a spec must have the fields of this version; got also {', '.join(unknown)}")
    return Spec(**{**record, "ops": tuple(record["ops"])})


def grid(base: Spec, **axes: Iterable[Any]) -> tuple[Spec, ...]:
    """Return a spec for every combination of the values of `axes`, which are named as the fields of `Spec`.

    A seed that varies takes the data seed with it, unless that is an axis too.

    >>> [(s.weight_decay, s.seed, s.data_seed) for s in grid(Spec(), weight_decay=[0.0, 1.0], seed=[0, 1])]
    [(0.0, 0, 0), (0.0, 1, 1), (1.0, 0, 0), (1.0, 1, 1)]
    """

    def combinations() -> Iterator[Spec]:
        for values in product(*axes.values()):
            changed = dict(zip(axes, values, strict=True))
            if "seed" in changed:
                changed.setdefault("data_seed", changed["seed"])
            yield replace(base, **changed)

    return tuple(combinations())
