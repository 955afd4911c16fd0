"""The logit lens against closed forms and a slow loop written from the definitions.

Everything is float64. Tolerance: sums over at most 12 ids of numbers below 20; 1e-12 is a thousand roundings.
"""

import math

import numpy as np
import pytest
import torch

from probecore.errors import InputError
from probecore.lens import lens_divergence, logit_lens
from probecore.seeds import generator

LAYERS, ROWS, WIDTH, WORDS = 4, 7, 5, 12


def random_states(name, inner=(), layers=LAYERS):
    rng = generator(0, name)
    return [torch.tensor(rng.standard_normal((ROWS, *inner, WIDTH)), dtype=torch.float64) for _ in range(layers)]


HEAD = torch.tensor(generator(0, "head").standard_normal((WORDS, WIDTH)), dtype=torch.float64)


def read_out(layer, states):
    return states @ HEAD.T * (1 + layer)


def softmax(logits, allowed):
    """Slow: exact sums of Python floats over the ids that are allowed."""
    top = max(x for x, can in zip(logits, allowed, strict=True) if can)
    weights = [math.exp(x - top) if can else 0.0 for x, can in zip(logits, allowed, strict=True)]
    total = math.fsum(weights)
    return [w / total for w in weights]


def kl(p, q):
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def distribution(state, layer, allowed):
    return softmax(read_out(layer, state).double().tolist(), allowed)


MASKS = {
    "all ids": None,
    "one mask": torch.arange(WORDS) < 9,
    "a mask by row": (torch.arange(WORDS)[None] < 9) | (torch.arange(ROWS)[:, None] > 3),
}


def mask_of(allowed, row):
    if allowed is None:
        return [True] * WORDS
    return (allowed if allowed.ndim == 1 else allowed[row]).tolist()


@pytest.mark.parametrize("allowed", MASKS.values(), ids=MASKS)
def test_the_lens_is_its_definition(allowed):
    states = random_states("one")
    found = logit_lens(states, read_out, allowed=allowed)
    for row in range(ROWS):
        can = mask_of(allowed, row)
        final = distribution(states[-1][row], LAYERS - 1, can)
        word = int(np.argmax(final))
        for layer in range(LAYERS):
            p = distribution(states[layer][row], layer, can)
            entropy = -math.fsum(x * math.log(x) for x in p if x > 0)
            assert found.entropy[layer, row] == pytest.approx(entropy, abs=1e-12)
            assert found.kl_to_final[layer, row] == pytest.approx(kl(final, p), abs=1e-12)
            assert found.rank[layer, row] == 1 + sum(x > p[word] for x in p)
    assert (found.kl_to_final[-1] == 0).all() and (found.rank[-1] == 1).all()


@pytest.mark.parametrize("allowed", MASKS.values(), ids=MASKS)
def test_targets_and_most_probable_ids_are_their_definition(allowed):
    """Ids in order of probability by sorting; a target that is suppressed has probability 0."""
    states, targets = random_states("one"), [2, 11]
    found = logit_lens(states, read_out, allowed=allowed, targets=targets, top=3, rows=3)
    plain = logit_lens(states, read_out, allowed=allowed)
    assert found.target_rank.shape == found.target_log_prob.shape == (LAYERS, ROWS, 2)
    np.testing.assert_array_equal(found.rank, plain.rank)
    for row in range(ROWS):
        can = mask_of(allowed, row)
        assert found.final_id[row] == np.argmax(distribution(states[-1][row], LAYERS - 1, can))
        for layer in range(LAYERS):
            p = distribution(states[layer][row], layer, can)
            order = sorted(range(WORDS), key=lambda i: -p[i])
            assert found.top_id[layer, row].tolist() == order[:3]
            np.testing.assert_allclose(found.top_prob[layer, row], [p[i] for i in order[:3]], rtol=0, atol=1e-12)
            assert found.log_prob[layer, row] == pytest.approx(math.log(p[found.final_id[row]]), abs=1e-12)
            for k, target in enumerate(targets):
                if can[target]:
                    assert found.target_log_prob[layer, row, k] == pytest.approx(math.log(p[target]), abs=1e-12)
                    assert found.target_rank[layer, row, k] == 1 + order.index(target)
                else:
                    assert found.target_log_prob[layer, row, k] == -math.inf


@pytest.mark.parametrize("allowed", MASKS.values(), ids=MASKS)
def test_the_divergence_is_its_definition_and_not_symmetric(allowed):
    runs = [random_states(name) for name in ("one", "two", "three")]
    found = lens_divergence(runs, read_out, allowed=allowed)
    assert found.shape == (LAYERS, 3, 3, ROWS)
    for layer in range(LAYERS):
        for row in range(ROWS):
            p = [distribution(run[layer][row], layer, mask_of(allowed, row)) for run in runs]
            for a in range(3):
                for b in range(3):
                    assert found[layer, a, b, row] == pytest.approx(kl(p[a], p[b]), abs=1e-12)
    assert abs(found[1, 0, 1] - found[1, 1, 0]).max() > 1e-3


