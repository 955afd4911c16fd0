"""Trends over checkpoints of one lineage, exact p over orders; C6 and TwoNN on states whose answer is known."""

import itertools

import numpy as np
import pytest
from scipy import stats
from zoo import PROMPTS, opened

from lmprobe.contrasts import contrast
from lmprobe.depth import depth_rows
from lmprobe.dimension import dimension_rows
from lmprobe.entropy import MODES
from lmprobe.lineage import check_lineage, order_p, trend_rows
from lmprobe.prompts import load_prompts
from probecore.errors import DesignError, InputError

FACTS = {"architecture": "LlamaForCausalLM", "tokenizer_hash": "t", "parameters": 10}


def test_the_exact_p_of_an_order_is_scipys() -> None:
    for values in ([1.0, 4.0, 2.0, 3.0], [0.1, 0.2, 0.2, 0.5, 0.3]):
        rho = [abs(stats.spearmanr(range(len(values)), order).statistic) for order in itertools.permutations(values)]
        assert order_p(values) == pytest.approx(np.mean(np.array(rho) >= rho[0] - 1e-12))
    assert order_p([3.0, 2.0, 1.0]) == 2 / 6 and order_p([1.0, 1.0, 1.0]) == 1
    with pytest.raises(DesignError, match="at most 8"):
        order_p(list(range(9)))


def test_p_of_an_order_is_uniform_where_checkpoints_are_in_none() -> None:
    """1,000 random orders of 5. Only 2 of 120 orders give p <= .05: .0167 + 4 SE (.004) = .033."""
    rng = np.random.default_rng(0)
    p = np.array([order_p(rng.normal(size=5)) for _ in range(1000)])
    assert 0.002 <= (p <= 0.05).mean() <= 0.033
    for level in (0.25, 0.5, 0.75):  # discrete, so never above the level by more than chance
        assert (p <= level).mean() <= level + 4 * np.sqrt(level * (1 - level) / 1000)


def test_a_planted_trend_is_recovered_with_its_interval() -> None:
    prompts = load_prompts()
    chosen = contrast(prompts, n_permutations=19, n_bootstrap=400, seed=0)
    rng = np.random.default_rng(2)
    noise, risk = 0.1 * rng.normal(size=len(prompts)), np.array([c == "risk" for c in prompts.categories])
    steps = [{mode: 1 + noise + 0.3 * k * risk for mode in MODES} for k in range(4)]
    rows = trend_rows(steps, chosen, "a to d")
    for row in rows[:3]:
        assert row["value"] == pytest.approx(0.3, abs=1e-12) and row["p_value"] == pytest.approx(2 / 24)
        assert row["ci_low"] <= 0.3 <= row["ci_high"] and row["smallest_p"] == pytest.approx(2 / 24)
        assert np.diff(row["steps"]) == pytest.approx([0.3] * 3)
    assert rows[3]["value"] == pytest.approx(0, abs=1e-9) and rows[3]["metric"].startswith("trend of LVR")
    flat = trend_rows([{mode: np.ones(len(prompts)) for mode in MODES}] * 3, chosen, "flat")
    assert flat[3]["value"] is None and "do not vary" in flat[3]["p_note"]


def test_long_names_are_shortened_and_told_apart(tmp_path) -> None:
    from lmprobe.model_list import full_names, model_names, name_notes

    for place in ("a/some-org-Model-7B-step-1000", "b/some-org-Model-7B-step-2000", "c/some-org-Model-7B-step-2000"):
        (tmp_path / place).mkdir(parents=True)
    folders = [path for part in sorted(tmp_path.iterdir()) for path in part.iterdir()]
    assert model_names(folders) == ["…1000", "…2000", "…2000 (2)"]
    assert name_notes(folders) == ["names of models: … stands for 'some-org-Model-7B-step-'"]
    assert full_names(["gpt2", "gpt2"]) == model_names(["gpt2", "gpt2"]) == ["gpt2", "gpt2 (2)"]
    assert name_notes(["gpt2", "microsoft/phi-2", "Qwen/Qwen2.5-1.5B-Instruct"]) == []


def test_what_is_no_lineage_is_refused() -> None:
    check_lineage([FACTS] * 3)
    with pytest.raises(DesignError, match="at least 3 checkpoints; got 2"):
        check_lineage([FACTS] * 2)
    for key, value in (("architecture", "GPT2LMHeadModel"), ("tokenizer_hash", "u"), ("parameters", 11)):
        with pytest.raises(InputError, match=key.replace("_", " ")):
            check_lineage([FACTS, FACTS, {**FACTS, key: value}])


@pytest.mark.transformers
def test_the_terrain_of_a_lineage_adds_its_trends() -> None:
    """Gaps of the organisms: planted, so their slope is; .02 as in the gaps themselves."""
    from lmprobe.terrain import terrain

    result = terrain(lineage=True, n_permutations=99, n_bootstrap=50, device="cpu")
    (trend,) = [r for r in result.rows if r["metric"] == "trend of the gap, own text (nats a step)"]
    planted = [r["planted"] for r in result.rows if r["metric"] == "gap, own text (nats)"]
    assert trend["value"] == pytest.approx(np.polyfit(range(4), planted, 1)[0], abs=0.02)
    assert trend["model"] == "base to aligned-100" and trend["p_value"] == pytest.approx(order_p(planted))
    assert any("trend" in note for note in result.notes)
    assert [r["step"] for r in result.tables["steps"] if r["mode"] == "own text"] == [0, 1, 2, 3]
    assert result.figures[0].name == "trend"


@pytest.mark.transformers
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_the_distance_in_depth_is_that_of_the_read_out_by_hand(name: str) -> None:
    import torch

    from lmprobe import capture, read_out

    lm = opened(name)
    found = capture(lm, PROMPTS, at="last")
    states = {layer: found.values(layer) for layer in lm.layers}
    (row,), table, note = depth_rows(lm, states, ["a", "b", "c", "d"])
    assert note == "" and len(table) == len(lm.layers)
    final = torch.log_softmax(read_out(lm, torch.tensor(states[lm.layers[-1]])).double(), -1)
    logs = []
    for layer in lm.layers[:-1]:
        said = torch.log_softmax(read_out(lm, torch.tensor(states[layer])).double(), -1)
        logs.append(np.log((final.exp() * (final - said)).sum(-1).numpy()))
    slopes = np.polyfit(range(len(logs)), np.array(logs), 1)[0]
    assert row["value"] == pytest.approx(slopes.mean(), rel=1e-6)
    assert table[-1]["kl_to_final"] == pytest.approx(0, abs=1e-9)


def test_two_nn_finds_the_dimension_of_a_curved_sheet_where_components_find_more() -> None:
    """300 points on a 2-dimensional sheet bent into 12 dimensions: TwoNN within 20 % of 2, PR far above."""
    rng = np.random.default_rng(3)
    sheet = rng.uniform(size=(300, 2))
    bent = np.column_stack([np.sin(w * sheet[:, i % 2] + i) for i, w in enumerate(np.linspace(2, 9, 12))])
    rows = dimension_rows(bent, ["a"] * 300, [str(i // 10) for i in range(300)], "block 0")
    at = {row["metric"]: row for row in rows}
    row = at["TwoNN dimension, block 0"]
    assert row["value"] == pytest.approx(2, rel=0.2) and row["ci_low"] < row["value"] < row["ci_high"]
    assert at["participation ratio, block 0"]["value"] > 4
    few = dimension_rows(bent[:8], ["a"] * 8, list("aabbccdd"), "block 0")
    assert "at least 10" in next(r for r in few if r["measure"] == "TwoNN dimension")["value_note"]
