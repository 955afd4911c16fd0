"""Instruction end: where in a formatted prompt a refusal direction is read.

Conventions. The end tokens I are those that all formatted prompts end with, their longest common suffix of token ids:
what the chat template puts behind every instruction. Positions are negative and count from the end of the prompt: -1 is
the last token, -|I| the first end token, and -|I| - 1, `t_inst`, the last token of the instruction itself. Harm is read
at t_inst and refusal at the end tokens, some models suggest (arXiv 2507.11878). Without a template there may be no
common suffix; then t_inst, at -1, is the only position.

>>> find_end([[1, 5, 9, 8], [1, 6, 7, 9, 8]])
InstructionEnd(length=2, ids=(9, 8))
>>> find_end([[1, 5, 9, 8], [1, 6, 7, 9, 8]]).positions
(-3, -2, -1)
"""

from collections.abc import Sequence
from dataclasses import dataclass

from probecore.errors import DesignError, InputError


@dataclass(frozen=True)
class InstructionEnd:
    """The end tokens that prompts share: how many, and their ids."""

    length: int
    ids: tuple[int, ...]

    @property
    def positions(self) -> tuple[int, ...]:
        """Positions at which directions are read, t_inst first."""
        return tuple(range(-self.length - 1, 0))

    @property
    def instruction(self) -> int:
        """Position of t_inst, the last token of the instruction."""
        return -self.length - 1

    def select(self, row: Sequence[int]) -> range:
        """Return the places of the positions in one formatted prompt, counted from its start."""
        return range(len(row) - self.length - 1, len(row))

    def require(self, rows: Sequence[Sequence[int]]) -> None:
        """Raise `InputError` when a prompt does not end in these tokens, or has nothing before them."""
        wrong = [
            i
            for i, row in enumerate(rows)
            if len(row) <= self.length or tuple(row[len(row) - self.length :]) != self.ids
        ]
        if wrong:
            raise InputError(
                f"every prompt must end in the {self.length} end tokens of the extract split; prompt {wrong[0]} does "
                "not: format all prompts with one template"
            )


def find_end(rows: Sequence[Sequence[int]]) -> InstructionEnd:
    """Return the longest common suffix of formatted prompts that leaves at least one token of each.

    Raises `DesignError` with fewer than 2 different prompts: what they share is then the prompt, not its end.
    """
    if len({tuple(row) for row in rows}) < 2:
        raise DesignError("the end of an instruction is what different prompts share; got fewer than 2 different ones")
    most = min(len(row) for row in rows) - 1
    n = 0
    while n < most and len({row[len(row) - 1 - n] for row in rows}) == 1:
        n += 1
    first = list(rows[0])
    return InstructionEnd(n, tuple(first[len(first) - n :]))
