"""Refusal score, end positions, candidate directions, their scores, and the rule that chooses one."""

import json

import numpy as np
import pytest
import torch
from conftest import REAL_DATA
from zoo import PROMPTS, TEMPLATE, opened, tiny, tokenizer

from lmprobe import capture, wrap_model
from lmprobe.candidate_scores import candidate_scores
from lmprobe.candidates import describe_candidates, difference_in_means, end_states
from lmprobe.direction_selection import expected_best, near_best, select_direction
from lmprobe.instruction_end import InstructionEnd, find_end
from lmprobe.interventions import Add, ProjectOut, intervened
from lmprobe.refusal_score import (
    first_token_kl,
    first_token_log_probs,
    given_tokens,
    refusal_log_odds,
    refusal_tokens,
)
from probecore import DesignError, InputError

RNG = np.random.default_rng(0)
LOGITS = torch.from_numpy(RNG.normal(0, 3, (6, 40)))
# model -> candidates, blocks, candidates left, winner (position, layer), its score
STORED = {
    "gemma-2b-it": (90, 18, 13, (-2, 10), -14.42, (-1, 12), -14.30),
    "llama-2-7b-chat-hf": (192, 32, 5, (-1, 14), -5.62, (-4, 15), -4.27),
    "meta-llama-3-8b-instruct": (160, 32, 25, (-5, 12), -9.86, (-2, 12), -9.59),
    "qwen-1_8b-chat": (120, 24, 12, (-2, 15), -5.06, (-1, 15), -5.02),
    "yi-6b-chat": (192, 32, 7, (-5, 20), -6.75, (-1, 22), -6.31),
}


def test_log_odds_are_those_of_probabilities() -> None:
    """log(p_R / (1 - p_R)) in float64: 1e-12 for probabilities that are not within 1e-4 of 0 or 1."""
    log_p = torch.log_softmax(LOGITS, dim=1)
    p = log_p.exp()[:, [3, 7]].sum(dim=1).numpy()
    assert refusal_log_odds(log_p, [3, 7]) == pytest.approx(np.log(p) - np.log1p(-p), abs=1e-12)
    assert refusal_log_odds(log_p, [3, 7], arditi_eps=True) == pytest.approx(
        np.log(p + 1e-8) - np.log(1 - p + 1e-8), abs=1e-12
    )


def test_log_odds_stay_exact_where_probabilities_run_out() -> None:
    """Logits (0, -1000): p = exp(-1000) is 0 in float64, the log-odds are -1000; with the eps they end at -18.4."""
    log_p = torch.log_softmax(torch.tensor([[0.0, -1000.0]], dtype=torch.float64), dim=1)
    assert refusal_log_odds(log_p, [1])[0] == -1000.0
    assert refusal_log_odds(log_p, [1], arditi_eps=True)[0] == pytest.approx(np.log(1e-8), abs=1e-6)


def test_kl_is_exact_and_the_published_form_is_not() -> None:
    """Against torch's own KL to 1e-12. The form with 1e-6 in the logarithms is negative on a large flat vocabulary."""
    base, edited = torch.log_softmax(LOGITS, dim=1), torch.log_softmax(LOGITS.flip(0), dim=1)
    expected = torch.nn.functional.kl_div(edited, base, log_target=True, reduction="none").sum(dim=1)
    assert first_token_kl(base, edited) == pytest.approx(expected.numpy(), abs=1e-12)
    assert (first_token_kl(base, base) == 0).all()
    size = 50_000
    flat = torch.full((1, size), -np.log(size), dtype=torch.float64)
    peaked = torch.log_softmax(torch.linspace(0, 6, size, dtype=torch.float64)[None], dim=1)
    assert first_token_kl(flat, peaked)[0] > 0.5
    assert first_token_kl(flat, peaked, arditi_eps=True)[0] < first_token_kl(flat, peaked)[0] - 0.01
    with pytest.raises(InputError, match="two distributions over one vocabulary"):
        first_token_kl(flat, base)


