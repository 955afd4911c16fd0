"""Modular arithmetic: every input, its answer, and the tokens of `a op b =`.

Conventions. p is the modulus, a prime; numbers are the token ids 0 .. p-1, "=" is p, the operations follow in the order
of `ops`, so that the vocabulary has p + 1 + |ops| tokens. Inputs are ordered by operation, then a, then b; there are
N = |ops| p². Multiplication has one large class: a b = 0 for 2p - 1 of the p² inputs.

>>> task = Task(5, ("add", "mul"))
>>> task.tokens[26].tolist(), int(task.answers[26]), task.names[-3:]
([0, 7, 1, 5], 0, ('=', '+', '*'))
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from probecore.errors import InputError
from probecore.validation import at_least

Ints = NDArray[np.int64]

SYMBOLS = {"add": "+", "mul": "*"}
LENGTH = 4  # tokens of one input: a, op, b, =


@dataclass(frozen=True)
class Task:
    """All inputs of addition, multiplication or both modulo a prime p.

    Raises `InputError` for a modulus that is no prime of at least 5, for an unknown or repeated operation.
    """

    p: int = 97
    ops: tuple[str, ...] = ("add",)

    def __post_init__(self) -> None:
        at_least(self.p, 5, "p")
        if any(self.p % n == 0 for n in range(2, int(self.p**0.5) + 1)):
            raise InputError(f"the modulus must be a prime, so that every number but 0 has an inverse; got {self.p}")
        if not self.ops or len(set(self.ops)) < len(self.ops) or set(self.ops) - set(SYMBOLS):
            raise InputError(f"operations must be add, mul or both, each once; got {', '.join(self.ops) or 'none'}")

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return self.p + 1 + len(self.ops)

    @property
    def names(self) -> tuple[str, ...]:
        """Text of each token, by id."""
        return (*map(str, range(self.p)), "=", *(SYMBOLS[op] for op in self.ops))

    @property
    def n_inputs(self) -> int:
        """Number of inputs of all operations."""
        return len(self.ops) * self.p**2

    @cached_property
    def operation(self) -> Ints:
        """Index into `ops` of each input, (N,)."""
        return np.repeat(np.arange(len(self.ops)), self.p**2)

    @cached_property
    def tokens(self) -> Ints:
        """Token ids of each input, (N, 4)."""
        a, b = self._pairs
        n = len(self.ops)
        columns = (np.tile(a, n), self.p + 1 + self.operation, np.tile(b, n), np.full(self.n_inputs, self.p))
        return np.stack(columns, axis=1)

    @cached_property
    def answers(self) -> Ints:
        """Answer of each input, (N,)."""
        a, b = self._pairs
        return np.concatenate([{"add": a + b, "mul": a * b}[op] % self.p for op in self.ops])

    @property
    def _pairs(self) -> tuple[Ints, Ints]:
        return np.repeat(np.arange(self.p), self.p), np.tile(np.arange(self.p), self.p)


def discrete_logarithms(p: int) -> Ints:
    """Return the exponents (p - 1,) of 1 .. p-1 to the smallest primitive root of the prime p.

    The product of two numbers has the sum of their exponents modulo p - 1, so multiplication is addition of exponents.

    >>> discrete_logarithms(5).tolist()  # powers of 2: 1, 2, 4, 3
    [0, 1, 3, 2]
    """
    for root in range(2, p):
        powers = [1]
        while len(powers) < p - 1 and (powers[-1] * root) % p != 1:
            powers.append(powers[-1] * root % p)
        if len(powers) == p - 1:
            logs = np.empty(p - 1, dtype=np.int64)
            logs[np.array(powers) - 1] = np.arange(p - 1)
            return logs
    raise InputError(f"a primitive root needs a prime of at least 3; got {p}")
