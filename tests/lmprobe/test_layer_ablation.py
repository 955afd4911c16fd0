"""Layer ablation: replay is the full run bit for bit, changes are those of edited weights, planted directions count."""

import copy
import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from zoo import PROMPTS, opened, tiny, tokenizer

from lmprobe import open_model, wrap_model
from lmprobe.ablation_arms import Arm, EqualChange, Fitted, PutMeans, Where, donated, flags_of, interventions
from lmprobe.ablation_metrics import KL, REFUSAL, Meter
from lmprobe.ablation_sweep import Plan, draw_weights, run_sweep
from lmprobe.capture import capture
from lmprobe.inputs import forward_arguments, pad
from lmprobe.interventions import Add, ProjectOut, Read, Replace, intervened
from lmprobe.layer_ablation import ablate, halves
from lmprobe.organisms import organism
from lmprobe.prompts import Prompts, load_prompts
from probecore import DesignError, InputError
from probecore.seeds import generator

pytestmark = pytest.mark.transformers
WIDTH, BLOCKS = 64, 3
ANSWERS = ([9, 17, 4], [88, 11], [30, 31, 32], [55])


def meter_of(span="answer"):
    return Meter(span, (20,), ("w13",), (30, 31))


def texts_of(lm, meter):
    return [meter.text(lm.format(p), a) for p, a in zip(PROMPTS, ANSWERS, strict=True)]


def fitted_of(lm):
    """Means, donors, spreads and directions from other prompts."""
    rows = [lm.format(p) for p in ("w8 w7 w6 w5", "w70 w71 w72 w73 w74 w75 w76 w77 w78", "w40 w2")]
    sites = [f"{part} {i}" for part in ("attention", "mlp", "block") for i in range(BLOCKS)]
    acts = capture(lm, rows, layers=sites, at="all")
    starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    rng = generator(0, "directions")
    values = {site: np.asarray(acts.values(site)) for site in sites}
    return Fitted(
        {site: np.stack([v[starts[:-1]].mean(0), v.mean(0)]).astype(float) for site, v in values.items()},
        {site: [v[a:b] for a, b in pairwise(starts)] for site, v in values.items()},
        [len(row) - 1 for row in rows],
        {site: v - v.mean(0) for site, v in values.items()},
        {i: rng.standard_normal(WIDTH) for i in range(BLOCKS)},
    )


ARMS = (
    *(Arm(kind, part, 1) for kind in ("zero", "mean", "project") for part in ("attention", "mlp", "block")),
    *(Arm("resample", part, 2) for part in ("attention", "mlp", "block")),
    Arm("skip", "block", 0), Arm("skip", "block", 2), Arm("add", "block", 1), Arm("mean", "mlp", None),
    Arm("project", "block", None),
)  # fmt: skip


def plan_of(arms, fitted, n_random=0, positions="all"):
    n_states = max(len(v) for v in fitted.spread.values())
    return Plan(arms, positions, 2.0, np.array([0, 1, 2, 0]), draw_weights(n_random, WIDTH, n_states, 0), 0)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "mixtral", "qwen2_moe", "mamba", "gemma3n_text"])
def test_a_replayed_sweep_is_the_full_sweep_bit_for_bit(name):
    """The same operations on the same bits: no tolerance. Random directions share a pass, in whose layout the blocks
    before were not recorded: float32 rounding, 1e-5.
    """
    lm, meter = opened(name), meter_of()
    arms, fitted, simple = ARMS, Fitted(), name in ("mamba", "gemma3n_text")
    if simple:  # no MLP; several streams that are mixed: only the blocks are parts of both
        arms = (Arm("zero", "block", 2), Arm("skip", "block", 1))
        plan = Plan(arms, "all", 1.0, np.zeros(4, dtype=np.int64), draw_weights(2, lm.certificate.width, 1, 0), 0)
        plan = replace(plan, weights={"random": plan.weights["random"]})
    else:
        fitted = fitted_of(lm)
        plan = plan_of(arms, fitted, 2)
    quick, slow = (run_sweep(lm, texts_of(lm, meter), meter, fitted, plan, replayed=flag) for flag in (True, False))
    np.testing.assert_array_equal(quick.intact, slow.intact)
    for arm in arms:
        np.testing.assert_array_equal(quick.arms[arm], slow.arms[arm], err_msg=str(arm))
        for control in plan.weights:
            both = (swept.controls[control][arm] for swept in (quick, slow))
            np.testing.assert_allclose(*both, rtol=1e-5, atol=1e-5)
    assert (quick.intact[0] == 0).all()
    assert max(np.nanmax(quick.arms[arm][0]) for arm in arms) > 1e-2