def test_refusal_tokens_are_those_that_open_answers_to_harmful_prompts() -> None:
    def peaked(tokens: list[int]) -> torch.Tensor:
        logits = torch.zeros(len(tokens), 128, dtype=torch.float64)
        logits[torch.arange(len(tokens)), torch.tensor(tokens)] = 9.0
        return torch.log_softmax(logits, dim=1)

    lm = opened("llama")
    found = refusal_tokens(lm, peaked([10] * 6 + [11] * 3 + [12]), peaked([12] * 9 + [11]))
    assert found.ids == (10, 11) and found.note == ""
    assert (found.harmful, found.harmless) == pytest.approx((0.9, 0.1), abs=1e-12)
    weak = refusal_tokens(lm, peaked([12] * 10), peaked([12] * 10))
    assert len(weak.ids) == 1 and "it may be no refusal" in weak.note
    assert given_tokens(lm, ["w3", "w9"]).texts == ("w3", "w9")
    with pytest.raises(InputError, match="must be some of 40 token ids, not all"):
        refusal_log_odds(LOGITS, list(range(40)))


@pytest.mark.transformers
def test_first_token_log_probs_are_those_of_the_model() -> None:
    """float32 in batches padded on the left against one prompt at a time: 1e-4 in log-probability."""
    lm = opened("llama")
    rows = lm.format_all(PROMPTS)
    found = first_token_log_probs(lm, rows)
    for i, row in enumerate(rows):
        with torch.no_grad():
            alone = lm.model(torch.tensor([row])).logits[0, -1].double()
        assert found[i].numpy() == pytest.approx(torch.log_softmax(alone, dim=0).numpy(), abs=1e-4)


@pytest.mark.transformers
def test_the_end_is_what_the_template_puts_behind_every_instruction() -> None:
    chat = wrap_model(tiny("llama"), tokenizer(TEMPLATE), name="chat")
    end = find_end(chat.format_all(PROMPTS))
    assert [chat.tokenizer.convert_ids_to_tokens(i) for i in end.ids] == ["<assistant>"]
    assert end.positions == (-2, -1) and end.instruction == -2
    raw = find_end(opened("llama").format_all(PROMPTS))
    assert raw.length == 0 and raw.positions == (-1,), "without a template only the last token is there"
    assert find_end([[9, 1, 2], [1, 2]]).length == 1, "a token of each prompt is left"
    with pytest.raises(DesignError, match="fewer than 2 different"):
        find_end([[1, 2], [1, 2]])
    with pytest.raises(InputError, match="every prompt must end in the 1 end tokens"):
        InstructionEnd(1, (5,)).require([[1, 5], [1, 6]])


@pytest.mark.transformers
def test_states_are_the_inputs_of_blocks_at_the_end() -> None:
    """Against capture of one position at a time; batches differ, so float32 rounding (1e-4 of states of size 10)."""
    lm = opened("gpt2")
    rows = lm.format_all(PROMPTS)
    end = InstructionEnd(0, ())
    found = end_states(lm, rows, end)
    assert found.shape == (4, 1, 3, 64)
    for layer, name in enumerate(("embed", "block 0", "block 1")):
        last = capture(lm, rows, layers=name, at="last").values(name)
        assert found[:, 0, layer] == pytest.approx(last, abs=1e-3)


