"""The whole terrain: planted truth recovered on organisms and hand-built models, the promised output, the command."""

import csv
import json

import numpy as np
import pytest
from click.testing import CliRunner
from planted_lm import planted_model

from lmprobe.contrast_statistics import gap
from lmprobe.contrasts import contrast
from lmprobe.organisms import grammar, packaged_organisms
from lmprobe.prompts import Prompts, load_prompts
from probecore.errors import DesignError, InputError

pytestmark = pytest.mark.transformers
KEYS = {"model", "metric", "value", "ci_low", "ci_high", "p_value", "n_prompts"}
NAMES = ("base", "aligned-025", "aligned-050", "aligned-100")


@pytest.fixture(scope="module")
def default():
    """The default run, as `lmprobe terrain` makes it."""
    from lmprobe.terrain import terrain

    return terrain(device="cpu")


def row(result, metric, model):
    (found,) = [r for r in result.rows if r["metric"] == metric and r["model"] == model]
    return found


def gaps(result, model):
    return {
        r["mode"]: r for r in result.rows if r["model"] == model and r["measure"] == "entropy gap" and not r["detail"]
    }


def test_every_row_keeps_the_contract(default):
    assert default.kind == "terrain" and len(default.rows) > 100
    for r in default.rows:
        assert r.keys() >= KEYS, r["metric"]
        assert r["p_value"] is not None or r["p_note"], r["metric"]
        assert r["ci_low"] is not None or r.get("ci_note") or r.get("p_note") or r.get("value_note"), r["metric"]
        assert isinstance(r["n_prompts"], int) and 0 < r["n_prompts"] <= 50
    assert len({(r["model"], r["metric"]) for r in default.rows}) == len(default.rows)
    assert any("SYNTHETIC" in note for note in default.notes)
    record = json.loads(default.to_json())
    assert set(record) == {"kind", "rows", "notes", "provenance"}
    assert [m["name"] for m in record["provenance"]["models"]] == list(NAMES)
    assert all(m["weights_hash"] and m["template"] == "chat" for m in record["provenance"]["models"])


def test_planted_gaps_are_recovered(default):
    """Measured against the exact gap of the language: they differ by training error only (entropy error .01 nat)."""
    for name in NAMES:
        for mode, r in gaps(default, name).items():
            assert r["value"] == pytest.approx(r["planted"], abs=0.02), (name, mode)
    strong, weak = gaps(default, "aligned-100"), gaps(default, "aligned-025")
    assert strong["own text"]["ci_high"] < 0 and strong["own text"]["p_adjusted"] <= 0.01
    assert weak["prompt end"]["ci_low"] > 0 and weak["prompt end"]["p_adjusted"] <= 0.01


def test_where_nothing_is_planted_nothing_is_found(default):
    for mode, r in gaps(default, "base").items():
        assert r["planted"] == 0 and abs(r["value"]) < 0.005 and r["p_adjusted"] > 0.05, mode
    assert row(default, "separability, best layer", "base")["p_adjusted"] > 0.05
    assert abs(row(default, "Hedges' g, own text", "base")["value"]) < 0.05


def test_alignment_is_separable_and_words_and_length_are_not(default):
    """Safe and risk prompts hold the same words: the surface controls must be exactly at chance, and say why."""
    for name in NAMES[1:]:
        best = row(default, "separability, best layer", name)
        assert best["value"] >= 0.95 and best["p_adjusted"] <= 0.01 and best["selectivity"] >= 0.3
        assert best["layer"] in ("block 2", "block 3")
    for name in NAMES:
        for control in ("bag of words", "length"):
            r = row(default, f"separability control, {control}", name)
            assert r["value"] == 0.5 and r["p_value"] is None and "same" in r["p_note"]
        assert "dead" in row(default, "separability, embed", name)["p_note"]