def slow_metrics(model, text):
    """Slow: one text alone, a plain call, sums in numpy."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([text.ids])).logits[0].double()
    return torch.log_softmax(logits, -1).numpy()


def expected(own, other, text, meter):
    spans = [x[text.start : text.stop] for x in (own, other)]
    kl = np.mean([(np.exp(p) * (p - q)).sum() for p, q in zip(*spans, strict=True)])
    loss = -np.mean([q[t] for q, t in zip(spans[1], text.tokens, strict=True)])
    entropy = np.mean([-(np.exp(q) * q).sum() for q in spans[1]])
    end = other[text.end]
    inside = np.exp(end[list(meter.openings)]).sum()
    return [kl, loss, entropy, end[meter.targets[0]], np.log(inside) - np.log(1 - inside)]


def edited_llama(arm, fitted):
    """The same change by other means: weights, blocks that are left out, plain hooks."""
    model = tiny("llama")
    block = model.model.layers[arm.block]
    if (arm.kind, arm.part) == ("zero", "attention"):
        block.self_attn.o_proj.weight.data.zero_()
    elif (arm.kind, arm.part) == ("zero", "mlp"):
        block.mlp.down_proj.weight.data.zero_()
    elif arm.kind == "skip":
        model.model.layers = torch.nn.ModuleList([b for b in model.model.layers if b is not block])
    elif arm.kind == "project":
        v = torch.tensor(fitted.vectors[arm.block] / np.linalg.norm(fitted.vectors[arm.block]), dtype=torch.float32)
        block.mlp.register_forward_hook(lambda m, a, out: out - (out @ v)[..., None] * v)
    elif arm.kind == "mean":
        means = torch.tensor(fitted.means[f"mlp {arm.block}"], dtype=torch.float32)
        block.mlp.register_forward_hook(
            lambda m, a, out: torch.cat([means[:1], means[1:].expand(out.shape[1] - 1, -1)])[None]
        )
    return model


@pytest.mark.parametrize(
    "arm",
    [Arm("zero", "attention", 1), Arm("zero", "mlp", 2), Arm("skip", "block", 1), Arm("project", "mlp", 1),
     Arm("mean", "mlp", 0)],
    ids=str,
)  # fmt: skip
def test_a_change_is_that_of_edited_weights_and_hooks_text_by_text(arm):
    """Alone against in a left-padded batch, float32: log-probabilities of order 10 agree to 1e-4."""
    lm, meter = opened("llama"), meter_of()
    fitted = fitted_of(lm)
    texts = texts_of(lm, meter)
    found = run_sweep(lm, texts, meter, fitted, plan_of((arm,), fitted)).arms[arm]
    model = edited_llama(arm, fitted)
    for k, text in enumerate(texts):
        own, other = slow_metrics(lm.model, text), slow_metrics(model, text)
        np.testing.assert_allclose(found[:, k], expected(own, other, text, meter), atol=2e-4, rtol=1e-4)
    assert found[0].max() > 1e-3


@pytest.mark.parametrize("span", ["end", "prompt"])
def test_the_other_spans_are_read_where_they_say(span):
    lm, meter = opened("gpt2"), meter_of(span)
    texts = texts_of(lm, meter)
    swept = run_sweep(lm, texts, meter, Fitted(), Plan((), "all", 1.0, np.zeros(4, dtype=np.int64), {}, 0))
    for k, (text, prompt) in enumerate(zip(texts, PROMPTS, strict=True)):
        ids = lm.format(prompt)
        assert list(text.ids) == ids
        own = slow_metrics(lm.model, text)
        if span == "end":
            assert meter.names == (KL, "entropy", "log p of 'w13'", REFUSAL)
            entropy = -(np.exp(own[-1]) * own[-1]).sum()
        else:
            loss = -np.mean([own[t, ids[t + 1]] for t in range(len(ids) - 1)])
            assert swept.intact[1, k] == pytest.approx(loss, abs=1e-4)
            entropy = np.mean([-(np.exp(p) * p).sum() for p in own[:-1]])
        assert swept.intact[-3, k] == pytest.approx(entropy, abs=1e-4)
        assert swept.intact[-2, k] == pytest.approx(own[-1][20], abs=1e-4)


@pytest.mark.parametrize("positions", ["all", "last", "0", "1,3", "2:", ":2"])
def test_positions_are_those_of_the_text_in_any_batch(positions):
    """Trap 17: the effect of each text is the one it has when it is run alone; float32, 1e-4."""
    lm, meter = opened("gpt2"), meter_of()
    fitted, arms = fitted_of(lm), (Arm("add", "block", 1), Arm("resample", "attention", 1), Arm("mean", "mlp", 0))
    texts = texts_of(lm, meter)
    together = run_sweep(lm, texts, meter, fitted, plan_of(arms, fitted, positions=positions))
    for k, text in enumerate(texts):
        plan = Plan(arms, positions, 2.0, np.array([[0, 1, 2, 0][k]]), {}, 0)
        alone = run_sweep(lm, [text], meter, fitted, plan)
        for arm in arms:
            np.testing.assert_allclose(together.arms[arm][:, k], alone.arms[arm][:, 0], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["llama", "qwen2_moe", "gemma2"])
@pytest.mark.parametrize("part", ["attention", "mlp", "block"])
def test_a_control_changes_every_token_by_as_much(name, part):
    """Also where a sub-layer is the sum of several modules. float32 states: 1e-4 of themselves."""
    lm = opened(name)
    site, unit = f"{part} 1", torch.nn.functional.normalize(torch.ones(1, WIDTH), dim=1)
    ids, mask = pad([lm.format(PROMPTS[1])], lm.pad_id, "right")

    def states(*made):
        seen = {}
        read = Read(lambda where, h: seen.setdefault(where, h.clone()), site)
        with torch.no_grad(), intervened(lm, *made, read):
            lm.model(**forward_arguments(lm.model, ids, mask, use_cache=lm.certificate.cached))
        return seen[site][0]

    own = states()
    for inner in (PutMeans(np.ones((2, WIDTH)), site), Replace(0.0, site), ProjectOut(np.arange(WIDTH) + 1.0, site)):
        changed, control = states(inner), states(EqualChange(inner, unit))
        amount = (changed - own).norm(dim=1)
        np.testing.assert_allclose((control - own).norm(dim=1), amount, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose((control - own) @ unit[0], amount, rtol=1e-3, atol=1e-4)
    along = torch.nn.functional.normalize(torch.arange(WIDTH) + 1.0, dim=0)
    signed = states(EqualChange(ProjectOut(np.arange(WIDTH) + 1.0, site), unit, along))
    np.testing.assert_allclose((signed - own) @ unit[0], -(own @ along), rtol=1e-3, atol=1e-4)
    added = states(EqualChange(Add(3.0 * along, site), unit, along)) - own
    np.testing.assert_allclose(added, (3.0 * unit).expand_as(added), rtol=1e-3, atol=1e-4)


def test_donors_are_aligned_at_the_ends_of_prompts():
    """Row of 5 tokens with its prompt's end at 3; donors of 7 (end 5) and of 2 tokens (end 1)."""
    long, short = np.arange(7.0)[:, None].astype(np.float32), np.array([[100.0], [101.0]], dtype=np.float32)
    fitted = Fitted(states={"mlp 0": [long, short]}, ends=[5, 1])
    found = donated(fitted, "mlp 0", [0, 1], [5, 5], [3, 3])[..., 0]
    assert found.tolist() == [[0, 3, 4, 5, 6], [100, 101, 101, 101, 101]]