def test_closed_forms():
    """No logit differs: log V nats. One id allowed: 0. Odds of 3 to 1 against evens: by hand."""
    flat = [torch.zeros(2, 3)] * 2
    uniform = logit_lens(flat, lambda _, h: torch.zeros(len(h), 8))
    assert uniform.entropy == pytest.approx(math.log(8), abs=1e-12)
    assert (uniform.rank == 1).all()  # ties do not count against the first choice
    one = logit_lens(flat, lambda _, h: torch.randn(len(h), 8), allowed=torch.arange(8) == 3)
    assert (one.entropy == 0).all() and (one.rank == 1).all()
    three = torch.tensor([math.log(3.0), 0.0], dtype=torch.float64)
    both = lens_divergence([[torch.ones(1, 1)], [torch.zeros(1, 1)]], lambda _, h: h * three)
    assert both[0, 0, 1, 0] == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), abs=1e-12)
    assert both[0, 1, 0, 0] == pytest.approx(0.5 * math.log(2 / 3) + 0.5 * math.log(2), abs=1e-12)


def test_equal_states_differ_by_exactly_nothing():
    """T8: not by 1e-17 either; and a difference in a later layer leaves the first one untouched."""
    runs = [random_states("one", (3,)) for _ in range(3)]
    runs[2][-1] = runs[2][-1] + 1
    found = lens_divergence(runs, read_out)
    assert (found[:-1] == 0).all() and (found[-1, 0, 1] == 0).all()
    assert (found[-1, 0, 2] > 0).all()


def test_pieces_change_nothing_and_bound_what_is_read_out_at_once():
    """Rows are cut; equal up to the rounding of products of another shape."""
    runs = [random_states(name, (3,)) for name in ("one", "two")]
    sizes = []

    def counted(layer, states):
        sizes.append(len(states))
        return read_out(layer, states)

    whole, pieces = lens_divergence(runs, read_out), lens_divergence(runs, counted, rows=2)
    assert max(sizes) == 2 and pieces.shape == whole.shape == (LAYERS, 2, 2, ROWS, 3)
    np.testing.assert_allclose(pieces, whole, rtol=0, atol=1e-12)
    a, b = logit_lens(runs[0], read_out), logit_lens(runs[0], counted, rows=3)
    np.testing.assert_allclose(a.entropy, b.entropy, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(a.rank, b.rank)


def test_what_is_not_allowed_cannot_matter():
    """T4: a huge, even an infinite logit of a suppressed id changes no number."""
    runs = [random_states(name) for name in ("one", "two")]
    allowed = torch.arange(WORDS) < 9

    def loud(layer, states):
        logits = read_out(layer, states).clone()
        logits[..., 9:] = 1e9
        logits[..., 11] = math.inf
        return logits

    np.testing.assert_array_equal(
        lens_divergence(runs, loud, allowed=allowed), lens_divergence(runs, read_out, allowed=allowed)
    )
    quiet, masked = logit_lens(runs[0], loud, allowed=allowed), logit_lens(runs[0], read_out, allowed=allowed)
    np.testing.assert_array_equal(quiet.kl_to_final, masked.kl_to_final)
    assert not np.array_equal(masked.entropy, logit_lens(runs[0], read_out).entropy)


def test_what_cannot_be_read_is_refused():
    runs = [random_states(name) for name in ("one", "two")]
    with pytest.raises(InputError, match="at least 2 runs; got 1"):
        lens_divergence(runs[:1], read_out)
    with pytest.raises(InputError, match="equal shapes"):
        lens_divergence([runs[0], [state[1:] for state in runs[1]]], read_out)
    with pytest.raises(InputError, match="equal shapes"):
        lens_divergence([runs[0], runs[1][1:]], read_out)
    with pytest.raises(InputError, match="at least one allowed id"):
        logit_lens(runs[0], read_out, allowed=torch.zeros(WORDS, dtype=torch.bool))
    with pytest.raises(InputError, match="must be finite; got NaN"):
        logit_lens(runs[0], lambda _, h: h @ HEAD.T * math.nan)
    with pytest.raises(InputError, match=r"targets must be ids in \[0, 12\); got \[12, -1\]"):
        logit_lens(runs[0], read_out, targets=[3, 12, -1])
    with pytest.raises(InputError, match="at least one layer"):
        logit_lens([], read_out)
    with pytest.raises(InputError, match="allowed must have shape"):
        logit_lens(runs[0], read_out, allowed=torch.ones(1, ROWS, WORDS, dtype=torch.bool))
