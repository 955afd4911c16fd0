"""The notes' claims on synthetic evidence: every verdict of every claim can be reached, and only as the rules say."""

import math

import pytest

from codecprobe.notes_claims import CLAIMS, PARTS
from probecore.verdicts import CONTRADICTED, NOT_DECIDED, SUPPORTED, Evidence, judge


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