def test_what_is_not_meant_keeps_its_state_bit_for_bit():
    hidden = torch.randn(1, 3, WIDTH)

    class At:
        site, first, last, entry = "mlp 0", True, True, None

        @staticmethod
        def positions():
            return torch.tensor([[-1, 0, 1]])

    out = Where(Replace(0.0, "mlp 0"), flags_of("1", [1])).change(hidden, At)
    assert torch.equal(out[0, :2], hidden[0, :2]) and (out[0, 2] == 0).all()
    means = PutMeans(np.stack([np.full(WIDTH, 1.0), np.full(WIDTH, 2.0)]), "mlp 0").change(hidden, At)
    assert torch.equal(means[0, 0], hidden[0, 0]) and (means[0, 1] == 1).all() and (means[0, 2] == 2).all()
    assert flags_of("last", [1, 0])(torch.tensor([[0, 1], [-1, 0]] * 2)).tolist() == [[False, True]] * 4
    with pytest.raises(InputError, match="positions must be all, last"):
        flags_of("end", [1])


def test_families_are_halved_whole():
    prompts = load_prompts()
    fit, test = halves(prompts, 0)
    families = np.asarray(prompts.families)
    assert not set(families[fit]) & set(families[test])
    assert sorted([*fit, *test]) == list(range(50))
    assert {prompts.categories[i] for i in fit} == {prompts.categories[i] for i in test} == set(prompts.counts)
    with pytest.raises(DesignError, match="at least 2 each; got 2 families"):
        halves(prompts.take([0, 1]), 0)
    lone = Prompts("t", tuple("abcdefgh"), ("x",) * 8, ("u", "v") * 4, tuple("abcdefgh"), False)
    first, second = halves(lone, 1)
    assert len(first) == len(second) == 4 and {lone.categories[i] for i in first} == {"u", "v"}


