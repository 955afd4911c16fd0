"""`lmprobe abliterate` as a whole: the planted direction is taken out, saved, comes back; what it refuses; dry runs."""

import json

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner
from transformers import AutoModelForCausalLM
from zoo import TEMPLATE, opened, tiny, tokenizer

from lmprobe import capture, open_model, wrap_model
from lmprobe.abliteration import abliterate
from lmprobe.coverage import coverage_rows
from lmprobe.organisms import refusal_organism
from lmprobe.prompts import Prompts
from lmprobe.writers import find_writers
from probecli.lm import main
from probecore import CertificateError, InputError

pytestmark = pytest.mark.transformers


def folder(tmp_path, name):
    """Return a folder as `save_pretrained` writes it, of a random model with a chat template."""
    tiny(name).save_pretrained(tmp_path / name)
    tokenizer(TEMPLATE).save_pretrained(tmp_path / name)
    return tmp_path / name


def written(tmp_path):
    """Return a CSV of 40 harmful and 40 harmless prompts of other words, for models that know no language."""
    rng = np.random.default_rng(0)
    lines = ["text,category"]
    for low, kind in ((0, "harmful"), (40, "harmless")):
        lines += [" ".join(f"w{low + j}" for j in rng.integers(0, 40, 6)) + f",{kind}" for _ in range(40)]
    path = tmp_path / "prompts.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def run(*words):
    done = CliRunner().invoke(main, ["abliterate", *map(str, words), "--device", "cpu", "--quiet"])
    assert done.exception is None or isinstance(done.exception, (SystemExit, InputError, CertificateError)), done.output
    return done


def row(result, measure, **wanted):
    (found,) = [r for r in result.rows if r["measure"] == measure and all(r[k] == v for k, v in wanted.items())]
    return found


@pytest.fixture(scope="module")
def edited(tmp_path_factory):
    """The packaged organism without its direction, and the folder it was saved into."""
    target = tmp_path_factory.mktemp("edited") / "model"
    return abliterate(save=target, device="cpu", n_bootstrap=200), target


def test_the_planted_direction_is_taken_out_and_only_refusal_goes(edited):
    """refusal-1: log-odds of refusing fall from above 5 to below -5, random directions move them by less than 1."""
    result, _ = edited
    odds = row(result, "refusal log-odds", kind="harmful", condition="edited")
    before = row(result, "refusal log-odds", kind="harmful", condition="before")
    assert before["value"] > 5 and odds["value"] < -5
    assert odds["change"] == pytest.approx(odds["value"] - before["value"], abs=1e-9)
    assert odds["change_high"] < -10 and odds["p_adjusted"] < 1e-3
    assert abs(odds["control"] - before["value"]) < 1
    kl = row(result, "KL", metric="KL over 30 tokens (nats)")
    assert 0 < kl["ci_low"] < kl["ci_high"] < 1e-2 and kl["p_value"] is None and kl["p_note"]
    share = next(r for r in result.rows if r["metric"] == "share of the planted span removed")
    q = np.array([r["unit"] for r in result.tables["direction"]])
    planted = refusal_organism("refusal-1").directions[0]
    assert share["value"] == pytest.approx(float(planted @ q) ** 2, abs=1e-9) and share["value"] > 0.7
    assert "SYNTHETIC" in result.notes[0]


def test_the_odds_are_those_of_the_saved_folder(edited):
    """Opened by plain `open_model`, the folder gives the reported value: the tokens' log-odds at the test prompts."""
    from lmprobe.prompts import load_prompts
    from lmprobe.refusal_score import first_token_log_probs, refusal_log_odds
    from lmprobe.refusal_setting import material

    result, target = edited
    lm = open_model(str(target), device="cpu", quiet=True)
    given = material(load_prompts("marked"))
    chosen = [i for i in given.split.index("test") if given.is_harmful[i]]
    rows = lm.format_all([given.prompts.texts[i] for i in chosen])
    tokens = lm.tokenizer.convert_tokens_to_ids(result.provenance["refusal_tokens"])
    odds = refusal_log_odds(first_token_log_probs(lm, rows), tokens).mean()
    assert odds == pytest.approx(row(result, "refusal log-odds", kind="harmful", condition="edited")["value"], abs=1e-4)
    unit = np.array([r["unit"] for r in result.tables["direction"]])
    states = capture(lm, rows[:4], at="last")
    assert max(np.abs(states.values(layer) @ unit).max() for layer in lm.layers) < 1e-4


def test_edit_json_names_direction_tensors_and_audit(edited):
    result, target = edited
    record = json.loads((target / "edit.json").read_text(encoding="utf-8"))
    assert record["reloaded"] is True and record["synthetic"] is True and record["head_same"] is True
    assert record["direction_sha256"] == result.provenance["edit"]["direction_sha256"]
    assert record["model"] == "refusal-1" and record["weights_hash"] != record["edited_weights_hash"]
    assert len(record["tensors"]) == 7 and all(t["before"] != t["after"] for t in record["tensors"])
    assert record["leak_after"] < record["leak_limit"] < record["leak_before"]


