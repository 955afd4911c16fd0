"""The search as a function of labels, and its nulls: p is uniform where labels mean nothing, choice included."""

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import LlamaConfig, LlamaForCausalLM
from zoo import WORDS, tokenizer

from lmprobe import LanguageModel, ProjectOut, intervened, wrap_model
from lmprobe.candidates import difference_in_means
from lmprobe.partition import SPLITS
from lmprobe.refusal_nulls import NULLS, Null, effect_of, exchanged, null, weighted_noise
from lmprobe.refusal_score import first_token_log_probs, given_tokens, refusal_log_odds
from lmprobe.refusal_search import Study, odds_on_test, prepare, search
from probecore import DesignError, InputError

pytestmark = pytest.mark.transformers
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m['content'] + ' ' }}{% endfor %}<user> <system> <assistant>"


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    """A random Llama of 5 blocks and 3 end tokens: 9 candidates, so that there is something to choose."""
    config = LlamaConfig(
        vocab_size=128, hidden_size=16, intermediate_size=24, num_hidden_layers=5, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 2 and "layers" in name:
                    parameter.mul_(15.0)  # blocks that move the stream by its own size
            model.lm_head.weight.mul_(30.0)
    return wrap_model(model, tokenizer(TEMPLATE), name="random")


def study(lm: LanguageModel, seed: int, n: int = 8, *, tokens: tuple[str, ...] = ()) -> Study:
    """Prompts of 4 random words under two labels that mean nothing, n of each in each split."""
    rng = np.random.default_rng(seed)
    rows, kinds = {}, {}
    for name in SPLITS:
        kinds[name] = np.arange(2 * n) % 2 == 0
        rows[name] = lm.format_all([" ".join(rng.choice(WORDS[:60], 4, replace=False)) for _ in range(2 * n)])
    each = {name: np.arange(2 * n) for name in SPLITS}
    given = given_tokens(lm, tokens) if tokens else None
    return prepare(lm, rows, kinds, each, each, given=given)


def test_a_search_is_its_parts_one_after_another(lm: LanguageModel) -> None:
    """Slow form: one pass per candidate, the rule by hand. float32 log-odds of size 10: 2e-3."""
    found_in = study(lm, 0, tokens=("w3", "w9"))
    found = search(found_in, whole_grid=True)
    one, two = found_in.splits["extract"], found_in.splits["select"]
    candidates = difference_in_means(found_in.states, one.is_harmful, found_in.end.positions)
    assert found_in.end.positions == (-4, -3, -2, -1) and found_in.deepest == 4
    harmful = [row for row, bad in zip(two.rows, two.is_harmful, strict=True) if bad]
    for n, (p, block) in enumerate(found.places.tolist()):
        with intervened(lm, ProjectOut(candidates.vectors[p, block])):
            slow = refusal_log_odds(first_token_log_probs(lm, harmful), found.tokens.ids)
        assert found.scores.bypass[n] == pytest.approx(slow, abs=2e-3)
    means = found.scores.bypass.mean(axis=1), found.scores.induce.mean(axis=1), found.scores.kl.mean(axis=1)
    may = [
        n for n, (p, block) in enumerate(found.places.tolist())
        if p > 0 and block < 4 and (found.selection.relaxed or (means[1][n] >= 0 and means[2][n] <= 0.1))
    ]  # fmt: skip
    if found.selection.relaxed == ("induce",):
        may = [n for n in may if means[2][n] <= 0.1]
    best = min(may, key=lambda n: means[0][n])
    assert found.selection.index == best and (found.position, found.block) == (
        found_in.end.positions[found.places[best, 0]], found.places[best, 1],
    )  # fmt: skip
    narrow = search(found_in)
    assert (narrow.position, narrow.block) == (found.position, found.block), "what is never chosen changes nothing"
    assert len(narrow.places) == 9 < len(found.places)
    assert np.linalg.norm(found.unit) == pytest.approx(1, abs=1e-12)


def test_effects_are_those_of_removing_one_direction(lm: LanguageModel) -> None:
    """Against ProjectOut around one pass: 2e-3 in log-odds."""
    found_in = study(lm, 1, tokens=("w3",))
    found = search(found_in)
    test = found_in.splits["test"]
    with intervened(lm, ProjectOut(found.vector)):
        slow = refusal_log_odds(first_token_log_probs(lm, test.rows), found.tokens.ids)
    before, after = odds_on_test(found_in, found.vector[None], [found.tokens.ids])
    assert after[0] == pytest.approx(slow, abs=2e-3)
    assert before[0] == pytest.approx(refusal_log_odds(test.log_p, found.tokens.ids), abs=1e-12)
    effect, *both = effect_of(found_in, found)
    assert effect == pytest.approx((both[0] - both[1])[test.is_harmful].mean(), abs=1e-12)


def test_prompts_that_do_not_differ_have_no_direction(lm: LanguageModel) -> None:
    rows = {name: lm.format_all([f"w{i} w{i + 1}" for i in range(4)] * 2) for name in SPLITS}
    kinds = {name: np.arange(8) < 4 for name in SPLITS}
    each = {name: np.arange(8) for name in SPLITS}
    with pytest.raises(DesignError, match="equal mean states at all end positions"):
        search(prepare(lm, rows, kinds, each, each))


def test_the_end_is_shared_by_all_splits(lm: LanguageModel) -> None:
    """What the extract prompts alone have in common (their last word) is no end token."""
    rows = {name: [[1, 9 + i, 7 if name == "extract" else 20 + i, 4] for i in range(4)] for name in SPLITS}
    kinds = {name: np.arange(4) < 2 for name in SPLITS}
    each = {name: np.arange(4) for name in SPLITS}
    assert prepare(lm, rows, kinds, each, each).end.ids == (4,)


def test_labels_are_exchanged_as_units_allow() -> None:
    """Pairs keep one of each; pure units keep together; every labelling that can be is equally frequent."""
    rng = np.random.default_rng(0)
    twins = np.repeat(np.arange(3), 2)
    labels = np.tile([True, False], 3)
    drawn = [tuple(exchanged(labels, twins, rng).tolist()) for _ in range(4000)]
    counts = np.unique(drawn, axis=0, return_counts=True)[1]
    assert len(counts) == 8
    assert stats.chisquare(counts).pvalue > 1e-3
    units = np.array([0, 0, 1, 2])
    drawn = [tuple(exchanged(np.array([True, True, False, False]), units, rng).tolist()) for _ in range(3000)]
    labelings, counts = np.unique(drawn, axis=0, return_counts=True)
    assert {tuple(row) for row in labelings.tolist()} == {
        (True, True, False, False), (False, False, True, False), (False, False, False, True),
    }  # fmt: skip
    assert stats.chisquare(counts).pvalue > 1e-3


def test_p_is_uniform_where_labels_mean_nothing(lm: LanguageModel) -> None:
    """A random model, fresh prompts of one kind under two labels, the whole pipeline: tokens, directions, choice, test.

    40 runs with 9 permuted labelings, so p takes 10 values, each with probability .1. The counts must pass a chi-square
    test at 1e-3, and the share of p <= .1 and p <= .5 lie between the binomial quantiles .0005 and .9995. A null
    without the choice of the place (random directions that nobody chose) fails the same test: the chosen direction is
    the best of nine for these prompts, whatever their labels.
    """
    values, naive = [], []
    for seed in range(40):
        found_in = study(lm, 100 + seed)
        found = search(found_in)
        values.append(null(found_in, found, "permuted", 9, seed=seed).p_value)
        rng = np.random.default_rng(seed)
        unchosen = odds_on_test(found_in, rng.standard_normal((9, 16)), [found.tokens.ids] * 9)
        effects = (unchosen[0] - unchosen[1])[:, found_in.splits["test"].is_harmful].mean(axis=1)
        naive.append(Null("random", np.zeros((9, 16)), effects, effect_of(found_in, found)[0]).p_value)
    assert calibrated(values), np.bincount(np.round(np.multiply(values, 10)).astype(int))
    assert not calibrated(naive), np.bincount(np.round(np.multiply(naive, 10)).astype(int))


def calibrated(p: list[float]) -> bool:
    counts = np.bincount(np.round(np.multiply(p, 10)).astype(int), minlength=11)[1:]
    inside = True
    for level in (0.1, 0.5):
        low, high = stats.binom.ppf([5e-4, 1 - 5e-4], len(p), level)
        inside &= bool(low <= counts[: round(level * 10)].sum() <= high)
    return inside and stats.chisquare(counts).pvalue > 1e-3


def test_nulls_are_as_they_are_described(lm: LanguageModel) -> None:
    found_in = study(lm, 3)
    found = search(found_in)
    made = {kind: null(found_in, found, kind, 5, seed=1) for kind in NULLS}
    for kind, drawn in made.items():
        again = null(found_in, found, kind, 5, seed=1)
        assert np.array_equal(again.vectors, drawn.vectors) and np.array_equal(again.effects, drawn.effects), kind
        assert drawn.vectors.shape == (5, 16)
        assert drawn.p_value == pytest.approx((1 + (drawn.effects >= drawn.observed).sum()) / 6, abs=1e-12)
    norms = found.candidates.norms[found.candidates.exists]
    for vector in made["random"].vectors:
        assert np.abs(np.linalg.norm(vector) - norms).min() < 1e-9, "as long as the difference it stands for"
    with pytest.raises(InputError, match="kind"):
        null(found_in, found, "other", 5)
    with pytest.raises(InputError, match="n_replicates"):
        null(found_in, found, "random", 0)


def test_covariance_matched_noise_has_the_covariance_of_a_difference_of_means() -> None:
    """Directions drawn for states of known covariance: E v v^T = S (1/n_h + 1/n_b), S from the states themselves.

    4000 draws; an entry's standard error is at most sqrt(2) times the largest entry / sqrt(4000): 5 of them allowed.
    """
    rng = np.random.default_rng(2)
    mixed = rng.standard_normal((6, 6)) * np.arange(1, 7)
    kinds = np.arange(30) < 12
    states = (rng.standard_normal((30, 1, 1, 6)) @ mixed + 3 * kinds[:, None, None, None]).astype(np.float32)
    flat = states[:, 0, 0].astype(np.float64)
    expected = sum(np.cov(flat[k].T, ddof=1) / k.sum() for k in (kinds, ~kinds))
    drawn = np.stack([weighted_noise(states, kinds, rng)[0, 0] for _ in range(4000)])
    error = np.sqrt(2) * np.abs(expected).max() / np.sqrt(4000)
    assert np.abs(drawn.T @ drawn / 4000 - expected).max() < 5 * error
    assert np.abs(drawn.mean(axis=0)).max() < 5 * np.sqrt(np.diag(expected).max() / 4000), "the class means are out"