@pytest.fixture(scope="module")
def planted():
    one = organism("aligned-100")
    lm = open_model(one.folder, quiet=True)
    return lm, ablate(
        lm, kinds=["project"], direction=one.direction, refusal_openings=["I", "Sorry"], max_new_tokens=2,
        n_bootstrap=200,
    )  # fmt: skip


def rows_of(result, metric, name):
    return {row["layer"]: row for row in result.rows if row["metric"] == metric and row["set"] == name}


def test_the_planted_direction_carries_refusal_where_it_is_planted(planted):
    """It is read at the input of block 2, the stream after block 1; random directions of that size do little."""
    rows = rows_of(planted[1], REFUSAL, "risk")
    row = rows["block 1"]
    assert row["unablated_value"] > 2 and row["effect_high"] < -1.5
    assert row["p_random"] == 0.05 and row["p_covariance"] == 0.05
    assert row["random_low"] > row["effect"] and row["p_adjusted"] < 0.05
    assert abs(rows["block 0"]["effect"]) < 0.5 * abs(row["effect"])
    safe = rows_of(planted[1], REFUSAL, "safe")["block 1"]
    assert abs(safe["effect"]) < 0.5 * abs(row["effect"])


def test_an_effect_below_the_floor_says_so(planted):
    """Nothing added is no effect; what was planted stands far above rounding."""
    lm, result = planted
    assert all(0 < row["noise_floor"] < 1e-4 for row in result.rows if row["metric"] != KL)
    assert not rows_of(result, KL, "all")["block 1"]["below_noise"]
    nothing = ablate(lm, kinds=["add"], scale=0.0, layers="1", n_random=3, n_bootstrap=0, span="end")
    row = rows_of(nothing, KL, "all")["block 1"]
    assert row["effect"] == 0 and row["below_noise"] and row["p_random"] == 1
    assert any("no larger than the noise floor" in note for note in nothing.notes)


