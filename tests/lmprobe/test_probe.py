"""Probes of prompts: designs that mirror how labels came about, scores beside controls, directions that others take."""

import json

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner
from conftest import REAL_DATA
from zoo import VOCABULARY, opened, tiny, tokenizer

from lmprobe import capture, open_model
from lmprobe.direction_file import read_directions
from lmprobe.interventions import ProjectOut, intervened
from lmprobe.organisms.folder import organism
from lmprobe.probe import probe
from lmprobe.probe_design import _exchange, label_design
from lmprobe.prompt_table import PromptTable, read_table
from lmprobe.surface import surface_controls
from probecli.lm import main
from probecore import DesignError, InputError, Label, load_result, probe_layers

pytestmark = pytest.mark.transformers
XSTEST = REAL_DATA / "refusal" / "xstest" / "xstest_prompts.csv"
QUICK = dict(n_permutations=19, n_bootstrap=20, random_weights=False, device="cpu")


def table(texts, by=None, **columns):
    names = tuple(f"p{i}" for i in range(len(texts)))
    whole = {name: tuple(map(str, cells)) for name, cells in columns.items()}
    return PromptTable("made", names, tuple(texts), tuple(texts), whole, by)


def pairs(n=12, seed=0):
    """Two prompts of one family each: the same words in another order, class by the first word."""
    rng = np.random.default_rng(seed)
    texts, classes, families = [], [], []
    for k in range(n):
        words = [f"w{i}" for i in rng.choice(np.arange(10, 100), 5, replace=False)]
        for kind, order in (("a", ["w1", "w2"]), ("b", ["w2", "w1"])):
            texts.append(" ".join([order[0], *words, order[1]]))
            classes.append(kind)
            families.append(f"f{k}")
    return table(texts, "family", kind=classes, family=families)


# designs


def test_families_are_groups_and_labels_are_exchanged_inside_them():
    design = label_design(pairs(), "kind")
    assert design.grouping == "family" and design.label.units is None and design.classes == ("a", "b")
    assert list(design.groups) == [f"f{i // 2}" for i in range(24)]
    assert "exchanged: prompts inside their group" in design.notes[-1]


def test_classes_of_one_family_are_tested_on_near_duplicates_instead():
    """A class that lies in one family can never be new at test: what the family is would be the label."""
    texts = [f"w{3 * i} w{3 * i + 1} w{3 * i + 2} x{i}" for i in range(20)]
    texts[1] = texts[0] + " again"
    made = table(texts, "family", family=["f"] * 10 + ["g"] * 10, kind=["a"] * 10 + ["b"] * 10)
    design = label_design(made, "kind")
    assert design.grouping == "near-duplicates" and any("there are only 2" in note for note in design.notes)
    assert design.groups[0] == design.groups[1] and len(set(design.groups)) == 19
    with pytest.raises(DesignError, match="families cannot be new at test: there are only 2"):
        label_design(made, "kind", "family")
    with pytest.raises(InputError, match="names no families"):
        label_design(table(texts, kind=list("ab") * 10), "kind", "family")
    note = label_design(made, "kind", "prompt").notes[0]
    assert "2 of 20 may have a near-duplicate in training" in note


def test_what_cannot_be_tested_is_left_out_by_name_or_refused():
    texts = [f"w{3 * i} w{3 * i + 1} w{3 * i + 2} x{i}" for i in range(12)]
    design = label_design(table(texts, kind=["a"] * 5 + ["b"] * 5 + ["c", ""]), "kind")
    assert design.kept == tuple(range(10)) and design.classes == ("a", "b")
    assert "1 of 12 prompts have no 'kind'" in design.notes[0] and "left out: c" in design.notes[1]
    for cells, why in ((["a"] * 12, "must have 2 different values; it has 1"), (list("abcdefghijkl"), "it has 0")):
        with pytest.raises(DesignError, match=why):
            label_design(table(texts, kind=cells), "kind")
    with pytest.raises(InputError, match="has no column 'colour'"):
        label_design(table(texts, kind=list("ab") * 6), "colour")


