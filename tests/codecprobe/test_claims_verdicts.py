"""Verdict rules on synthetic evidence: every verdict of every claim can be reached, and only as the rules say."""

import math

import numpy as np
import pytest

from codecprobe.notes_claims import CLAIMS, PARTS
from codecprobe.verdicts import CONTRADICTED, NOT_DECIDED, SUPPORTED, Evidence, Rule, judge
from probecore.errors import InputError

EQUIVALENT = Rule(-0.1, 0.1)
ABOVE = Rule(low=0.0, fails_below=0.1, needs_p=True)
LOST = Rule(low=0.0, fails_below=-math.inf, needs_p=True, negligible=0.1)


def around(value: float, half: float, **more: float) -> Evidence:
    return Evidence(value, value - half, value + half, **more)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.key)
def test_every_verdict_of_every_claim_can_be_reached(claim) -> None:
    rule, tiny = claim.rule, 1e-3
    holds = (rule.low + 0.05) if math.isfinite(rule.low) else rule.high - 0.05
    assert judge(rule, around(holds, tiny, p_value=0.001))[0] == SUPPORTED
    if rule.negligible is not None:
        fails = around(-0.5, tiny, p_value=1.0, plain_high=rule.negligible - 0.01)
    elif math.isfinite(rule.refuted_below):
        fails = around(min(rule.refuted_below, rule.low) - 0.05, tiny, p_value=1.0)
    else:
        fails = around(rule.refuted_above + 0.05, tiny, p_value=0.001)
    assert judge(rule, fails)[0] == CONTRADICTED
    for border in (rule.low, rule.high):
        if math.isfinite(border):
            assert judge(rule, around(border, 0.4, p_value=0.001))[0] == NOT_DECIDED
    assert judge(rule, Evidence(reason="refused")) == (NOT_DECIDED, "refused")


def test_claims_are_named_once_and_belong_to_a_part() -> None:
    assert len({claim.key for claim in CLAIMS}) == len(CLAIMS)
    assert {claim.part for claim in CLAIMS} == set(PARTS)


def test_a_large_p_does_not_support_equivalence() -> None:
    """ "At chance (p = .55)" with an interval beyond the margin is an open question, not a finding."""
    verdict, why = judge(EQUIVALENT, Evidence(0.02, -0.08, 0.2, p_value=0.55))
    assert verdict == NOT_DECIDED
    assert "0.1" in why


def test_a_small_p_does_not_contradict_equivalence() -> None:
    assert judge(EQUIVALENT, Evidence(0.05, 0.02, 0.08, p_value=0.0001))[0] == SUPPORTED


@pytest.mark.parametrize(("low", "verdict"), [(1e-9, SUPPORTED), (0.0, NOT_DECIDED), (-1e-9, NOT_DECIDED)])
def test_an_end_on_the_border_decides_nothing(low: float, verdict: str) -> None:
    assert judge(Rule(low=0.0), Evidence(0.2, low, 0.4))[0] == verdict


@pytest.mark.parametrize(("p", "verdict"), [(0.05, SUPPORTED), (0.0501, NOT_DECIDED), (None, NOT_DECIDED)])
def test_a_claim_about_a_test_needs_its_p(p: float | None, verdict: str) -> None:
    assert judge(ABOVE, Evidence(0.3, 0.2, 0.4, p_value=p))[0] == verdict


def test_above_chance_is_contradicted_by_an_interval_below_what_matters_only() -> None:
    assert judge(ABOVE, Evidence(0.02, -0.04, 0.09, p_value=0.6))[0] == CONTRADICTED
    assert judge(ABOVE, Evidence(0.05, 0.01, 0.09, p_value=0.6))[0] == CONTRADICTED
    assert judge(ABOVE, Evidence(0.05, 0.01, 0.09, p_value=0.01))[0] == SUPPORTED  # small, but sure: `value` says so
    assert judge(ABOVE, Evidence(0.02, -0.04, 0.11, p_value=0.6))[0] == NOT_DECIDED


def test_a_random_change_that_harms_more_contradicts_nothing() -> None:
    worse = {"value": -0.4, "low": -0.5, "high": -0.3, "p_value": 0.001}
    verdict, why = judge(LOST, Evidence(**worse, plain_high=0.6))
    assert verdict == NOT_DECIDED and "a random change of that size harms more" in why
    assert judge(LOST, Evidence(**worse))[0] == NOT_DECIDED
    assert judge(LOST, Evidence(**worse, plain_high=0.09))[0] == CONTRADICTED


@pytest.mark.parametrize(
    "evidence",
    [
        Evidence(),
        Evidence(0.5),
        Evidence(0.5, None, 0.9),
        Evidence(0.5, 0.4, math.nan, p_value=0.001),
        Evidence(math.nan, 0.4, 0.6, p_value=0.001),
    ],
)
def test_without_an_estimate_or_an_interval_nothing_is_decided(evidence: Evidence) -> None:
    verdict, why = judge(Rule(low=0.0), evidence)
    assert verdict == NOT_DECIDED
    assert why


def test_an_estimate_outside_its_interval_is_refused() -> None:
    with pytest.raises(InputError, match="must lie in its interval"):
        judge(EQUIVALENT, Evidence(0.5, 0.1, 0.2))


@pytest.mark.parametrize("ends", [{}, {"low": 1.0, "high": 0.0}, {"low": 0.0, "high": 0.0}])
def test_a_rule_that_always_or_never_holds_is_refused(ends: dict[str, float]) -> None:
    with pytest.raises(InputError, match="must hold somewhere"):
        Rule(**ends)


@pytest.mark.parametrize(
    ("rule", "truth", "wrong"),
    [
        (EQUIVALENT, 0.1, SUPPORTED),
        (EQUIVALENT, 0.1, CONTRADICTED),
        (Rule(low=0.5), 0.5, SUPPORTED),
        (Rule(low=0.5), 0.5, CONTRADICTED),
    ],
)
def test_error_rates_at_the_border(rule: Rule, truth: float, wrong: str) -> None:
    """Studies of a truth on the border: one end of a 95 % interval excludes it in 2.5 % of them.

    4,000 studies with known sd .04: at most .025 + 4 sqrt(.025 * .975 / 4000) = .035, and not far below.
    """
    estimates = truth + 0.04 * np.random.default_rng(0).normal(size=4000)
    share = np.mean([judge(rule, around(x, 1.96 * 0.04))[0] == wrong for x in estimates])
    assert 0.015 <= share <= 0.035


def test_the_rule_is_said_in_words() -> None:
    assert str(EQUIVALENT) == (
        "supported: interval inside -0.1 to 0.1; contradicted: interval below -0.1 or interval above 0.1"
    )
    assert str(ABOVE) == "supported: interval above 0 and p <= 0.05; contradicted: interval below 0.1"
    assert str(LOST).endswith("contradicted: interval of the loss itself below 0.1")