def test_directions_are_fitted_on_other_prompts_than_are_measured(planted):
    result = ablate(planted[0], kinds=["project"], n_random=0, n_bootstrap=0, span="end")
    note = next(note for note in result.notes if "fitted" in note)
    assert "fitted on 25 prompts of 10 families and measured on 25 prompts of 10 others" in note
    assert any(note == "Direction: difference of means: risk - safe." for note in result.notes)


def test_what_cannot_be_ablated_is_refused():
    lm = opened("llama")
    with pytest.raises(InputError, match="kind"):
        ablate(lm, kinds=["remove"])
    with pytest.raises(InputError, match="blocks from 0 to 2; got '3'"):
        ablate(lm, kinds=["zero"], layers="1-3")
    with pytest.raises(InputError, match="as '0-3,7'; got 'x'"):
        ablate(lm, kinds=["zero"], layers="x")
    with pytest.raises(InputError, match="it adds nothing; leave one kind out"):
        ablate(lm, kinds=["zero", "skip"], parts=["mlp"])
    with pytest.raises(InputError, match="one finite vector of the 64 features"):
        ablate(lm, kinds=["project"], direction=np.ones(8))
    with pytest.raises(InputError, match="a target must be one token"):
        ablate(lm, kinds=["zero"], target=["no word"])


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_the_command_prints_one_json_object(name, tmp_path):
    from probecli.lm import main

    folder = tmp_path / name
    tiny(name).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    rng = generator(0, "prompts")
    lines = ["text,category"] + [
        f"{' '.join(f'w{i}' for i in rng.integers(0, 120, 5))},{'ab'[k % 2]}" for k in range(8)
    ]
    (tmp_path / "p.csv").write_text("\n".join(lines))
    asked = ["--model", str(folder), "--prompts", str(tmp_path / "p.csv"), "--kind", "mean", "--kind", "project",
             "--random", "2", "--bootstrap", "20", "--tokens", "2", "--json", "--quiet"]  # fmt: skip
    done = CliRunner().invoke(main, ["ablate", *asked])
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert set(record) == {"kind", "rows", "notes", "provenance"} and record["kind"] == "layer-ablation"
    assert {row["layer"] for row in record["rows"]} == {"block 0", "block 1", "block 2", "all layers"}
    assert str(tmp_path) not in done.stdout
    assert {row["n_prompts"] for row in record["rows"] if row.get("set") == "all"} == {4}
    few = json.loads(CliRunner().invoke(main, ["ablate", *asked, "--limit", "3"]).stdout)
    assert {row["n_prompts"] for row in few["rows"] if row.get("set") == "all"} == {3}


def test_pictures_are_drawn_of_what_is_printed(planted, tmp_path):
    folder = planted[1].save(tmp_path / "out")
    made = {path.name for path in (folder / "figures").iterdir() if path.suffix == ".svg"}
    assert made == {"ablation-KL-to-intact-project-block.svg",
                    "ablation-refusal-log-odds-project-block-risk-prompts.svg"}  # fmt: skip


def test_the_model_is_left_as_it_was():
    """Trap 23."""
    lm, meter = wrap_model(tiny("gpt2"), tokenizer(), name="gpt2"), meter_of()
    before = copy.deepcopy(lm.model.state_dict())
    text = texts_of(lm, meter)
    own = slow_metrics(lm.model, text[0])
    fitted = fitted_of(lm)
    run_sweep(lm, text, meter, fitted, plan_of(ARMS, fitted, 2))
    np.testing.assert_array_equal(own, slow_metrics(lm.model, text[0]))
    assert all(torch.equal(a, b) for a, b in zip(before.values(), lm.model.state_dict().values(), strict=True))
    assert interventions(Arm("zero", "mlp", 0), Fitted(), 3, donors=[0], lengths=[3], ends=[2], scale=1, flags=None)