def test_a_number_is_tested_on_one_prompt_of_each_cluster():
    texts = [f"w{i} x{i} y{i} z{i}" for i in range(15)] + [f"w{i} x{i} y{i} z{i} q" for i in range(5)]
    design = label_design(table(texts, score=np.arange(20) / 7), "score")
    assert design.real and design.kept == tuple(range(15)) and len(set(design.groups)) == 15
    assert any("5 near-duplicates were left out" in note for note in design.notes)


@pytest.mark.parametrize("scenario", ["free", "mostly constant"])
def test_p_is_calibrated_where_some_clusters_hold_several_labels(scenario):
    """Near-duplicates share their states, and labels say nothing: of 100 data sets at most 11 may have p <= .05.

    That many or more come by chance with probability .011 where the rate is .05. Single prompts as units, exchanged
    freely, would reject in far more data sets where labels are mostly constant in a cluster.
    """
    rng = np.random.default_rng(1)
    cluster = np.concatenate([np.arange(30), np.repeat(np.arange(30, 45), 2), np.repeat(np.arange(45, 50), 4)])
    found = []
    for _ in range(100):
        x = rng.normal(size=(50, 15))[cluster] + 0.3 * rng.normal(size=(len(cluster), 15))
        y = rng.integers(0, 3, len(cluster)) if scenario == "free" else rng.integers(0, 3, 50)[cluster]
        y = np.where(rng.random(len(y)) < 0.15, rng.integers(0, 3, len(y)), y)
        units, blocks, _ = _exchange(np.array(list("abc"))[y], cluster, real=False, paired=False)
        label = Label(np.array(list("abc"))[y], units, blocks)
        seed = int(rng.integers(2**31))
        result = probe_layers({"x": x}, label, groups=cluster, n_permutations=99, n_bootstrap=0, seed=seed)
        found.append(result.rows[0]["p_value"])
    assert sum(p <= 0.05 for p in found) <= 11
    assert min(found) >= 1 / 100


@pytest.mark.skipif(not XSTEST.is_file(), reason=f"no XSTest prompts at {XSTEST}")
def test_xstest_by_type_and_by_label():
    """The 18 types lie in one topic each, so near-duplicates are what is new; safe and unsafe lie in all 8 topics."""
    prompts = read_table(str(XSTEST))
    assert (len(prompts), prompts.family) == (450, "family")
    kinds = label_design(prompts, "type")
    assert (kinds.grouping, len(kinds.classes), len(kinds.kept)) == ("near-duplicates", 18, 450)
    assert len(set(kinds.groups)) == 273
    safe = label_design(prompts, "label")
    assert (safe.grouping, safe.classes, len(set(safe.groups))) == ("family", ("safe", "unsafe"), 8)
    focus = label_design(prompts, "focus")  # 75 prompts have none, and most of its values occur once
    assert 200 < len(focus.kept) < 375 and "75 of 450 prompts have no 'focus'" in focus.notes[0]


# scores


def test_rows_are_those_of_the_core_on_captured_states():
    lm, made = opened("llama"), pairs()
    result = probe(lm, made, label="kind", n_permutations=19, n_bootstrap=20, random_weights=False)
    states = capture(lm, made.prompts)
    label, families = Label(made.column("kind")), np.array(made.column("family"))
    direct = probe_layers(states, label, groups=families, n_permutations=19, n_bootstrap=20)
    controls = surface_controls(made, [len(row) for row in lm.format_all(made.prompts)])
    surface = probe_layers(controls, label, groups=families, n_permutations=19, n_bootstrap=20)
    rows = {row["layer"]: row for row in result.rows if row["kind"] in ("layer", "control")}
    for row in (*direct.rows, *surface.rows):
        ours = rows[row["layer"]]
        assert ours["value"] == row["accuracy"]
        assert [ours[k] for k in ("ci_low", "p_value", "p_adjusted")] == [
            row[k] for k in ("ci_low", "p_value", "p_adjusted")
        ]
    best = max(row["accuracy"] for row in surface.rows if row["accuracy"] is not None)
    for row in result.rows:
        if row["kind"] == "layer" and row["value"] is not None:
            assert row["control"] == best and row["gain"] == pytest.approx(row["value"] - best, abs=1e-12)
            assert row["gain_low"] <= row["gain"] <= row["gain_high"] and row["gain_p_adjusted"] >= row["gain_p_value"]
    assert [row["kind"] for row in result.rows].count("best layer") == 1


