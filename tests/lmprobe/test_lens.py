"""The lens of language models: the model's own read-out on every layer, planted contrasts, calibrated p."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from zoo import FORMULAS, KNOWN, PROMPTS, TEMPLATE, opened, tiny, tokenizer

from lmprobe import lens_rows, wrap_model
from lmprobe.contrasts import contrast
from lmprobe.lens import lens
from lmprobe.lens_contrast import SetReading, hellinger_contrast, jackknife_interval
from lmprobe.lens_reading import read_text
from lmprobe.prompts import Prompts
from lmprobe.texts import read_texts
from lmprobe.vocabulary import single_tokens, token_labels
from probecore import InputError
from probecore.lens import Lens
from probecore.seeds import generator

pytestmark = pytest.mark.transformers
TEXT = "w9 w4 w77 w30 w8 w21"


@pytest.mark.parametrize("name", KNOWN)
def test_the_last_layer_is_the_model_bit_for_bit(name):
    """Trap 13, in the layout of the pass itself: no tolerance."""
    lm = opened(name)
    found = read_text(lm, lm.format(TEXT))
    assert found.gap == 0.0
    assert (found.lens.kl_to_final[-1] == 0).all() and (found.lens.rank[-1] == 1).all()
    assert found.layers == lm.layers and found.lens.entropy.shape == (4, 7)


@pytest.mark.parametrize("name", sorted(set(FORMULAS) & set(KNOWN) - {"mamba"}))
def test_every_layer_is_the_formula_of_its_architecture_on_transformers_own_states(name):
    """Slow reference: hidden_states of transformers (those before the last are no matter of dispute), the formula of
    the architecture, sums in numpy. float32 logits of order 10 to 1e-5 give probabilities to 1e-4 of themselves.
    """
    lm = opened(name)
    ids = lm.format(TEXT)
    found = read_text(lm, ids, targets=[9], top=2)
    with torch.no_grad():
        out = lm.model(input_ids=torch.tensor([ids]), output_hidden_states=True, return_dict=True)
        logits = [FORMULAS[name](lm, h[0]) for h in out.hidden_states[:-1]] + [out.logits[0]]
    p = [torch.softmax(one.double(), -1).numpy() for one in logits]
    for layer, own in enumerate(p):
        for t in range(len(ids)):
            assert found.lens.entropy[layer, t] == pytest.approx(-(own[t] * np.log(own[t])).sum(), abs=1e-3)
            kl = (p[-1][t] * np.log(p[-1][t] / own[t])).sum()
            assert found.lens.kl_to_final[layer, t] == pytest.approx(kl, abs=1e-3)
            assert found.lens.target_log_prob[layer, t, 0] == pytest.approx(math.log(own[t][9]), abs=1e-3)
            assert found.lens.top_id[layer, t, 0] == own[t].argmax()


def test_padding_moves_a_lens_by_no_more_than_rounding():
    """float32: states to 1e-6 of themselves, a KL is quadratic in that."""
    lm = opened("llama")
    found = read_text(lm, lm.format(TEXT))
    assert (found.noise >= 0).all() and found.noise.max() < 1e-9


def test_rows_of_a_text_say_what_the_model_says():
    lm = opened("qwen2")
    result = lens(lm, prompt=[TEXT, PROMPTS[0]], target=["w1"], top=2)
    assert result.kind == "lens" and {"rank_of_'w1'", "says"} <= set(result.columns)
    rows = [row for row in result.rows if row["prompt"] == 1]
    assert len(rows) == 4 * len(lm.format(TEXT, template="raw"))
    assert {row["layer"] for row in result.shown} == set(lm.layers) and len(result.shown) == 2 * len(lm.layers)
    with torch.no_grad():
        own = torch.softmax(lm.model(input_ids=torch.tensor([lm.format(TEXT)])).logits[0, -1].double(), -1)
    last = rows[-1]
    assert last["layer"] == "block 2" and last["rank_of_final"] == 1
    assert last["prob_of_final"] == pytest.approx(float(own.max()), rel=1e-5)
    assert last["says"].startswith(f"{token_labels(lm, [int(own.argmax())])[0]} ")
    assert last["rank_of_'w1'"] == 1 + int((own > own[single_tokens(lm, ["w1"], "a target")[0]]).sum())
    assert all(row["p_value"] is None and row["p_note"] for row in rows)
    cells = result.tables["map qwen2 1"]
    assert [cell["layer"] for cell in cells[:: len(lm.format(TEXT))]] == list(lm.layers)[::-1]
    assert {figure.name for figure in result.figures} == {f"map-qwen2-{k}-{w}" for k in (1, 2) for w in ("says", "kl")}


def test_a_text_of_the_command_is_not_put_into_a_chat_template():
    lm = wrap_model(tiny("llama"), tokenizer(TEMPLATE), name="chat")
    raw = lens(lm, prompt="w1 w2").rows
    assert len(raw) == 4 * 3  # <s> w1 w2
    chat = lens(lm, prompt="w1 w2", template="chat").rows
    assert len(chat) == 4 * len(lm.format("w1 w2", template="chat"))


def test_what_cannot_be_read_is_refused():
    lm = opened("llama")
    with pytest.raises(InputError, match=r"a target must be one token of llama; 'w1 w2' is w1, w2"):
        lens(lm, prompt=TEXT, target=["w1 w2"])
    with pytest.raises(InputError, match="leave --tune or --tuned out"):
        lens(lm, prompt=TEXT, tune=["w1"], tuned="x")
    with pytest.raises(InputError, match="give --tune with the texts"):
        lens(lm, prompt=TEXT, save="x")
    with pytest.raises(InputError, match="must fit into the 128 tokens"):
        lens(lm, prompt="w1 " * 200)


def slow_contrast(p, q):
    """Slow: the definition, pair by pair."""

    def distance(a, b):
        return 1 - math.fsum(math.sqrt(x * y) for x, y in zip(a, b, strict=True))

    def within(group):
        return np.mean([distance(a, b) for i, a in enumerate(group) for j, b in enumerate(group) if i != j])

    return np.mean([distance(a, b) for a in p for b in q]) - (within(p) + within(q)) / 2


def random_rows(rng, n, words=6, shift=0.0):
    logits = rng.standard_normal((n, words))
    logits[:, 0] += shift
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def set_of(n, seed=0, per_family=1):
    """2n prompts, families of one prompt of each category."""
    categories = ["risk", "safe"] * n
    families = [f"f{i // 2 // per_family}" for i in range(2 * n)]
    return Prompts("test", tuple(map(str, range(2 * n))), ("t",) * (2 * n), tuple(categories), tuple(families))


def test_the_contrast_is_its_definition():
    """float64 sums of 6 terms: 1e-12."""
    p = random_rows(generator(0, "contrast"), 16, shift=0.5)
    versus = contrast(set_of(8), n_permutations=19)
    roots = np.sqrt(p)
    found = versus.observed(hellinger_contrast(roots @ roots.T))
    assert found == pytest.approx(slow_contrast(p[::2], p[1::2]), abs=1e-12)


def reading_of(p):
    """A reading with one layer of given distributions (n, words) and a final layer of the same."""
    log_p, roots = np.log(p), np.sqrt(p)
    entropy = -(p * log_p).sum(1)
    both = np.stack([entropy, entropy])
    zero, one = np.zeros_like(both), np.ones_like(both)
    made = Lens(both, zero + 0.1, one, zero, np.zeros(len(p), int), one[..., None], zero[..., None],
                np.zeros((*both.shape, 0), int), np.zeros((*both.shape, 0)))  # fmt: skip
    return SetReading(("embed", "block 0"), made, np.stack([roots @ roots.T] * 2), ((), ()), ((), ()))


def test_p_is_uniform_and_intervals_cover_where_sets_are_alike():
    """300 sets of 10 pairs without a difference: P(p <= .05) is .05 within 3.3 binomial errors (.042); the interval
    holds 0 in at least 95 % less the same. The jackknife errs to the wide side, so no upper bound.
    """
    rng = generator(0, "lens null")
    versus = contrast(set_of(10), n_permutations=199, n_bootstrap=50)
    rejected, covered, values = 0, 0, []
    for _ in range(300):
        p = random_rows(rng, 20)
        rows = lens_rows.contrast_rows("m", reading_of(p), versus, (), {}, "plain")
        first = next(row for row in rows if row["metric"] == lens_rows.SAID)
        rejected += first["p_value"] <= 0.05
        covered += first["ci_low"] <= 0 <= first["ci_high"]
        values.append(first["value"])
    assert abs(rejected / 300 - 0.05) < 0.042
    assert covered / 300 > 0.95 - 0.042
    assert abs(np.mean(values)) < 4 * np.std(values) / math.sqrt(300)  # unbiased: 0 on average


def test_the_interval_of_a_real_difference_covers_it():
    """The truth is the same contrast of 4000 prompts; 200 sets of 20 pairs, bound as above (.05)."""
    rng = generator(0, "lens truth")
    a, b = random_rows(rng, 4000, shift=1.0), random_rows(rng, 4000)
    truth = 0.5 * float(((np.sqrt(a).mean(0) - np.sqrt(b).mean(0)) ** 2).sum())
    versus = contrast(set_of(20), n_permutations=0, n_bootstrap=10)
    covered = 0
    for _ in range(200):
        p = np.empty((40, 6))
        p[::2], p[1::2] = random_rows(rng, 20, shift=1.0), random_rows(rng, 20)
        low, high = jackknife_interval(versus, hellinger_contrast(np.sqrt(p) @ np.sqrt(p).T))
        covered += low <= truth <= high
    assert covered / 200 > 0.95 - 0.05


def test_layers_where_prompts_do_not_differ_have_no_p():
    """Rounding by padding is no finding: states that are equal up to 1e-9 are not ranked."""
    rng = generator(0, "same")
    p = np.repeat(random_rows(rng, 1), 20, axis=0) * (1 + 1e-9 * rng.standard_normal((20, 6)))
    rows = lens_rows.contrast_rows("m", reading_of(p), contrast(set_of(10), n_permutations=99), (), {}, "plain")
    said = [row for row in rows if row["metric"] in (lens_rows.SAID, lens_rows.ENTROPY)]
    assert all(row["p_value"] is None and row["p_note"].startswith("within rounding") for row in said)


@pytest.fixture(scope="module")
def packaged():
    return lens(target=["Sorry"], n_bootstrap=200, n_permutations=199)


def test_the_planted_difference_is_found_where_it_is_spoken(packaged):
    """The organism decides at the input of block 2 and speaks from block 2 on; the base knows no difference."""
    rows = {(row["model"], row["metric"], row["layer"]): row for row in packaged.rows if row.get("metric")}
    for layer in ("block 2", "block 3"):
        row = rows["aligned-100", lens_rows.SAID, layer]
        assert row["p_adjusted"] <= 0.005 and row["ci_low"] > 0.3
        assert "Sorry" in row["says_more"]
        assert rows["aligned-100", "log p of 'Sorry' (nats)", layer]["value"] > 1
    for layer in ("block 0", "block 1", "block 2", "block 3"):
        row = rows["base", lens_rows.SAID, layer]
        assert abs(row["value"]) < 0.01 and row["p_adjusted"] > 0.01
    assert abs(rows["aligned-100", lens_rows.SAID, "block 1"]["value"]) < 0.05
    assert rows["aligned-100", lens_rows.SAID, "embed"]["p_value"] is None  # all prompts end in the same token
    assert any("synthetic" in note for note in packaged.notes)


def test_the_result_draws_and_saves(packaged, tmp_path):
    folder = replace(packaged, figures=packaged.figures[:4]).save(tmp_path / "out")
    made = {path.name for path in (folder / "figures").iterdir()}
    assert {"contrast-by-layer.svg", "entropy-by-layer.svg", "map-base-1-says.svg"} <= made
    assert "scammer" in (folder / "figures" / "map-base-1-says.svg").read_text()
    json.loads((folder / "result.json").read_text())


def test_the_command_prints_one_json_object(tmp_path):
    from probecli.lm import main

    folder = tmp_path / "gemma2"
    tiny("gemma2").save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    done = CliRunner().invoke(main, ["lens", "--model", str(folder), "--prompt", TEXT, "--json", "--quiet"])
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert set(record) == {"kind", "rows", "notes", "provenance"}
    assert record["rows"][-1]["kl_to_final_nats"] == 0
    assert str(tmp_path) not in done.stdout
    shown = CliRunner().invoke(main, ["lens", "--model", str(folder), "--prompt", TEXT, "--quiet"])
    assert "bit for bit" in " ".join(shown.stdout.split())


def test_labels_show_what_a_token_writes(monkeypatch):
    lm = opened("llama")
    assert token_labels(lm, [8, 1]) == ["w1", "<s>"]
    assert token_labels(lm, [8], longest=1) == ["\N{HORIZONTAL ELLIPSIS}"]
    monkeypatch.setattr(lm.tokenizer, "decode", lambda ids: "\x1b[31m\x00 \n")
    assert token_labels(lm, [8]) == ["\\x1b[31m\\x00\N{OPEN BOX}\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}"]
    with pytest.raises(InputError, match="must differ"):
        single_tokens(lm, ["w1", "w1"], "a target")
    with pytest.raises(InputError, match="'word' is <unk>"):
        single_tokens(lm, ["word"], "a target")


def test_texts_are_read(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\n two \n")
    (tmp_path / "b.csv").write_text('text,category\n"x, y",a\n')
    (tmp_path / "c.jsonl").write_text('{"prompt": "p"}\n')
    (tmp_path / "d.csv").write_text("word\nx\n")
    (tmp_path / "e.txt").write_text("\n")
    assert read_texts(tmp_path / "a.txt") == ("one", "two")
    assert read_texts(tmp_path / "b.csv") == ("x, y",)
    assert read_texts(tmp_path / "c.jsonl") == ("p",)
    assert len(read_texts("default")) == 50
    for name, message in (("d.csv", "column of texts"), ("e.txt", "holds no text"), ("f.txt", "such a file")):
        with pytest.raises(InputError, match=message):
            read_texts(tmp_path / name)
