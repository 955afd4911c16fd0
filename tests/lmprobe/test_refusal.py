"""`lmprobe refusal` as a whole: planted directions, an organism without any, strangers, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner
from transformers import LlamaConfig, LlamaForCausalLM
from zoo import TEMPLATE, WORDS, tiny, tokenizer

from lmprobe import open_model, refusal, wrap_model
from lmprobe.direction_file import read_directions
from lmprobe.organisms import refusal_organism
from lmprobe.prompts import Prompts
from lmprobe.refusal import MODEL
from probecli.lm import main
from probecore import DesignError, InputError

pytestmark = pytest.mark.transformers
QUICK = {"n_permutations": 19, "n_controls": 2, "n_bootstrap": 200, "device": "cpu"}


@pytest.fixture(scope="module")
def one():
    """One planted direction, everything by default but fewer replicates."""
    return refusal(**QUICK)


def rows_of(result, measure: str, **wanted):
    found = [r for r in result.rows if r["measure"] == measure]
    return [r for r in found if all(r[key] == value for key, value in wanted.items())]


def rate(result, kind: str, condition: str, tokens: int = 32):
    (found,) = rows_of(result, "refusal rate", kind=kind, condition=condition, tokens=tokens)
    return found


def test_the_planted_direction_is_found_and_carries_refusal(one) -> None:
    """refusal-1: .8 or more of the direction is the planted one (random: 1/64), refusal 1 -> 0, capability stays."""
    share = next(r for r in one.rows if r["metric"].startswith("share in the planted"))
    assert share["value"] > 0.8 and share["planted"] == 1.0
    planted = refusal_organism(MODEL)
    assert f"input of block {planted.planted_block}" in one.title
    vector = np.array([row["direction"] for row in one.tables["direction"]])
    cosine = abs(planted.directions[0] @ vector) / np.linalg.norm(vector)
    assert cosine**2 == pytest.approx(share["value"], abs=1e-9)
    assert rate(one, "harmful", "untouched")["value"] == 1.0
    gone = rate(one, "harmful", "removed")
    assert gone["value"] == 0.0 and gone["p_adjusted"] < 1e-3 and gone["ci_high"] < 0.15 and gone["control"] == 1.0
    assert rate(one, "harmful", "removed: random")["value"] == 1.0
    assert rate(one, "harmless", "removed")["value"] == rate(one, "harmless", "untouched")["value"] == 0.0
    assert rate(one, "harmless", "added")["value"] == 1.0
    (kl,) = rows_of(one, "KL", condition="removed", metric="KL, 30 tokens (nats)")
    assert kl["ci_high"] < 1e-3 and kl["largest"] < 0.1
    tasks = {r["condition"]: r["value"] for r in rows_of(one, "task accuracy")}
    assert tasks["untouched"] == tasks["removed"] == 1.0


def test_p_of_the_direction_and_of_its_controls(one) -> None:
    """19 replicates: .05 is the smallest p. Directions matched in covariance find the planted one, too (docs)."""
    found = {r["condition"]: r for r in rows_of(one, "refusal score")}
    assert found["removed"]["p_value"] == found["removed: permuted labels"]["p_value"] == 0.05
    assert found["removed: random"]["p_value"] == 0.05 and found["removed: covariance-matched"]["p_value"] > 0.05
    assert found["removed"]["ci_low"] > found["removed: random"]["null_high"]
    assert any("says that the labels matter, not that no other direction would do" in note for note in one.notes)


def test_every_row_says_what_an_estimate_must(one) -> None:
    for row in one.rows:
        assert row["p_value"] is not None or row["p_note"], row
        is_range = "null_low" in row or row["measure"] in ("direction", "broken answers", "task accuracy")
        assert is_range or row["ci_low"] is not None or row["ci_note"], row
        assert "n_prompts" in row or row["measure"] == "direction", row
    assert {row["split"] for row in one.tables["splits"]} <= {"extract", "select", "test", "left out"}
    assert not any("answer" in row for rows in one.tables.values() for row in rows), "answers are not kept unless asked"


def test_no_near_duplicate_and_no_twin_stands_in_two_splits(one) -> None:
    splits = {row["item"]: row["split"] for row in one.tables["splits"]}
    by_cluster: dict[int, set[str]] = {}
    for row in one.tables["splits"]:
        by_cluster.setdefault(row["cluster"], set()).add(row["split"])
    assert all(len(found - {"left out"}) <= 1 for found in by_cluster.values())
    harmful = [item for item in splits if not item.startswith("harmless")]
    assert all(splits[item] == splits[f"harmless-{item.split('-')[1]}"] for item in harmful)


def test_published_counts_stand_beside_rates_and_correct_none_of_them(one) -> None:
    assert not rows_of(one, "refusal rate")[0].get("corrected")
    borrowed = rows_of(one, "borrowed correction", condition="removed", kind="harmful")
    assert {r["metric"].split("as for ")[1] for r in borrowed} >= {"XSTest, pooled", "gpt4", "mistralinstruct"}
    refused = next(r for r in borrowed if "mistralinstruct" in r["metric"])
    assert refused["value"] is None and "cannot tell" in refused["ci_note"]
    assert all(r["detail"] for r in borrowed)
    table = {row["source"]: row for row in one.tables["detectors"]}
    assert table["mistralinstruct"]["sensitivity"] == pytest.approx(3 / 49, abs=1e-9)


def test_figures_are_drawn_and_the_direction_is_saved(one, tmp_path: Path) -> None:
    one.save(tmp_path / "report")
    for name in ("refusal_by_layer", "nulls", "refusal_rates"):
        assert (tmp_path / "report" / "figures" / f"{name}.png").stat().st_size > 5000
    saved = read_directions(tmp_path / "report")
    assert np.array_equal(saved[:, 0], [row["direction"] for row in one.tables["direction"]])


def test_the_layers_are_those_of_removing_each_by_itself(one) -> None:
    """Blocks whose inputs differ: 1 and 2 (at block 0 the end tokens are the same embedding); controls beside each."""
    rows = one.tables["layers"]
    assert {(r["block"], r["series"]) for r in rows} == {
        (b, s) for b in (1, 2) for s in ("difference in means", "permuted labels", "covariance-matched", "random")
    }
    chosen = next(r for r in rows if r["block"] == 1 and r["series"] == "difference in means")
    (effect,) = rows_of(one, "refusal score", condition="removed")
    assert chosen["untouched"] - chosen["value"] == pytest.approx(effect["value"], abs=2e-3)


def test_four_planted_directions_are_not_one() -> None:
    """refusal-4: one difference in means is a part of the planted span, and takes a part of the refusals (1 -> .66)."""
    found = refusal("refusal-4", limit=64, n_permutations=0, n_controls=1, n_bootstrap=200, device="cpu")
    share = next(r for r in found.rows if r["metric"].startswith("share in the planted"))
    assert 0.2 < share["value"] < 0.8
    assert any(note.startswith("NO candidate of 2 passes the rule") for note in found.notes)
    assert rate(found, "harmful", "untouched")["value"] == 1.0
    assert 0.3 < rate(found, "harmful", "removed")["value"] < 0.95
    assert rows_of(found, "refusal score", condition="removed")[0]["p_note"] == "no replicates were asked for"


def test_without_refusal_nothing_is_claimed() -> None:
    found = refusal("refusal-0", limit=48, n_permutations=0, n_controls=1, n_bootstrap=200, device="cpu")
    assert rate(found, "harmful", "untouched")["value"] == 0.0
    assert any("little refusal to remove" in note for note in found.notes)
    assert any("it may be no refusal" in note for note in found.notes)
    assert not any(r["metric"].startswith("share in the planted") for r in found.rows)


def word_prompts(n: int = 24) -> Prompts:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 5, replace=False)) for _ in range(2 * n)]
    kinds = ("harmful",) * n + ("harmless",) * n
    ids = tuple(f"p{i}" for i in range(2 * n))
    return Prompts("words", ids, tuple(texts), kinds, ids, has_families=False)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "phi", "gemma2", "mixtral"])
def test_folders_of_random_models_run(name: str, tmp_path: Path) -> None:
    """Saved and opened by folder: rates, no planted truth, and a p that need not be small; labels mean nothing here."""
    words = tokenizer(TEMPLATE if name != "gpt2" else None)
    tiny(name).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    model = tmp_path
    if name == "qwen2" and not transformers.__version__.startswith("4."):
        # transformers 5 reads any tokenizer beside a Qwen2 configuration as Qwen's own, which knows none of the words
        model = wrap_model(tiny(name), words, name=tmp_path.name)
    found = refusal(model, word_prompts(), lengths=(4,), n_permutations=2, n_controls=1, n_bootstrap=50, device="cpu")
    assert rate(found, "harmful", "untouched", 4)["value"] == 0.0
    assert rows_of(found, "refusal score", condition="removed")[0]["p_value"] >= 1 / 3
    assert any("choices of equal tokens" in note for note in found.notes), "the tasks' words are unknown to it"
    assert found.provenance["models"][0]["name"] == tmp_path.name


def test_a_judge_stands_beside_the_strings_and_what_it_does_not_say_is_counted() -> None:
    """A random model as judge: no reply is one of the three words, so every verdict is unparsed and no refusal."""
    config = LlamaConfig(
        vocab_size=128, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        judge = wrap_model(LlamaForCausalLM(config).eval(), tokenizer(TEMPLATE), name="random")
    found = refusal(
        wrap_model(tiny("llama"), tokenizer(TEMPLATE), name="judged"), word_prompts(), lengths=(4,), judge=judge,
        n_permutations=0, n_controls=1, n_bootstrap=50,
    )  # fmt: skip
    rates = [r for r in rows_of(found, "refusal rate") if r["detector"] == "judge random"]
    assert len(rates) == len(rows_of(found, "refusal rate")) / 2
    assert all(r["unparsed"] == 1.0 and r["value"] == 0.0 for r in rates)
    assert any("nobody's labels say how often judge random is right" in note for note in found.notes)
    assert "detector" in found.columns


def test_what_cannot_be_answered_is_refused_in_one_line(tmp_path: Path) -> None:
    lm = open_model(MODEL, device="cpu", quiet=True)
    with pytest.raises(DesignError, match="each split needs at least 4 harmful and 4 harmless prompts"):
        refusal(lm, limit=6, n_permutations=0)
    with pytest.raises(InputError, match="at least 1 length and 1 detector"):
        refusal(lm, lengths=())
    with pytest.raises(InputError, match="a detector must be"):
        refusal(lm, detectors=("none",))
    with pytest.raises(InputError, match="tasks must be"):
        refusal(lm, tasks="absent.csv")
    with pytest.raises(InputError, match="labelled answers must be"):
        refusal(lm, labels=["absent.csv"])
    same = wrap_model(tiny("llama"), tokenizer(TEMPLATE), name="same")
    prompts = word_prompts()
    twice = Prompts(
        "same", prompts.ids, (*prompts.texts[:24], *prompts.texts[:24]), prompts.categories, prompts.families
    )
    with pytest.raises(DesignError, match="equal mean states"):
        refusal(same, twice, n_permutations=0)


def test_the_command_prints_one_object_and_labels_correct_rates(tmp_path: Path) -> None:
    """60 labelled answers of this model, all judged right: the corrected rate is the observed one."""
    labels = tmp_path / "labels.csv"
    said = [("I cannot help with that.", "refusal")] * 30 + [("Sure, lamp river stone.", "compliance")] * 30
    labels.write_text("prompt,answer,label\n" + "".join(f'lamp,"{text}",{label}\n' for text, label in said))
    asked = [
        "refusal",
        "--limit",
        "48",
        "--permutations",
        "0",
        "--controls",
        "1",
        "--bootstrap",
        "100",
        "--json",
        "--quiet",
    ]
    asked += ["--tokens", "8 24", "--labels", str(labels), "--out", str(tmp_path / "run"), "--keep-answers"]
    done = CliRunner().invoke(main, asked)
    assert done.exit_code == 0, done.output
    shown = json.loads(done.stdout)
    assert shown["kind"] == "refusal" and shown["provenance"]["models"][0]["name"] == MODEL
    rates = [r for r in shown["rows"] if r["measure"] == "refusal rate" and r["kind"] == "harmful"]
    first = next(r for r in rates if r["condition"] == "untouched" and r["tokens"] == 24)
    assert first["corrected"] == first["value"] == 1.0 and first["corrected_low"] > 0.7
    assert not any(r["measure"] == "borrowed correction" for r in shown["rows"])
    assert "labels" in next(note for note in shown["notes"] if "Rogan" in note)
    answers = (tmp_path / "run" / "answers.csv").read_text()
    assert "I cannot help with that" in answers
    assert str(tmp_path) not in done.stdout, "no path of the machine"
