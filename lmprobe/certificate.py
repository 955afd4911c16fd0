"""Certificate: what is true of this very model, measured when it is opened, and what is refused because it is not.

Gaps are the largest absolute difference, 0 means bit for bit. What is checked (`lmprobe.certify` measures it):

* taps        every block's tapped output is the matching entry of transformers' own `hidden_states`
* final norm  norm(output of the last block) is the last entry of `hidden_states`
* read-out    the last block's output, read out through the model's own tail, gives the model's logits
* causal      the states of a text do not depend on what follows it
* cache       a single pass has the same states with and without a key/value cache
* left padding, right padding   a prompt in a padded batch has the states it has alone, up to rounding

Of an encoder only the taps, the final norm and padding on the right are checked; the rest is "not applicable".

The padding gaps give the noise floor, never below the resolution of the dtype: a difference between two prompts' states
below it means nothing. An operation that needs a check that failed is refused (`Certificate.require`), with the way to
override the assumption.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from probecore.errors import CertificateError


@dataclass(frozen=True)
class Check:
    """One check: `holds` is None where it could not be made; `gap` is the largest absolute difference."""

    name: str
    holds: bool | None
    gap: float | None = None
    note: str = ""

    def __str__(self) -> str:
        verdict = {True: "holds", False: "FAILS", None: "not checked"}[self.holds]
        gap = "" if self.gap is None else " bit for bit" if self.gap == 0 else f" within {self.gap:.1e}"
        return f"{self.name:14s} {verdict}{gap}{f' ({self.note})' if self.note else ''}"


@dataclass(frozen=True)
class Certificate:
    """The checks of one model and the facts they rest on; `str()` gives it as short text, `to_json()` as a record.

    copies : residual streams side by side (1 in nearly every model). width : features of one state (all copies).
    returns : length of the tuple each block returns, 0 for a bare tensor.
    cached : single passes are run with a cache, because without one they differ from generation.
    noise : largest change of a state by padding, per layer name, relative to that layer's root mean square.
    """

    checks: tuple[Check, ...]
    blocks_path: str
    norm_path: str | None
    n_blocks: int
    width: int
    copies: int
    returns: tuple[int, ...]
    convention: str
    cached: bool = False
    noise: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def check(self, name: str) -> Check:
        """Return one check by name."""
        return next(check for check in self.checks if check.name == name)

    def holds(self, name: str) -> bool:
        """Tell whether a check was made and holds."""
        return self.check(name).holds is True

    @property
    def noise_floor(self) -> float:
        """Largest relative change of any state by padding."""
        return max(self.noise.values(), default=float("nan"))

    def require(self, *names: str) -> None:
        """Raise `CertificateError` unless these checks hold.

        "taps" is also satisfied by "read-out": where transformers shows no hidden states to compare with, the last
        block is the right one when its output gives the logits.
        """
        for name in names:
            check = self.check(name)
            if check.holds or (name == "taps" and check.holds is None and self.holds("read-out")):
                continue
            raise CertificateError(
                f"the certificate of this model must hold for {name!r}; it says: {' '.join(str(check).split())}: "
                + _NEXT_STEP[name]
            )

    def to_json(self) -> dict[str, Any]:
        """Return the certificate with JSON types only."""
        record = asdict(self)
        record["returns"], record["noise"] = list(self.returns), dict(self.noise)
        record["checks"] = [asdict(check) for check in self.checks]
        return record

    def __str__(self) -> str:
        norm = self.norm_path or "none"
        copies = f" in {self.copies} copies" if self.copies > 1 else ""
        head = f"{self.n_blocks} blocks at {self.blocks_path}, width {self.width}{copies}, final norm {norm}"
        lines = [head, f"hidden_states: {self.convention}", *map(str, self.checks)]
        lines.append(f"noise floor    {self.noise_floor:.1e} of a state's root mean square")
        return "\n".join(lines)


_NEXT_STEP = {
    "taps": "name the block list with blocks=",
    "final norm": "name the final norm with final_norm=",
    "read-out": "states cannot be turned into logits on this model; probes of the states still work",
    "causal": "open a decoder (is_decoder=True in its config)",
    "cache": "generate with use_cache=True",
    "left padding": "generate one prompt at a time: deterministic=True",
    "right padding": "capture one prompt at a time: deterministic=True",
}
