"""Plans: which members the experiments train."""

from dataclasses import replace

import pytest
from planted_members import member

from lmprobe.grokking import plans
from lmprobe.grokking.batch_size import FIXED, SCALED, arms, taken
from lmprobe.grokking.conditions import conditions
from lmprobe.grokking.spec import BASES


def test_the_arms_of_batch_sizes_meet_in_the_middle() -> None:
    found = conditions([member(s, 400) for s in plans.batch_sizes(True, [0])])
    by_arm = arms(found)
    assert [c.spec.batch for c in by_arm[FIXED]] == [c.spec.batch for c in by_arm[SCALED]] == [64, 128, 256, 512]
    for condition in by_arm[SCALED]:
        assert condition.spec.weight_decay / condition.spec.batch == 1 / 256
    first = by_arm[FIXED][0].members[0]
    assert (taken(first, "steps"), taken(first, "samples")) == (400, 400 * 64)
    assert len({s.steps * s.batch for s in plans.batch_sizes(True, [0])}) == 1  # fixed samples
    for quick, middle in ((True, 256), (False, 512)):  # evaluated after the same samples, up to the rounding of a step
        apart = [s.evaluate_every * s.batch / (25 * middle) for s in plans.batch_sizes(quick, [0])]
        assert 1 - 1 / 12 < min(apart) and max(apart) <= 1


@pytest.mark.parametrize("quick", [True, False])
def test_plans_hold_what_the_log_did(quick: bool) -> None:
    if not quick:
        inits = len(plans.INITS) - 1  # an axis that the log lacks
        assert len(plans.sweep(False, [0])) == 17 + inits + 2  # and two decays from the first of them
        assert {s.p for s in plans.sweep(False, [0])} == {97}
    assert len(plans.population(quick, range(10))) == 50
    alone = [s for s in plans.multitask(quick, [0]) if len(s.ops) == 1]
    assert [s.ops for s in alone] == [("add",), ("mul",)]
    plain = [s for s in plans.adversarial(quick, [0]) if not s.adversarial]
    assert set(plain) <= set(plans.multitask(quick, [0]))  # the same members, trained once
    against = plans.adversarial(quick, [0], weights=[0.1, 1.0], ks=[5, 10])
    own, random = ([s for s in against if s.adversarial_basis == basis and s.adversarial] for basis in BASES)
    assert [replace(s, adversarial_basis="random") for s in own] == random and len(own) == 4  # a control for each
    inits = {s.init for s in plans.capacity(quick, [0]) if s.width == 32}
    assert len(inits) >= 2
