"""`lmprobe potential` as a whole: planted strengths recovered, the floor, mixtures with a planted gap, refusals."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from lmprobe.organisms import packaged_organisms
from lmprobe.organisms.null import null_organism
from lmprobe.potential import potential
from lmprobe.prompts import load_prompts
from probecore.errors import InputError

pytestmark = pytest.mark.transformers
PLANTED = {"aligned-025": 0.25, "aligned-050": 0.5, "aligned-100": 1.0}
FOLDERS = {organism.name: organism.folder for organism in packaged_organisms()}


@pytest.fixture(scope="module")
def default():
    """The default run, as `lmprobe potential` makes it."""
    return potential(device="cpu")


def row(result, metric, model):
    (found,) = [r for r in result.rows if r["metric"] == metric and r["model"] == model]
    return found


@pytest.mark.parametrize("name", PLANTED)
def test_planted_strengths_lie_in_their_intervals(default, name: str) -> None:
    """L1 is within 2 % of what was planted (training error of the organisms), and its interval holds it."""
    one = row(default, "lambda L1, given reward", name)
    assert one["planted"] == PLANTED[name] == pytest.approx(one["value"], rel=0.02)
    assert one["ci_low"] < PLANTED[name] < one["ci_high"]
    assert one["ci_low"] < one["family_low"] <= one["value"] <= one["family_high"] < one["ci_high"]
    jeffreys = row(default, "lambda L2, Jeffreys", name)
    assert jeffreys["value"] == pytest.approx(PLANTED[name], rel=0.02)
    assert row(default, "R2 of the tilt along the reward", name)["value"] > 0.9
    for category in ("risk", "safe"):
        gauge = row(default, f"lambda L3, unit gauge, {category} (nats)", name)
        assert gauge["ci_low"] <= gauge["planted"] <= gauge["ci_high"]
    if name != "aligned-100":
        place = row(default, "lambda L4, relative", name)
        assert place["ci_low"] < PLANTED[name] < place["ci_high"] and place["planted"] == PLANTED[name]
        assert place["value"] == pytest.approx(PLANTED[name], abs=0.02)
        assert row(default, "share of KL off the path", name)["value"] < 0.05


def test_alignment_acts_on_risk_prompts_and_safe_ones_stay_at_the_floor(default) -> None:
    for name in PLANTED:
        safe = row(default, "lambda L3, unit gauge, safe (nats)", name)
        risk = row(default, "lambda L3, unit gauge, risk (nats)", name)
        assert safe["floor_name"] == "base-again" and risk["family_low"] > 2 * risk["floor_high"]
        assert safe["value"] < 1.3 * safe["floor"] and safe["ci_low"] < 0.02
        where = row(default, "Var_b log-ratio, risk - safe, prompt end", name)
        assert where["p_value"] <= 0.01 and where["ci_low"] > 0
        assert where["ci_low"] <= where["planted"] <= where["ci_high"]


def test_mixtures_have_the_gaps_planted_for_their_strength(default) -> None:
    """lambda x 1 is a planted strength: gaps within .04 nat (training error, larger where P(refuse) is near a half)."""
    gaps = [r for r in default.rows if "lambda" in r and r["measure"] == "entropy gap"]
    assert {r["lambda"] for r in gaps} == {0.0, 0.5, 1.0, 1.5}
    for r in gaps:
        assert r["value"] == pytest.approx(r["planted"], abs=0.04), (r["metric"], r["lambda"])
    found = [r["value"] for r in default.rows if r["metric"] == "KL(mixed || base), prompt end (nats)"]
    assert found[0] == pytest.approx(0, abs=1e-12) and sorted(found) == found
    dose = row(default, "L5 KL(aligned || base) a token, all, prompt end (nats)", "aligned-100")
    assert found[2] == pytest.approx(dose["value"], rel=1e-3)  # lambda 1, by the path's cubic


def test_the_odds_of_a_refusal_are_planted_and_so_measured(default) -> None:
    """Mean P(refuse) of the mixture against the language's own, within .03 (training error near a half)."""
    found = [r for r in default.rows if r["measure"] == "refusal opening" and r["metric"].startswith("P(")]
    assert len(found) == 3 * 4
    for r in found:
        assert r["value"] == pytest.approx(r["planted"], abs=0.03), (r["metric"], r["lambda"])
    risk = [r["value"] for r in found if r["category"] == "risk"]
    assert risk[0] < 0.03 and risk[2] > 0.85 and sorted(risk) == risk