@pytest.mark.parametrize(
    ("name", "mode"),
    [("llama", "exact"), ("qwen2", "exact"), ("gpt2", "exact"), ("phi", "exact"), ("gemma2", "nullspace"),
     ("mixtral", "exact")],
)  # fmt: skip
def test_random_folders_are_edited_and_come_back(name, mode, tmp_path):
    source, target = folder(tmp_path, name), tmp_path / "edited"
    direction = tmp_path / "r.npy"
    np.save(direction, np.random.default_rng(1).standard_normal((64, 2)))
    if name == "qwen2" and not transformers.__version__.startswith("4."):
        # transformers 5 reads any tokenizer beside a Qwen2 configuration as Qwen's own, which knows none of the words
        lm = wrap_model(tiny(name), tokenizer(TEMPLATE), name=name)
        result = abliterate(
            lm, written(tmp_path), direction=direction, save=target, n_controls=1, n_bootstrap=50, device="cpu"
        )
        found = json.loads(result.to_json())
    else:
        done = run(
            "--model", source, "--direction", direction, "--prompts", written(tmp_path), "--save", target, "--json",
            "--controls", 1, "--bootstrap", 50,
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout)
    assert found["kind"] == "abliteration" and found["provenance"]["edit"]["mode"] == mode
    assert found["provenance"]["edit"]["directions"] == 2
    assert any("NOT those of the hook" in note for note in found["notes"]) == (mode == "nullspace")
    ids = torch.tensor([[3, 9, 14, 5, 11, 7]])
    with torch.no_grad():
        old, new = (AutoModelForCausalLM.from_pretrained(place)(input_ids=ids).logits for place in (source, target))
    assert float((old - new).abs().max()) > 0.01 * float(old.std())


def test_a_direction_is_found_on_the_prompts_or_read_at_a_block(tmp_path):
    source, prompts = folder(tmp_path, "llama"), written(tmp_path)
    chosen = run("--model", source, "--prompts", prompts, "--json", "--controls", 0, "--bootstrap", 0)
    assert chosen.exit_code == 0, chosen.output
    assert "chosen by the rule" in json.loads(chosen.stdout)["notes"][0]
    asked = run("--model", source, "--prompts", prompts, "--block", 2, "--strength", 0.5, "--json", "--bootstrap", 0)
    assert asked.exit_code == 0, asked.output
    found = json.loads(asked.stdout)
    assert "input of block 2, as asked" in found["notes"][0]
    assert found["provenance"]["edit"]["strength"] == 0.5
    assert all(r["p_value"] is not None or r["p_note"] for r in found["rows"])


def test_a_dry_run_lists_what_is_reached_and_changes_nothing(tmp_path):
    source = folder(tmp_path, "mixtral")
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    done = run("--model", source, "--dry-run", "--json")
    found = json.loads(done.stdout)
    assert found["kind"] == "abliteration-coverage"
    assert {r["sites"].split(" ")[0] for r in found["rows"]} == {"embed", "attention", "mlp"}
    assert all(r["reach"] == "exact" for r in found["rows"])
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    assert run("--dry-run").exit_code == 0


def test_coverage_says_what_is_out_of_reach():
    rows = coverage_rows(find_writers(opened("bloom")))
    assert [r["sites"] for r in rows if r["reach"] == "refused"] == ["embed"]
    assert {r["reach"] for r in coverage_rows(find_writers(opened("gemma2")))} == {"exact", "nullspace"}
    n = sum(r["count"] for r in coverage_rows(find_writers(opened("gpt2"))))
    assert n == len(find_writers(opened("gpt2")).writers) == 14


def test_what_cannot_be_done_is_refused_in_one_line_and_nothing_is_written(tmp_path):
    prompts = written(tmp_path)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").write_text("x")
    narrow = tmp_path / "narrow.npy"
    np.save(narrow, np.ones(5))
    target = tmp_path / "out"
    cases = [
        (["--save", taken], "must be new or empty"),
        (["--direction", narrow], "features of the residual stream"),
        (["--direction", narrow, "--block", 1], "got both"),
        (["--block", 77], "is 0 to"),
        (["--at", "attention 99"], "no site attention 99"),
        (["--model", folder(tmp_path, "bloom"), "--prompts", prompts], "out of its reach"),
        (["--model", folder(tmp_path, "gemma2"), "--prompts", prompts, "--mode", "exact"], "take mode 'nullspace'"),
    ]
    for words, message in cases:
        done = run(*words, *([] if "--save" in words else ["--save", target]))
        assert done.exit_code == 1, (words, done.output)
        assert message in done.stderr and done.stderr.count("\n") == 1 and not done.stdout, done.stderr
        assert not target.exists()


def test_an_opened_model_is_edited_where_it_is_and_prompts_can_be_objects():
    texts = [f"w{i % 40} w{(7 * i) % 40} w{(11 * i + 3) % 40}" for i in range(40)]
    texts += [f"w{40 + i % 40} w{40 + (7 * i) % 40} w{40 + (11 * i + 3) % 40}" for i in range(40)]
    names = tuple(map(str, range(80)))
    prompts = Prompts("made", names, tuple(texts), ("harmful",) * 40 + ("harmless",) * 40, names, has_families=False)
    lm = wrap_model(tiny("qwen2"), tokenizer(), name="qwen2")
    weight = lm.model.model.layers[0].mlp.down_proj.weight.detach().clone()
    result = abliterate(lm, prompts, direction=np.eye(64)[:, 3], n_controls=0, n_bootstrap=0, device="cpu")
    assert lm.name == "qwen2 (edited)" and not torch.equal(weight, lm.model.model.layers[0].mlp.down_proj.weight)
    assert not lm.model.model.layers[0].mlp.down_proj.weight[3].any()
    assert any("nothing was saved" in note for note in result.notes)
