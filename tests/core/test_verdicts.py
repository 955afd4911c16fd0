"""Verdict rules on synthetic evidence, and the rows of claims that were measured, refused or never reached."""

import math

import numpy as np
import pytest

from probecore.claims import Claim, Part, claim_figures, claim_rows, claim_tables, part_of, refusals
from probecore.errors import DesignError, InputError
from probecore.results import Figure, Result
from probecore.verdicts import CONTRADICTED, NOT_DECIDED, SUPPORTED, Evidence, Rule, judge

EQUIVALENT = Rule(-0.1, 0.1)
ABOVE = Rule(low=0.0, fails_below=0.1, needs_p=True)
LOST = Rule(low=0.0, fails_below=-math.inf, needs_p=True, negligible=0.1)


def around(value: float, half: float, **more: float) -> Evidence:
    return Evidence(value, value - half, value + half, **more)


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


# Claims as rows


def refused(run: str) -> Part:
    raise DesignError(f"{run}: too few")


CLAIMS = (
    Claim("seen", "it is there", "effect", ABOVE, "first"),
    Claim("unseen", "it is not measured", "effect", ABOVE, "first"),
    Claim("refused", "it cannot be measured", "effect", ABOVE, "second"),
)
MEASURED = Result(
    "part", ({"layer": 0, "value": 1.0},), tables={"curve": ({"x": 0.0},)},
    figures=(Figure("one", "lines"), Figure("two", "lines", "curve")),
)  # fmt: skip
PARTS = {
    "first": Part(MEASURED, {"seen": Evidence(0.3, 0.2, 0.4, p_value=0.01, n_items=20, n_clusters=5)}),
    "second": part_of(refused, "run 1"),
}


def test_no_claim_is_dropped_and_each_says_why() -> None:
    seen, unseen, none = claim_rows(CLAIMS, PARTS, "the model has 1 layer")
    assert (seen["verdict"], seen["value"], seen["n_items"], seen["n_clusters"]) == (SUPPORTED, 0.3, 20, 5)
    assert seen["rule"] == str(ABOVE)
    assert (unseen["verdict"], unseen["why"], unseen["value_note"]) == (NOT_DECIDED, *["the model has 1 layer"] * 2)
    assert (none["verdict"], none["why"], none["p_note"]) == (NOT_DECIDED, *["run 1: too few"] * 2)


def test_tables_and_figures_carry_the_name_of_their_part() -> None:
    tables = claim_tables(PARTS)
    assert set(tables) == {"first-rows", "first-curve"}
    assert [(figure.name, figure.table) for figure in claim_figures(PARTS)] == [
        ("first-one", "first-rows"),
        ("first-two", "first-curve"),
    ]
    assert refusals(PARTS) == ("second could not be measured: run 1: too few",)


def test_only_a_refused_design_becomes_a_reason() -> None:
    def broken(run: str) -> Part:
        raise InputError("no such file")

    with pytest.raises(InputError, match="no such file"):
        part_of(broken, "run")