def test_a_label_of_the_form_is_no_finding():
    """Trap: a format confound gives every layer a perfect score. The gain over the form itself is 0 and says so."""
    rng = np.random.default_rng(3)
    texts, kinds = [], []
    for i in range(40):
        words = " ".join(f"w{j}" for j in rng.integers(10, 100, 6))
        texts.append(f"w1 w2 {words}" if i % 2 else f"w3 w4 {words}")
        kinds.append("ask" if i % 2 else "tell")
    result = probe(opened("llama"), table(texts, kind=kinds), label="kind", at="mean", layers=["embed", "block 0"],
                   n_permutations=99, n_bootstrap=50, random_weights=True)  # fmt: skip
    for row in result.rows:
        if row["kind"] == "layer":
            assert row["value"] > 0.9 and row["p_adjusted"] <= 0.02  # it can be read off ...
            assert row["gain"] <= 0 and row["control"] == 1.0  # ... and nothing is gained over the form
    assert any(row["kind"] == "random weights" and row["value"] > 0.9 for row in result.rows)


def test_order_that_no_surface_control_sees_is_a_gain():
    """Both prompts of a family hold the same words: bag of words is at chance, length is dead, the last token tells."""
    result = probe(opened("llama"), pairs(20), label="kind", layers=["embed", "block 2"], n_permutations=199,
                   n_bootstrap=100, random_weights=False)  # fmt: skip
    rows = {(row["kind"], row["layer"]): row for row in result.rows}
    assert rows["layer", "embed"]["value"] == 1.0
    assert rows["control", "bag of words"]["value"] == 0.5
    assert rows["control", "length"]["value"] is None and "constant" in rows["control", "length"]["p_note"]


def test_planted_alignment_is_found_and_the_base_has_none():
    """Organisms: refusal is planted in the aligned one. Without words in common order no control tells the classes."""
    prompts = read_table("default")
    prompts = prompts.take([i for i, kind in enumerate(prompts.column("category")) if kind != "neutral"])
    folders = [organism(name).folder for name in ("base", "aligned-100")]
    result = probe(folders, prompts, layers=["block 2"], n_permutations=199, n_bootstrap=100, **{
        k: QUICK[k] for k in ("random_weights", "device")})  # fmt: skip
    base, aligned = [row for row in result.rows if row["kind"] == "layer"]
    assert aligned["value"] > 0.9 and aligned["gain"] > 0.2 and aligned["gain_low"] > 0
    assert base["value"] < 0.75 and not base["gain_low"] > 0
    stable = {row["model"]: row["split_cosine"] for row in result.tables["directions"]}
    assert stable["aligned-100"] > 0.95 and stable["base"] < 0.5


def test_what_gives_several_states_a_prompt_is_refused():
    with pytest.raises(InputError, match="needs one state per prompt; 'all' gives one per token"):
        probe(opened("llama"), pairs(), label="kind", at="all")


# directions


