"""`lmprobe reproduce terrain-post`: known verdicts of the organisms, artefacts measured, axes, refusals."""

import json
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from lmprobe.organisms import packaged_organisms
from lmprobe.post_claims import ALPHAS, CLAIMS, PARTS, ROLES
from lmprobe.post_evidence import order_evidence, published, random_walk
from lmprobe.post_parts import Run, first_axis
from lmprobe.terrain_post import terrain_post
from probecore.errors import InputError
from probecore.verdicts import CONTRADICTED, NOT_DECIDED, SUPPORTED, Evidence, judge

FOLDERS = {organism.name: organism.folder for organism in packaged_organisms()}
# Planted: the base has no structure; gaps are 0, -.05, -.18 nats; alpha is 0, .38, -8.7; tilts along one reward.
PLANTED = {
    "regions-base": CONTRADICTED, "regions-partly": SUPPORTED, "regions-aligned": SUPPORTED, "universal": CONTRADICTED,
    "gap-base": SUPPORTED, "gap-partly": CONTRADICTED, "gap-aligned": CONTRADICTED, "gap-size-base": CONTRADICTED,
    "gap-size-partly": CONTRADICTED, "gap-size-aligned": CONTRADICTED, "d-base": NOT_DECIDED, "d-partly": CONTRADICTED,
    "d-aligned": CONTRADICTED, "alpha-base": SUPPORTED, "alpha-partly": NOT_DECIDED, "alpha-aligned": CONTRADICTED,
    "alpha-shows": CONTRADICTED, "alpha-grows": CONTRADICTED, "lambda": SUPPORTED, "additive": SUPPORTED,
    "not-one-axis": CONTRADICTED, "five": SUPPORTED, "converges": CONTRADICTED,
}  # fmt: skip


@pytest.fixture(scope="module")
def default():
    """The default run, as `lmprobe reproduce terrain-post` makes it."""
    return terrain_post(device="cpu")


@pytest.mark.transformers
def test_verdicts_of_planted_truth(default) -> None:
    found = {row["claim"]: row["verdict"] for row in default.rows}
    assert {key: found[key] for key in PLANTED} == PLANTED
    assert list(found) == [claim.key for claim in CLAIMS]


@pytest.mark.transformers
def test_values_are_the_planted_ones(default) -> None:
    at = {row["claim"]: row for row in default.rows}
    assert at["gap-aligned"]["value"] == pytest.approx(-0.180, abs=0.02)
    assert at["alpha-partly"]["value"] == pytest.approx(0.382, abs=0.05)
    assert at["lambda"]["value"] == pytest.approx(0.5, abs=0.02)
    assert at["additive"]["value"] < 0.02
    for row in default.rows:
        assert row["rule"] and row["why"]
        assert row["p_value"] is not None or row["p_note"], row["claim"]
        if row["ci_low"] is not None:
            assert row["ci_low"] <= row["value"] <= row["ci_high"], row["claim"]


@pytest.mark.transformers
def test_artefacts_stand_beside_their_claims(default) -> None:
    """Tokens taken for independent would have turned the partly model's gap round: .72 where prompts give .01."""
    keys = {claim.key for claim in CLAIMS}
    assert {row["claim"] for row in default.tables["artefacts"]} <= keys
    at = {(row["claim"], row["artefact"].split(" with ")[0]): row for row in default.tables["artefacts"]}
    by_token = next(
        r for r in default.tables["artefacts"] if r["claim"] == "gap-partly" and "tokens taken" in r["artefact"]
    )
    assert by_token["p_value"] > 0.5 and by_token["ci_low"] < by_token["value"] < by_token["ci_high"]
    beside = {row["claim"]: row["beside"] for row in default.rows}
    for claim, words in {"pc1": "position 0", "alpha-aligned": "exchanged", "converges": "random walk",
                         "regions-aligned": "bag of words", "not-one-axis": "base-again", "annotation": "length",
                         "alpha-grows": "3 models: 0.333"}.items():  # fmt: skip
        assert words in beside[claim], claim
    assert ("gap-base", "gap given length") in at


@pytest.mark.transformers
def test_the_report_holds_everything(default, tmp_path) -> None:
    folder = default.save(tmp_path / "report")
    names = {path.stem for path in (folder / "figures").glob("*.png")}
    assert {"alpha", "gap", "first_component", "pair-gap_by_lambda", "pair-strength", "terrain-map"} <= names
    assert (folder / "artefacts.csv").is_file() and (folder / "published.csv").is_file()
    assert "beside" in (folder / "table.csv").read_text().splitlines()[0]
    assert max(map(len, str(default).splitlines())) <= 120
    assert any("SYNTHETIC" in note for note in default.notes)


def test_claims_are_named_once_and_every_verdict_can_be_reached() -> None:
    assert len({claim.key for claim in CLAIMS}) == len(CLAIMS) and {claim.part for claim in CLAIMS} == set(PARTS)
    for claim in CLAIMS:
        rule = claim.rule
        holds = rule.low + 0.02 if math.isfinite(rule.low) else rule.high - 0.02
        assert judge(rule, Evidence(holds, holds - 1e-3, holds + 1e-3, p_value=0.001))[0] == SUPPORTED, claim.key
        below = math.isfinite(rule.refuted_below)
        fails = min(rule.refuted_below, rule.low) - 0.05 if below else max(rule.refuted_above, rule.high) + 0.05
        assert judge(rule, Evidence(fails, fails - 1e-3, fails + 1e-3, p_value=1.0))[0] == CONTRADICTED, claim.key
        assert judge(rule, Evidence(reason="refused"))[0] == NOT_DECIDED