def made_states(n: int = 40, shift: float = 2.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    states = rng.normal(0, 1, (n, 2, 3, 16)).astype(np.float32)
    kinds = np.arange(n) % 2 == 0
    states[kinds, 1, 2, 0] += shift
    return states, kinds


def test_difference_in_means_is_a_difference_of_means() -> None:
    """The sum prompt by prompt against numpy's mean in float64: 3e-14; the order of prompts changes less than that."""
    states, kinds = made_states()
    found = difference_in_means(states, kinds, (-2, -1))
    wide = states.astype(np.float64)
    assert found.vectors == pytest.approx(wide[kinds].mean(axis=0) - wide[~kinds].mean(axis=0), abs=3e-14)
    order = np.random.default_rng(1).permutation(len(states))
    assert difference_in_means(states[order], kinds[order], (-2, -1)).vectors == pytest.approx(found.vectors, abs=3e-14)
    assert found.unit(-1, 2) @ np.eye(16)[0] > 0.8
    flat = states.copy()
    flat[:, 0, 0] = 1.0
    with pytest.raises(DesignError, match="position -2, input of block 0, are equal"):
        difference_in_means(flat, kinds, (-2, -1)).unit(-2, 0)
    with pytest.raises(DesignError, match="needs 2 harmful and 2 harmless"):
        difference_in_means(states[:3], kinds[:3], (-2, -1))
    with pytest.raises(InputError, match="states must have shape"):
        difference_in_means(states[0], kinds[:2], (-2, -1))


def test_debiased_norm_is_zero_on_average_where_nothing_differs() -> None:
    """Mean over 300 draws of |r|^2 - noise; one draw has sd about 2 |noise| / sqrt(d): 5 standard errors allowed.

    With a planted shift of 2 the expectation is 4.
    """
    null, planted, noise = [], [], []
    for seed in range(300):
        states, kinds = made_states(20, seed=seed)
        rows = describe_candidates(
            states, kinds, difference_in_means(states, kinds, (-2, -1)), np.arange(20), n_bootstrap=0, n_halves=1
        )
        null.append(rows[0]["debiased"])
        planted.append(rows[-1]["debiased"])
        noise.append(rows[0]["noise"])
    error = np.std(null) / np.sqrt(300)
    assert np.mean(noise) > 20 * error, "the plain squared norm would fail this test"
    assert abs(np.mean(null)) < 5 * error
    assert abs(np.mean(planted) - 4) < 5 * np.std(planted) / np.sqrt(300)


def test_descriptions_tell_a_direction_from_noise_and_a_massive_coordinate() -> None:
    states, kinds = made_states(80, shift=6.0)
    states[:, 0, 1, 5] += 500.0
    rows = {
        (r["position"], r["block"]): r
        for r in describe_candidates(states, kinds, difference_in_means(states, kinds, (-2, -1)), np.arange(80))
    }
    real, noise = rows[-1, 2], rows[-2, 0]
    assert real["split_half_cosine"] > 0.9 > 0.5 > abs(noise["split_half_cosine"])
    assert real["cosine_low"] > 0.95 > noise["cosine_low"]
    assert rows[-2, 1]["massive"] > 300 > 20 > noise["massive"]
    assert real["top_share"] > 0.8


@pytest.mark.transformers
@pytest.mark.parametrize("name", [n for n in ("llama", "gpt2", "gemma2", "mixtral", "phi") if n])
def test_scores_in_one_pass_are_those_of_one_run_per_direction(name: str) -> None:
    """The slow form: ProjectOut and Add around one pass per direction. float32 logits of size 10: 2e-3 in log-odds."""
    lm = opened(name)
    rows = lm.format_all([*PROMPTS, "w5 w6 w7 w8", "w5 w9"])
    harmful, harmless = rows[:3], rows[3:]
    vectors = np.random.default_rng(2).normal(0, 1, (5, 64))
    blocks, tokens = [0, 1, 2, 1, 0], [9, 17]
    base = first_token_log_probs(lm, harmless)
    found = candidate_scores(lm, harmful, harmless, vectors, blocks, tokens, base, batch_tokens=64)
    for n, (vector, block) in enumerate(zip(vectors, blocks, strict=True)):
        with intervened(lm, ProjectOut(vector)):
            bypass = refusal_log_odds(first_token_log_probs(lm, harmful), tokens)
            kl = first_token_kl(base, first_token_log_probs(lm, harmless))
        with intervened(lm, Add(vector, f"input {block}")):
            induce = refusal_log_odds(first_token_log_probs(lm, harmless), tokens)
        assert found.bypass[n] == pytest.approx(bypass, abs=2e-3)
        assert found.induce[n] == pytest.approx(induce, abs=2e-3)
        assert found.kl[n] == pytest.approx(kl, abs=2e-3)
    with pytest.raises(InputError, match="must not be zero; 1 of 1 are"):
        candidate_scores(lm, harmful, harmless, np.zeros((1, 64)), [0], tokens, base)
    with pytest.raises(InputError, match="with a block each"):
        candidate_scores(lm, harmful, harmless, vectors, [0], tokens, base)


@pytest.mark.parametrize("model", STORED)
def test_published_selections_replay(model: str) -> None:
    """Five stored tables of scores give the five stored choices; scores to the two decimals that are published."""
    folder = REAL_DATA / "refusal" / "refusal_direction" / model
    if not folder.is_dir():
        pytest.skip(f"no stored selection tables at {folder.parent}")
    table = json.loads((folder / "direction_evaluations.json").read_text())
    chosen = json.loads((folder / "direction_metadata.json").read_text())
    bypass, induce, kl = (np.array([r[k] for r in table]) for k in ("refusal_score", "steering_score", "kl_div_score"))
    layers = [r["layer"] for r in table]
    n, n_blocks, n_kept, winner, score, second, second_score = STORED[model]
    assert (len(table), max(layers) + 1) == (n, n_blocks)
    found = select_direction(bypass, induce, kl, layers, n_blocks)
    best = table[found.index]
    assert (best["position"], best["layer"]) == winner == (chosen["pos"], chosen["layer"])
    assert bypass[found.index] == pytest.approx(score, abs=5e-3) and found.kept.sum() == n_kept
    assert found.runner_up is not None and found.relaxed == ()
    assert (table[found.runner_up]["position"], table[found.runner_up]["layer"]) == second
    assert bypass[found.runner_up] == pytest.approx(second_score, abs=5e-3)


def test_the_rule_and_what_it_gives_up() -> None:
    nan = float("nan")
    bypass = np.array([-9.0, -8.0, -7.0, -6.0, nan])
    induce, kl, layers = np.array([1.0, 1.0, -1.0, 1.0, 1.0]), np.array([0.05, 0.2, 0.05, 0.1, 0.0]), [4, 1, 1, 2, 1]
    found = select_direction(bypass, induce, kl, layers, 5)
    assert found.index == 3 and found.kept.tolist() == [False, False, False, True, False]
    assert found.runner_up is None
    with pytest.raises(
        DesignError, match="no direction passes the rule: of 5 candidates 3 are numbers in blocks below 4"
    ):
        select_direction(bypass, induce - 5, kl, layers, 5)
    relaxed = select_direction(bypass, induce - 5, kl, layers, 5, relax=True)
    assert relaxed.index == 2 and relaxed.relaxed == ("induce",)
    assert select_direction(bypass, induce - 5, kl + 1, layers, 5, relax=True).relaxed == ("induce", "kl")
    with pytest.raises(DesignError, match="0 are numbers in blocks"):
        select_direction(bypass, induce, kl, [4] * 5, 5, relax=True)
    with pytest.raises(InputError, match="one entry per candidate"):
        select_direction(bypass, induce[:2], kl, layers, 5)


def test_the_set_near_the_best_holds_the_best_and_drops_what_is_worse() -> None:
    """300 draws of 12 candidates with equal truths on 32 prompts: the set misses a given one in at most .05 of them.

    Allowed is .085, the .999 quantile of a binomial share at .05 with 300 draws, as the bootstrap of 32 prompts is not
    exact. A candidate worse by one prompt-level sd, correlated .5 with the others, must go in most draws.
    """
    rng = np.random.default_rng(3)
    missed = dropped = 0
    for seed in range(300):
        common = rng.normal(0, 1, 32)
        scores = common + rng.normal(0, 1, (12, 32))
        scores[11] += 1.5
        kept = near_best(scores, np.arange(32), n_resamples=400, seed=seed)
        missed += not kept[0]
        dropped += not kept[11]
    assert missed / 300 <= 0.085
    assert dropped / 300 > 0.8
    same = np.tile(rng.normal(0, 1, 32), (3, 1))
    assert near_best(same, np.arange(32)).all(), "equal candidates stay"
    assert near_best(same + np.array([[0.0], [1.0], [2.0]]), np.arange(32)).tolist() == [True, False, False]
    with pytest.raises(InputError, match="scores must be finite"):
        near_best(same, np.arange(31))


def test_winners_curse() -> None:
    """The smallest of 60 rates with truth 8 % is 2.5 of 100 on average, of 200 it is 1.7; simulated to 4 errors.

    A fresh sample of the winner has its true rate: what is measured on new prompts is not cursed.
    """
    rng = np.random.default_rng(0)
    for trials, published in ((60, 2.5), (200, 1.7)):
        best = rng.binomial(100, 0.08, (4000, trials)).min(axis=1)
        exact = 100 * expected_best(0.08, 100, trials)
        assert exact == pytest.approx(published, abs=0.05)
        assert abs(best.mean() - exact) < 4 * best.std() / np.sqrt(4000)
    fresh = rng.binomial(100, 0.08, 4000)
    assert abs(fresh.mean() - 8) < 4 * fresh.std() / np.sqrt(4000)
    assert expected_best(0.08, 100, 1) == pytest.approx(0.08, abs=1e-12)
