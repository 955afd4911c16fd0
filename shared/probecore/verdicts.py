"""From an estimate with its interval to a verdict on a claim: the rules, fixed before any number is seen.

Conventions. A claim holds where the true value lies strictly between `low` and `high` (either may be infinite), and
fails where it lies beyond `fails_below` or `fails_above`, which are `low` and `high` unless a claim says otherwise. All
intervals are 95 % and two-sided. Then

    supported      the whole interval lies where the claim holds, and where the claim needs a test, p <= .05
    contradicted   the whole interval lies where the claim fails
    not decided    everything else: the interval reaches into both, there is no interval, the design was refused

"At chance", "similar" and "little more" are claims of equivalence: they hold inside a margin, and only an interval that
lies inside it supports them. A p above .05 never supports anything; a p below it does not contradict a claim of
equivalence, as an effect may be sure and small. This is the interval form of two one-sided tests (Schuirmann 1987) at
.025 each, stricter than the usual .05. An end of the interval on the border of a region decides nothing.

"X is lost without layer k" is measured beyond a random change of the same size. A random change that does as much harm,
or more, contradicts nothing, as it may leave what the network knows; such a claim fails where the loss itself, not
compared with anything, is surely `negligible`.

Each verdict is at its own level of error; of 20 claims one may come out wrong by chance.
"""

import math
from dataclasses import dataclass

from probecore.errors import InputError

SUPPORTED, CONTRADICTED, NOT_DECIDED = "supported", "contradicted", "not decided"
LEVEL = 0.05


@dataclass(frozen=True)
class Rule:
    """Where a claim holds, and where it fails.

    low, high : the claim holds strictly between them.
    fails_below, fails_above : it fails beyond them; None takes low and high. "Above chance" holds above 0, and fails
        where the value is below the smallest that would matter: that a value is exactly 0 cannot be shown.
    needs_p : the claim is about a test, so that the interval alone does not support it.
    negligible : it also fails where the evidence's `plain_high` lies below this; None where there is no such end.
    """

    low: float = -math.inf
    high: float = math.inf
    fails_below: float | None = None
    fails_above: float | None = None
    needs_p: bool = False
    negligible: float | None = None

    def __post_init__(self) -> None:
        """Refuse a rule under which every value, or none, holds."""
        if not self.low < self.high or (math.isinf(self.low) and math.isinf(self.high)):
            raise InputError(f"a claim must hold somewhere and not everywhere; got {self.low:g} to {self.high:g}")

    @property
    def refuted_below(self) -> float:
        """The claim fails below this value."""
        return self.low if self.fails_below is None else self.fails_below

    @property
    def refuted_above(self) -> float:
        """The claim fails above this value."""
        return self.high if self.fails_above is None else self.fails_above

    def __str__(self) -> str:
        """Say the rule in words."""
        test = f" and p <= {LEVEL:g}" if self.needs_p else ""
        fails = [f"interval below {self.refuted_below:g}"] if math.isfinite(self.refuted_below) else []
        fails += [f"interval above {self.refuted_above:g}"] if math.isfinite(self.refuted_above) else []
        fails += [] if self.negligible is None else [f"interval of the loss itself below {self.negligible:g}"]
        return f"supported: interval {_where(self)}{test}; contradicted: {' or '.join(fails)}"


@dataclass(frozen=True)
class Evidence:
    """What was measured for one claim; None where a number does not exist, with the reason in `reason` or `p_note`.

    value, low, high : estimate and 95 % interval, in `unit`.
    p_value : of the test named in `p_note`, or None and the reason there.
    reason : why there is no estimate or no interval.
    detail : what a reader should know beside the numbers.
    plain_high : upper end of the effect that is not compared with a control, where `value` is.
    n_items, n_clusters : observations (clips, prompts), and what was resampled (speakers, families of prompts).
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    p_note: str = ""
    reason: str = ""
    detail: str = ""
    unit: str = ""
    plain_high: float | None = None
    n_items: int | None = None
    n_clusters: int | None = None


def judge(rule: Rule, evidence: Evidence) -> tuple[str, str]:
    """Return the verdict and why.

    >>> judge(Rule(low=0), Evidence(0.2, 0.1, 0.3))
    ('supported', 'the interval lies above 0')
    >>> judge(Rule(low=-0.1, high=0.1), Evidence(0.02, -0.15, 0.19, p_value=0.6))[0]
    'not decided'
    """
    missing = _missing(evidence)
    if missing:
        return NOT_DECIDED, missing
    value, low, high = evidence.value, evidence.low, evidence.high
    assert value is not None and low is not None and high is not None  # `_missing` has seen to it
    if not low <= value <= high:
        raise InputError(f"an estimate must lie in its interval; got {value:g} and [{low:g}, {high:g}]")
    # an end of the interval that does not exist (a bound) lies inside a region that has no end on that side
    inside = (rule.low < low or math.isinf(rule.low)) and (high < rule.high or math.isinf(rule.high))
    if inside and not rule.needs_p:
        return SUPPORTED, f"the interval lies {_where(rule)}"
    if inside and evidence.p_value is not None and evidence.p_value <= LEVEL:
        return SUPPORTED, f"the interval lies {_where(rule)}, and p <= {LEVEL:g}"
    if high < rule.refuted_below:
        return CONTRADICTED, f"the interval lies below {rule.refuted_below:g}"
    if low > rule.refuted_above:
        return CONTRADICTED, f"the interval lies above {rule.refuted_above:g}"
    if rule.negligible is not None and evidence.plain_high is not None and evidence.plain_high < rule.negligible:
        return CONTRADICTED, f"the loss itself is below {rule.negligible:g}"
    if inside:
        known = "there is no p" if evidence.p_value is None else f"p is above {LEVEL:g}"
        return NOT_DECIDED, f"the interval lies {_where(rule)}, but {known}"
    return NOT_DECIDED, _undecided(rule, low, high)


def _missing(evidence: Evidence) -> str:
    if evidence.value is None or not math.isfinite(evidence.value):
        return evidence.reason or "there is no estimate"
    ends = (evidence.low, evidence.high)
    if any(end is None or math.isnan(end) for end in ends):
        return evidence.reason or "there is no interval"
    return ""


def _where(rule: Rule) -> str:
    if math.isinf(rule.high):
        return f"above {rule.low:g}"
    return f"below {rule.high:g}" if math.isinf(rule.low) else f"inside {rule.low:g} to {rule.high:g}"


def _undecided(rule: Rule, low: float, high: float) -> str:
    """Name the border of the claim that the interval holds."""
    borders = {rule.low, rule.high, rule.refuted_below, rule.refuted_above}
    held = sorted(border for border in borders if math.isfinite(border) and low <= border <= high)
    if held:
        return f"the interval holds {' and '.join(f'{border:g}' for border in held)}: both are possible"
    if rule.negligible is not None:
        return f"a random change of that size harms more, and the loss itself is not surely below {rule.negligible:g}"
    return "the interval lies between where the claim holds and where it fails"