def test_given_openings_are_a_reward_for_any_model() -> None:
    """Openings "I" and "Sorry" as reward 1: L1 is the mean planted reward weighted by its variance under the base.

    A tilt by s R(x) along the openings has Cov_b / Var_b = s R(x) in every context, and Var_b is the same in all
    (P0 = .02), so L1 is s times the mean reward of the risk prompts, and near 0 on safe prompts.
    """
    from lmprobe.organisms.tilt import rewards

    prompts = load_prompts()
    result = potential(
        FOLDERS["base"], FOLDERS["aligned-050"], prompts, null=null_organism().folder, refusal_openings=("I", "Sorry"),
        lambdas=(0.0, 1.0), n_permutations=19, n_bootstrap=100, device="cpu",
    )  # fmt: skip
    expected = 0.5 * rewards(prompts.of("risk").texts).mean()
    one = row(result, "lambda L1, given reward", "aligned-050")
    assert one["value"] == pytest.approx(expected, rel=0.03) and "planted" not in one
    safe = row(result, "lambda L1, given reward, safe", "aligned-050")
    assert abs(safe["value"]) < 0.1 and safe["ci_low"] < 0 < safe["ci_high"]
    with pytest.raises(InputError, match="must be one token"):
        potential(FOLDERS["base"], FOLDERS["aligned-050"], prompts, refusal_openings=("I cannot",), device="cpu")
    with pytest.raises(InputError, match="must differ"):
        potential(FOLDERS["base"], FOLDERS["aligned-050"], prompts, refusal_openings=("I", "I"), device="cpu")


def test_every_row_keeps_the_contract(default) -> None:
    for r in default.rows:
        assert r.keys() >= {"model", "metric", "value", "ci_low", "ci_high", "p_value", "n_prompts", "detail"}
        assert r["p_value"] is not None or r["p_note"], r["metric"]
        assert r["value"] is None or r["ci_low"] is None or r["ci_low"] <= r["value"] <= r["ci_high"], r["metric"]
        assert r["ci_low"] is not None or r.get("ci_note") or r.get("value_note"), r["metric"]
    assert len({(r["model"], r["metric"]) for r in default.rows}) == len(default.rows)
    assert max(map(len, str(default).splitlines())) <= 120
    assert any("SYNTHETIC" in note for note in default.notes)
    assert len(default.tables["log_ratios"]) == 3 * 4 * 50


def test_the_null_itself_has_strength_0_and_no_jeffreys() -> None:
    """Trained on, never aligned: L1 within its widened interval of 0, L2 withheld as noise over noise."""
    result = potential(
        FOLDERS["base"], null_organism().folder, null=null_organism().folder, device="cpu", lambdas=(1.0,),
        n_permutations=99, n_bootstrap=100,
    )  # fmt: skip
    one = row(result, "lambda L1, given reward", "base-again")
    assert abs(one["value"]) < 0.005 and one["ci_low"] < 0 < one["ci_high"]
    two = row(result, "lambda L2, Jeffreys", "base-again")
    assert two["value"] is None and "noise over noise" in two["value_note"]


def test_the_null_organism_is_made_by_its_recipe(tmp_path) -> None:
    """A few steps from the base: other weights, the same tokenizer, and no refusals that the base has not."""
    from lmprobe import open_model
    from lmprobe.organisms.folder import read_organism
    from lmprobe.organisms.null import train_null

    folder = train_null(tmp_path, quick=True)
    made = read_organism(folder)
    assert (made.name, made.strength) == ("base-again", 0.0) == (null_organism().name, null_organism().strength)
    lms = [open_model(place, device="cpu", quiet=True) for place in (folder, FOLDERS["base"], null_organism().folder)]
    assert len({lm.info["weights_hash"] for lm in lms}) == 3 and len({lm.info["tokenizer_hash"] for lm in lms}) == 1