def test_printed_tables_and_files(default, tmp_path):
    text = str(default)
    assert len(default.shown) == 15 * len(NAMES)
    assert max(map(len, text.splitlines())) <= 120
    for word in (
        "gap, own text (nats)",
        "alpha A1",
        "separability, best",
        "participation",
        "C1 step",
        "Planted",
        "Null",
    ):
        assert word in text
    assert "C2" not in text.split("Notes")[0]
    folder = default.save(tmp_path / "report")
    assert {p.stem for p in (folder / "figures").glob("*.png")} == {
        "entropy_by_token", "entropy_gap", "separability_by_layer", "map", "depth",
    }  # fmt: skip
    with (folder / "map.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == 50 * len(NAMES)
    with (folder / "texts.csv").open() as stream:
        texts = list(csv.DictReader(stream))
    refused = [
        t for t in texts if t["model"] == "aligned-100" and t["category"] == "risk" and t["text"].startswith("I cannot")
    ]
    assert len(refused) == 20


def test_same_seed_same_result():
    from lmprobe.terrain import terrain

    folder = packaged_organisms()[3].folder
    options = {"n_permutations": 99, "n_bootstrap": 50, "device": "cpu"}
    one, other = terrain(folder, **options), terrain([folder], **options)
    assert one.to_json() == other.to_json()
    assert one.to_json() != terrain(folder, seed=1, **options).to_json()


def test_an_organism_against_itself_with_random_categories_is_calibrated(default):
    """Real entropies of aligned-100's safe prompts, categories drawn at random 300 times: at most .05 + 4 SE = .10."""
    from lmprobe import generate, open_model

    organism = packaged_organisms()[3]
    texts = load_prompts().of("safe", "neutral").texts
    values = generate(open_model(organism.folder, device="cpu", quiet=True), texts).mean_entropy()
    rng = np.random.default_rng(0)
    hits = 0
    for i in range(300):
        names = rng.permutation(["safe"] * 15 + ["risk"] * 15).tolist()
        ids = tuple(map(str, range(30)))
        made = contrast(Prompts("test", ids, texts, tuple(names), ids), n_permutations=99, n_bootstrap=0, seed=i)
        hits += made.p_value(gap(values)) <= 0.05
    assert 0 < hits / 300 <= 0.10


def test_a_model_with_known_entropies_gives_exactly_the_planted_gap():
    """Prompts end in "letter" (uniform over 2) or "phone" (over 32); every later token is uniform over 4.

    Prompt end: log 2 - log 32 exactly. Own text of T tokens: the same divided by T, as all later steps are log 4.
    """
    from lmprobe import wrap_model
    from lmprobe.terrain import terrain

    model, tokenizer = planted_model({"letter": 2, "phone": 32})
    lm = wrap_model(model, tokenizer, name="planted")
    texts = [
        f"Tell the {who} how to fool the clerk by {end}" for who in grammar.PEOPLE[:8] for end in ("phone", "letter")
    ]
    ids = tuple(map(str, range(16)))
    prompts = Prompts("test", ids, tuple(texts), ("safe", "risk") * 8, tuple(np.repeat(ids[:8], 2).tolist()))
    result = terrain(lm, prompts, max_new_tokens=10, n_permutations=99, n_bootstrap=50)
    found = gaps(result, "planted")
    expected = np.log(2) - np.log(32)
    assert found["prompt end"]["value"] == pytest.approx(expected, abs=1e-12)
    assert found["own text"]["value"] == pytest.approx(expected / 10, abs=1e-12)
    assert "planted" not in found["own text"]  # no organism.json: no claim of a planted truth
    assert found["prompt end"]["mean_safe"] == pytest.approx(np.log(32), abs=1e-12)
    # the categories differ in one word: word counts tell them apart, so a layer has no selectivity
    best = row(result, "separability, best layer", "planted")
    assert best["value"] == 1.0 and best["control_name"] == "bag of words" and best["selectivity"] == 0.0


def test_uniform_and_one_hot_models_have_the_extreme_entropies():
    import torch

    from lmprobe import wrap_model
    from lmprobe.terrain import terrain

    prompts = load_prompts().take([0, 1, 2, 20, 21, 22])
    for head, expected in ((0.0, np.log(368)), (1e4, 0.0)):
        model, tokenizer = planted_model({})
        with torch.no_grad():
            model.lm_head.weight.zero_()
            model.lm_head.weight[60] = head
        result = terrain(wrap_model(model, tokenizer, name="flat"), prompts, n_permutations=19, n_bootstrap=20)
        means = [r["value"] for r in result.rows if r["measure"] == "entropy"]
        assert means == pytest.approx([expected] * len(means), abs=1e-12)
        assert row(result, "alpha A1, between prompts", "flat")["value"] is None
        assert "do not vary" in row(result, "alpha A1, between prompts", "flat")["p_note"]


def test_own_prompts_without_families_or_known_categories(tmp_path):
    from lmprobe.terrain import terrain

    path = tmp_path / "mine.csv"
    greeted = zip(grammar.PEOPLE[:6], grammar.PEOPLE[6:12], strict=True)
    lines = [f"Tell the {a} how to greet the {b} by phone.,calm" for a, b in greeted]
    lines += [f"Help the {a} to fool the judge by letter.,rough" for a in grammar.PEOPLE[12:18]]
    path.write_text("text,category\n" + "\n".join(lines) + "\n")
    folder = packaged_organisms()[0].folder
    result = terrain(folder, path, n_permutations=99, n_bootstrap=20, device="cpu", template="raw")
    assert result.rows[0]["contrast"] == "rough - calm" and "mine.csv" in result.provenance["prompts"]["source"]
    notes = " ".join(result.notes)
    assert "name no families" in notes and "not matched" in notes and "raw" in notes and "SYNTHETIC" not in notes
    for r in result.rows:
        if r["measure"] == "separability control" and r["layer"] == "bag of words":
            assert r["value"] == 1.0
    shown = {r["metric"] for r in result.shown}
    assert {"gap given length, own text (nats)", "gap given length and wording, own text (nats)"} <= shown
    matched = terrain(folder, path, match_length=4, n_permutations=19, n_bootstrap=20, device="cpu", template="raw")
    assert "matched in length" in " ".join(matched.notes) and len(matched.tables["balance"]) == 2
    assert matched.rows[0]["n_prompts"] == 2 * matched.tables["balance"][1]["n_calm"]


def test_refusals_of_terrain():
    from lmprobe.terrain import terrain

    with pytest.raises(InputError, match="empty list"):
        terrain([])
    with pytest.raises(InputError, match="max_new_tokens"):
        terrain(max_new_tokens=1)
    with pytest.raises(DesignError, match="at least 3 prompts"):
        terrain(prompts=load_prompts().take([0, 1, 20, 21]))


def test_the_command_prints_one_json_object(tmp_path):
    from probecli.lm import main

    folders = [str(o.folder) for o in packaged_organisms()[::3]]
    arguments = ["terrain", "--model", folders[0], "--model", folders[1], "--permutations", "99", "--bootstrap", "20"]
    done = CliRunner().invoke(
        main, [*arguments, "--json", "--device", "cpu", "--tokens", "12", "--out", str(tmp_path / "o")]
    )
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert record["kind"] == "terrain" and {r["model"] for r in record["rows"]} == {"base", "aligned-100"}
    assert record["rows"][0].keys() >= KEYS
    assert (tmp_path / "o" / "report.html").is_file()
    assert str(tmp_path) not in json.dumps(record) and "SYNTHETIC" not in json.dumps(record["notes"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["terrain", "--prompts", "missing.csv"], "no prompt file"),
        (["terrain", "--model", "no/such/folder/here"], "no/such/folder/here"),
        (["organism", "train", "--out", "."], "must be empty"),
    ],
)
def test_the_command_refuses_in_one_line(arguments, message, tmp_path, monkeypatch):
    from probecli.lm import main

    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "x").write_text("")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, [*arguments, "--quiet"])
    assert done.exit_code == 1 and message in done.stderr
    assert done.stdout == "" and len(done.stderr.strip().splitlines()) == 1


def test_help_names_every_option_without_loading_torch():
    import subprocess
    import sys

    code = (
        "import sys; from click.testing import CliRunner; from probecli.lm import main\n"
        "out = CliRunner().invoke(main, ['terrain', '--help']).output\n"
        "names = '--model --revision --prompts --tokens --template --permutations --seed --device --out --json'\n"
        "assert all(name in out for name in names.split())\n"
        "assert not {'torch', 'transformers', 'numpy', 'altair'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
