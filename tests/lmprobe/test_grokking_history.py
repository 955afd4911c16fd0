"""The history of a member: its phases, its loss spikes, and why it stops."""

import dataclasses

from planted_members import TINY

from lmprobe.grokking.history import phases, spikes, stop_reason, wants_snapshot


def evaluation(step: int, train_acc: float, val_acc: float, sd: float = 1.0, loss: float = 1.0) -> dict:
    return {"step": step, "train_acc": train_acc, "val_acc_add": val_acc, "val_acc": val_acc, "logit_sd": sd,
            "train_loss": loss}  # fmt: skip


def test_phases_follow_their_rules_and_the_worst_operation_counts() -> None:
    each = [(0.1, 0.0), (0.99, 0.5), (1.0, 0.96), (1.0, 0.99), (0.5, 0.3), (1.0, 0.99), (1.0, 1.0), (1.0, 1.0)]
    history = [evaluation(100 * i, *both) for i, both in enumerate(each)]
    found = phases(history, 100)
    assert (found.memorise, found.half, found.nearly, found.grok, found.steady) == (100, 100, 200, 300, 500)
    both = [{**e, "val_acc_mul": 0.2} for e in history]
    assert phases(both, 100).grok is None
    assert spikes(history) == [400]


def test_no_spike_is_kept_or_ends_a_run() -> None:
    spec = dataclasses.replace(TINY, extra=200, steps=10_000)
    history = [evaluation(100, 1.0, 0.99)]
    assert wants_snapshot(history, ()) and stop_reason(spec, history) is None
    spike = [*history, evaluation(300, 0.4, 0.3)]
    assert not wants_snapshot(spike, (100,)) and stop_reason(spec, spike) is None
    after = [*spike, evaluation(400, 1.0, 1.0)]
    assert wants_snapshot(after, (100,)) and stop_reason(spec, after) == "grokked"
    assert not wants_snapshot(after, (100, 400))


def test_hopeless_members_stop() -> None:
    spec = dataclasses.replace(TINY, steps=30_000, stuck_after=5000)
    flat = [evaluation(s, 0.01, 0.01, sd=1e-5) for s in (100, 200, 300)]
    assert stop_reason(spec, flat[:2]) is None and stop_reason(spec, flat) == "collapsed"
    assert stop_reason(spec, [evaluation(5000, 0.1, 0.1)]) == "stuck"
    assert stop_reason(spec, [evaluation(5000, 0.3, 0.1)]) is None
    assert stop_reason(spec, [evaluation(100, 0.0, 0.0, loss=float("nan"))]) == "diverged"
    assert stop_reason(spec, [evaluation(30_000, 1.0, 0.5)]) == "steps"
