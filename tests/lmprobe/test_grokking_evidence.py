"""Evidence for the claims of the research log, on planted members, and the verdicts that it leads to."""

import math
from dataclasses import replace

import numpy as np
import pytest
from planted_members import SMALL, member, point

from lmprobe.grokking import log_evidence, plans
from lmprobe.grokking.conditions import conditions, difference_row
from lmprobe.grokking.log_claims import CLAIMS, CONFOUNDS, LOGS_SIZE, PARTS
from lmprobe.grokking.spec import grid
from probecore.claims import Part, claim_rows
from probecore.verdicts import Rule, judge


@pytest.mark.parametrize(
    ("slow", "fast", "verdict"),
    [
        ([4000, 4400, 3800, 4100, 3900], [100, 110, 95, 100, 105], "supported"),
        ([100, 110, 95, 100, 105], [4000, 4400, 3800, 4100, 3900], "contradicted"),
        ([300, 290, 310, 320, 280], [300, 310, 290, 280, 320], "not decided"),
        ([None] * 5, [100, 200, 100, 100, 200], "supported"),
        ([4000] * 4, [100] * 4, "not decided"),
        ([4000] * 5, [100, None, 95, 100, 105], "not decided"),
    ],
)
def test_grok_ratios_lead_to_verdicts(slow: list[int | None], fast: list[int | None], verdict: str) -> None:
    """A member that never grokked enters the slower side with its last step (a bound), but decides nothing as the
    faster side; four seeds decide nothing."""
    make = [
        [member(replace(SMALL, seed=i, data_seed=i, weight_decay=w), g, last=5000) for i, g in enumerate(steps)]
        for w, steps in ((0.0, slow), (1.0, fast))
    ]
    first, second = conditions([m for group in make for m in group])
    found = log_evidence.grok_ratio(first, second)
    rule = next(c.rule for c in CLAIMS if c.key == "sooner")
    assert judge(rule, found)[0] == verdict
    if slow[0] is None:
        assert found.high == math.inf and found.value == pytest.approx(5000 / np.exp(np.log(fast).mean()))


def test_differences_are_paired_and_lost_seeds_decide_nothing() -> None:
    weak = [member(s, 300) for s in grid(replace(SMALL, weight_decay=0.1), seed=range(5))]
    one = [member(s, 300) for s in grid(SMALL, seed=range(5))]
    first, second = conditions([*weak, *one])
    points = [point(m, 500, k95=20 + m.spec.seed) for m in weak] + [
        point(m, 500, k95=10 + m.spec.seed + 0.1 * (m.spec.seed % 2)) for m in one
    ]
    found = log_evidence.compared(first, second, points, "k95", ("add",), 500)
    assert found.value == pytest.approx(10 - 0.04) and found.low > 9.8 and found.n_clusters == 5
    lost = log_evidence.compared(first, second, points[1:], "k95", ("add",), 500)
    assert lost.low is None and "only 4 of 5" in lost.reason


def test_differences_of_censored_numbers_are_bounds_or_nothing() -> None:
    """Censored values of the first condition make the difference a lower bound; of the second, there is none."""
    weak = [member(s, 300) for s in grid(replace(SMALL, weight_decay=0.1), seed=range(5))]
    one = [member(s, 300) for s in grid(SMALL, seed=range(5))]
    first, second = conditions([*weak, *one])
    points = [point(m, 500, k95=None, k95_censored=True) for m in weak]
    points += [point(m, 500, k95=10 + 0.1 * m.spec.seed, k95_censored=False) for m in one]
    bound = log_evidence.compared(first, second, points, "k95", ("add",), 500)
    assert (
        bound.value == pytest.approx(64 - 10.2)
        and bound.high == math.inf
        and judge(Rule(low=0), bound)[0] == "supported"
    )
    nothing = log_evidence.compared(second, first, points, "k95", ("add",), 500)
    assert judge(Rule(low=0), nothing)[0] == judge(Rule(high=0), nothing)[0] == "not decided"
    row = difference_row("k@95", second, first, [(10.0, 64.0)] * 5, "add", censored=(0, 5))
    assert row["value"] is None and "least they can be" in row["value_note"]


def test_overlap_is_read_beyond_chance_and_selective_kills_are_counted() -> None:
    both = replace(SMALL, ops=plans.BOTH)
    members = [member(s, 300) for s in grid(both, seed=range(5))]
    points = [point(m, 500, overlap=0.3 + 0.01 * m.spec.seed, selective_kill=7) for m in members]
    condition = conditions(members)[0]
    beyond = log_evidence.overlap_evidence(condition, points, 10, 500, beyond=True)
    assert beyond.value == pytest.approx(0.32 - 10 / 64)
    share = log_evidence.selective_share(condition, points, 500)
    assert share.value == 1 and share.low == pytest.approx(0.5655, abs=1e-3)  # Wilson, 5 of 5
    points[0].records["mul"]["selective_kill"] = None
    assert log_evidence.selective_share(condition, points, 500).value == 0.8


def test_every_claim_has_its_confound_and_its_evidence_is_named() -> None:
    keys = [claim.key for claim in CLAIMS]
    assert len(set(keys)) == len(keys) and set(keys) == set(CONFOUNDS) and set(LOGS_SIZE) <= set(keys)
    assert {claim.part for claim in CLAIMS} == set(PARTS)
    rows = claim_rows(CLAIMS, {name: Part(reason="not run") for name in PARTS})
    assert all(row["verdict"] == "not decided" and row["why"] == "not run" for row in rows)
