"""Specs of grokking members: the task, what cannot be trained, sizes, records and grids."""

import dataclasses

import numpy as np
import pytest
from planted_members import TINY

from lmprobe.grokking.spec import Spec, grid, spec_of
from lmprobe.grokking.task import Task, discrete_logarithms
from probecore import InputError


def test_the_task_is_arithmetic() -> None:
    task = Task(7, ("add", "mul"))
    for (a, op, b, equals), answer in zip(task.tokens.tolist(), task.answers.tolist(), strict=True):
        assert equals == 7 and answer == ((a + b) % 7 if op == 8 else (a * b) % 7)
    assert len({tuple(row) for row in task.tokens.tolist()}) == task.n_inputs == 98
    assert (task.answers[task.operation == 1] == 0).sum() == 2 * 7 - 1  # the giant class of multiplication


@pytest.mark.parametrize("p", [5, 13, 97])
def test_discrete_logarithms_turn_products_into_sums(p: int) -> None:
    logs = discrete_logarithms(p)
    assert sorted(logs.tolist()) == list(range(p - 1))
    a, b = np.meshgrid(np.arange(1, p), np.arange(1, p))
    assert (logs[a * b % p - 1] == (logs[a - 1] + logs[b - 1]) % (p - 1)).all()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"p": 9}, "prime"), ({"ops": ("add", "add")}, "operations"), ({"ops": ("sub",)}, "operations"),
        ({"fraction": 0.01, "p": 13}, "batch"), ({"fraction": 1.0}, "batch"), ({"init": "uniform"}, "init"),
        ({"width": 30}, "multiple"), ({"lr": 0.0}, "lr"), ({"norm": "none"}, "norm"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"adversarial": 0.1, "adversarial_k": 128}, "adversarial_k"),
    ],
)  # fmt: skip
def test_a_spec_that_cannot_be_trained_is_refused_in_one_line(settings: dict, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        Spec(**settings).shape.task  # noqa: B018
    assert "\n" not in str(caught.value)


def test_parameter_counts_are_those_of_the_log() -> None:
    sizes = {(2, 128): 422_497, (1, 128): 224_225, (1, 64): 63_009, (1, 32): 19_265}
    assert {k: Spec(layers=k[0], width=k[1]).shape.n_parameters for k in sizes} == sizes
    assert Spec(ops=("add", "mul")).shape.n_parameters == 422_497 + 128
    for (layers, d), n in sizes.items():  # 12 d² + 13 d a block, 99 tokens, 4 positions, a norm, a head with bias
        assert n == layers * (12 * d * d + 13 * d) + 99 * d + 4 * d + 2 * d + 97 * d + 97


def test_records_of_specs_come_back_and_name_everything() -> None:
    spec = dataclasses.replace(TINY, seed=3, adversarial=0.1)
    assert spec_of(spec.record()) == spec
    assert len({spec.key, *(dataclasses.replace(spec, **{"lr": x}).key for x in (1e-3, 2e-3, 3e-3))}) == 3
    with pytest.raises(InputError, match="fields"):
        spec_of({**spec.record(), "other": 1})


def test_grids_take_the_data_seed_along() -> None:
    members = grid(TINY, seed=[4, 5], weight_decay=[0.0, 1.0])
    assert [(s.seed, s.data_seed) for s in members] == [(4, 4), (4, 4), (5, 5), (5, 5)]
    assert [s.data_seed for s in grid(TINY, seed=[4, 5], data_seed=[9])] == [9, 9]