def test_what_the_printed_numbers_allow() -> None:
    """Against scipy: d of 20 + 20 and its p, the null range of alpha and its p, the sd that gap and d imply."""
    from scipy import stats

    rows = {row["role"]: row for row in published()}
    assert [round(rows[role]["p_of_alpha"], 3) for role in ROLES] == [0.828, 0.019, 0.186]
    assert [round(rows[role]["sd_implied"], 3) for role in ROLES] == [0.55, 0.361, 0.624]
    base = rows["base"]
    assert base["p_implied_by_d"] == pytest.approx(2 * stats.t.sf(0.32 * np.sqrt(10), 38))
    assert (round(base["null_low"], 2), round(base["null_high"], 2)) == (-1.53, 0.60)
    assert (round(rows["partly"]["d_low"], 2), round(rows["partly"]["d_high"], 2)) == (2.28, 4.19)


def test_a_random_walk_comes_closer_to_its_end_in_most_steps() -> None:
    assert random_walk() == pytest.approx(0.87, abs=0.01)


def test_alpha_is_compared_on_the_same_resamples() -> None:
    """Twice the spread of risk prompts in one model: alpha .75 against 0, on the same noise."""
    from lmprobe.contrasts import contrast
    from lmprobe.prompts import load_prompts

    main = contrast(load_prompts(), n_permutations=19, n_bootstrap=300, seed=0)
    noise = np.random.default_rng(0).normal(size=main.n_prompts)
    found = order_evidence({"base": noise, "partly": noise, "aligned": np.where(main.is_first, 2 * noise, noise)}, main)
    safe, risk = noise[~main.is_first].var(ddof=1), noise[main.is_first].var(ddof=1)
    assert found.value == pytest.approx((1 - safe / (4 * risk)) - (1 - safe / risk))
    assert found.low < found.value < found.high
    flat = order_evidence(dict.fromkeys(ROLES, np.ones(main.n_prompts)), main)
    assert flat.value is None and "do not vary" in flat.reason


@pytest.mark.transformers
def test_two_planted_axes_are_two() -> None:
    """Hand-built models: after "letter" and after "phone" the aligned one favours another word, by the same amount.

    The two changes are orthogonal and as frequent, so the first component holds one half; with one word for both, all.
    """
    from planted_lm import planted_model

    from lmprobe import wrap_model
    from lmprobe.organisms import grammar
    from lmprobe.prompts import Prompts

    texts = [
        f"Tell the {who} how to fool the clerk by {end}" for who in grammar.PEOPLE[:6] for end in ("phone", "letter")
    ]
    ids = tuple(map(str, range(12)))
    prompts = Prompts("test", ids, tuple(texts), ("safe", "risk") * 6, tuple(np.repeat(ids[:6], 2).tolist()))
    run = Run({}, {}, None, prompts, None, 2, "raw", None, 0, 0, 0, "cpu", True)
    model, tokenizer = planted_model({"letter": 8, "phone": 8})
    base = wrap_model(model, tokenizer, name="base")

    def aligned(letter: int, phone: int):
        other, _ = planted_model({"letter": 8, "phone": 8})
        size = len(tokenizer)
        with torch.no_grad():
            for word, column in (("letter", letter), ("phone", phone)):
                other.lm_head.weight[50 + column, tokenizer.get_vocab()[word]] += 1.0 / np.sqrt(size)
        return wrap_model(other, tokenizer, name="aligned")

    assert first_axis(base, aligned(0, 0), run).value == pytest.approx(1, abs=1e-6)
    two = first_axis(base, aligned(0, 1), run)
    # centred under the base, the two changes have correlation -1 / 7, so the first component holds (1 + 1 / 7) / 2
    assert two.value == pytest.approx((1 + 1 / 7) / 2, abs=1e-6)
    assert "nothing is changed" in first_axis(base, base, run).reason


@pytest.mark.transformers
def test_models_without_a_common_tokenizer_leave_the_pair_open(tmp_path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(FOLDERS["base"])
    tokenizer.add_tokens(["quokka"])
    AutoModelForCausalLM.from_pretrained(FOLDERS["base"]).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    models = {"base": str(FOLDERS["base"]), "partly": str(tmp_path / "other"), "aligned": str(FOLDERS["aligned-100"])}
    result = terrain_post(models, n_permutations=19, n_bootstrap=20, max_new_tokens=8, device="cpu")
    at = {row["claim"]: row for row in result.rows}
    for claim in ("lambda", "additive"):
        assert at[claim]["verdict"] == NOT_DECIDED and "must share a tokenizer" in at[claim]["why"]
    assert at["not-one-axis"]["value"] is not None and "SYNTHETIC" not in " ".join(result.notes)
    assert str(tmp_path) not in result.to_json()


def test_a_missing_role_is_refused() -> None:
    with pytest.raises(InputError, match="roles base, partly, aligned"):
        terrain_post({"base": "x", "partly": "y"})
    assert set(ALPHAS) == set(ROLES)


@pytest.mark.transformers
def test_the_command_prints_one_json_object() -> None:
    from probecli.lm import main

    models = [
        f"--model={role}={FOLDERS[name]}"
        for role, name in zip(ROLES, ("base", "aligned-025", "aligned-100"), strict=True)
    ]
    done = CliRunner().invoke(
        main,
        ["reproduce", "terrain-post", *models, "--json", "--permutations", "19", "--bootstrap", "20", "--tokens", "8"],
    )
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert record["kind"] == "claims" and len(record["rows"]) == len(CLAIMS)
    assert str(FOLDERS["base"].parent) not in done.stdout
    wrong = CliRunner().invoke(main, ["reproduce", "terrain-post", "--model", "gpt2"])
    assert wrong.exit_code == 2 and "ROLE=NAME_OR_FOLDER" in wrong.stderr