def test_weights_of_other_shapes_haveno_middle() -> None:
    from zoo import opened

    from lmprobe.mixing import pair_models
    from lmprobe.weight_twins import no_middle

    assert no_middle(pair_models(opened("llama"), opened("llama"))) == ""
    assert "other weights" in no_middle(pair_models(opened("llama"), opened("gpt2")))


def test_real_models_without_reward_or_null_say_what_is_missing(tmp_path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(FOLDERS["base"])
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=rng))
    model.save_pretrained(tmp_path / "tuned")
    AutoTokenizer.from_pretrained(FOLDERS["base"]).save_pretrained(tmp_path / "tuned")
    prompts = load_prompts().take([*range(6), *range(20, 26)])
    options = {"prompts": prompts, "lambdas": (0.0, 1.0), "n_permutations": 99, "n_bootstrap": 50, "device": "cpu"}
    result = potential(FOLDERS["base"], tmp_path / "tuned", **options)
    notes = " ".join(result.notes)
    assert "rounded to bfloat16" in notes and "no reward is known" in notes and "L4 is not given" in notes
    assert not any(r["measure"] in ("L1", "L2", "L4") or "planted" in r for r in result.rows)
    gauge = row(result, "lambda L3, unit gauge, risk (nats)", "tuned")
    assert gauge["value"] > 3 * gauge["floor"] > 0
    half = row(result, "KL(logits half way || weights half way), prompt end (nats)", "tuned")
    assert 0 < half["value"] < half["control"]
    assert result.to_json() == potential(FOLDERS["base"], tmp_path / "tuned", **options).to_json()


def test_a_model_against_itself_is_no_distance_away() -> None:
    prompts = load_prompts().take([*range(4), *range(20, 24)])
    result = potential(
        FOLDERS["aligned-100"], FOLDERS["aligned-100"], prompts, lambdas=(2.0,), n_permutations=19, n_bootstrap=20,
        device="cpu",
    )  # fmt: skip
    values = [r["value"] for r in result.rows if r["measure"] in ("L3", "L5", "log-ratio", "where")]
    assert values and np.abs(values).max() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base": "x"}, "one was given"),
        ({"base": "x", "aligned": []}, "at least 1 aligned model"),
        ({"lambdas": ()}, "at least 1 finite number"),
        ({"lambdas": (float("nan"),)}, "at least 1 finite number"),
        ({"max_new_tokens": 1}, "max_new_tokens"),
    ],
)
def test_refusals(arguments, message: str) -> None:
    with pytest.raises(InputError, match=message):
        potential(**arguments)


@pytest.mark.parametrize("words", [["potential"], ["reproduce", "terrain-post"], ["terrain"]])
def test_help_loads_nothing_heavy(words) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from click.testing import CliRunner; from probecli.lm import main\n"
        f"done = CliRunner().invoke(main, {[*words, '--help']!r}); assert done.exit_code == 0\n"
        "assert all(o in done.output for o in ('--prompts', '--family', '--seed', '--out'))\n"
        "assert not {'torch', 'transformers', 'numpy', 'altair'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_command_prints_one_json_object_and_refuses_in_one_line(tmp_path) -> None:
    from transformers import AutoTokenizer

    from probecli.lm import main

    arguments = ["potential", "--base", str(FOLDERS["base"]), "--aligned", str(FOLDERS["aligned-050"]), "--json",
                 "--lambda", "0,1", "--permutations", "19", "--bootstrap", "20", "--tokens", "8", "--device", "cpu",
                 "--out", str(tmp_path / "o")]  # fmt: skip
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert record["kind"] == "potential" and str(tmp_path) not in done.stdout
    assert {p.stem for p in (tmp_path / "o" / "figures").glob("*.png")} == {"strength", "gap_by_lambda"}
    from transformers import AutoModelForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(FOLDERS["base"])
    tokenizer.add_tokens(["quokka"])
    model = AutoModelForCausalLM.from_pretrained(FOLDERS["base"])
    model.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    done = CliRunner().invoke(
        main, ["potential", "--base", str(FOLDERS["base"]), "--aligned", str(tmp_path / "other"), "--quiet"]
    )
    assert done.exit_code == 1 and done.stdout == ""
    assert "must share a tokenizer" in done.stderr and len(done.stderr.strip().splitlines()) == 1