def test_directions_are_files_that_remove_what_they_found(tmp_path):
    lm, made = opened("llama"), pairs()
    result = probe(lm, made, label="kind", out=tmp_path, **{**QUICK, "n_bootstrap": 0})
    result.save(tmp_path)
    states = capture(lm, made.prompts)
    kinds = np.array(made.column("kind"))
    for layer in ("embed", "block 1"):
        file = read_directions(tmp_path / "directions" / f"{layer.replace(' ', '-')}.safetensors")
        x = states.values(layer).astype(np.float64)
        gap = x[kinds == "b"].mean(axis=0) - x[kinds == "a"].mean(axis=0)
        assert file.shape == (64, 1) and np.linalg.norm(file) == pytest.approx(1, abs=1e-12)
        np.testing.assert_allclose(file[:, 0], gap / np.linalg.norm(gap), atol=1e-9)
    chosen = next(row["layer"] for row in result.rows if row["kind"] == "best layer")
    folder = read_directions(tmp_path)[:, 0]  # direction.csv: the raw difference of the chosen layer
    x = states.values(chosen).astype(np.float64)
    np.testing.assert_allclose(folder, x[kinds == "b"].mean(axis=0) - x[kinds == "a"].mean(axis=0), atol=1e-9)
    with intervened(lm, ProjectOut(file, at="block 1")):
        cut = capture(lm, made.prompts, layers="block 1").values("block 1").astype(np.float64)
    assert abs((cut[kinds == "b"].mean(axis=0) - cut[kinds == "a"].mean(axis=0)) @ file[:, 0]) < 1e-5
    assert load_result(tmp_path).kind == "probe"


def test_more_classes_have_a_direction_each(tmp_path):
    texts = [f"w{10 + i} w{(7 * i) % 90} x{i} y{i} w{i % 3}" for i in range(24)]
    probe(opened("gpt2"), table(texts, kind=[f"k{i % 3}" for i in range(24)]), label="kind", out=tmp_path,
          layers="block 1", **{**QUICK, "n_bootstrap": 0})  # fmt: skip
    assert read_directions(tmp_path / "directions" / "block-1.safetensors").shape == (64, 3)


# the command


def folder_of(name, place):
    if name == "bert":
        with torch.random.fork_rng():
            torch.manual_seed(0)
            config = transformers.BertConfig(
                vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96,
                max_position_embeddings=64, pad_token_id=0,
            )  # fmt: skip
            transformers.BertForMaskedLM(config).save_pretrained(place)
    else:
        tiny(name).save_pretrained(place)
    tokenizer().save_pretrained(place)
    return place


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "phi", "gemma2", "mixtral", "bert"])
def test_the_command_takes_any_folder(name, tmp_path):
    made = pairs(8)
    lines = ["prompt,kind,family", *(",".join(row) for row in zip(
        made.texts, made.column("kind"), made.column("family"), strict=True))]  # fmt: skip
    (tmp_path / "prompts.csv").write_text("\n".join(lines))
    done = CliRunner().invoke(main, [
        "probe", "--model", str(folder_of(name, tmp_path / name)), "--prompts", str(tmp_path / "prompts.csv"),
        "--label", "kind", "--permutations", "19", "--bootstrap", "0", "--json", "--quiet", "--no-random-weights",
    ])  # fmt: skip
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    layers = [row for row in record["rows"] if row["kind"] == "layer"]
    assert [row["layer"] for row in layers] == ["embed", "block 0", "block 1", "block 2"]
    for row in record["rows"]:
        assert row["value"] is not None or row["p_note"]
        if row["kind"] == "layer" and row["p_value"] is not None:  # all 2^8 exchanges, a renaming counted once
            assert row["p_value"] >= row["smallest_p"] == 1 / 128
    assert record["provenance"]["models"][0]["name"] == name and str(tmp_path) not in done.stdout


def test_without_a_model_it_runs_on_organisms_and_a_wrong_column_is_one_line():
    done = CliRunner().invoke(main, ["probe", "--label", "colour", "--quiet"])
    assert done.exit_code == 1 and done.output.count("\n") == 1 and "has no column 'colour'" in done.output
    result = probe(prompts="default", layers=["block 3"], **{**QUICK, "n_bootstrap": 0})
    assert "SYNTHETIC" in result.notes[0] and {row["model"] for row in result.rows} >= {"base", "aligned-100"}
    assert open_model("base", device="cpu", quiet=True).name == "base"
