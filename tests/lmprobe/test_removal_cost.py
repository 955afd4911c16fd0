"""What a removal costs: scores of given text in one pass against one run each, exact KL, tasks by the slow form."""

import numpy as np
import pytest
import torch
from zoo import PROMPTS, TEMPLATE, opened, tiny, tokenizer

from lmprobe import ProjectOut, intervened, prompt_log_prob, score, wrap_model
from lmprobe.capability import capability, capability_rows
from lmprobe.removal_scores import removal_log_probs
from lmprobe.tasks import Task, answer_tasks, chance, copying_tasks, load_tasks
from probecore import InputError

pytestmark = pytest.mark.transformers
VECTORS = np.random.default_rng(0).normal(0, 1, (2, 64))
TEXT = "w4 w9 w30 w2 w8"


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mixtral"])
def test_scores_under_removal_are_those_of_one_run_each(name: str) -> None:
    """Slow form: `score` inside ProjectOut. float32 logits of size 10, other batches: 2e-3 in log-probability."""
    lm = opened(name)
    ids = lm.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    rows = lm.format_all(PROMPTS)
    found = np.full((3, len(rows), len(ids)), np.nan)

    def keep(i: int, log_p: torch.Tensor, tokens: torch.Tensor) -> None:
        assert tokens.tolist() == ids
        assert log_p.exp().sum(dim=2).numpy() == pytest.approx(1, abs=1e-9)
        found[:, i] = log_p.gather(2, tokens[None, :, None].expand(3, -1, 1))[..., 0].numpy()

    removal_log_probs(lm, [[*row, *ids] for row in rows], [len(row) for row in rows], VECTORS, keep, batch_tokens=80)
    assert found[0] == pytest.approx(score(lm, PROMPTS, TEXT).log_prob, abs=2e-3)
    for k, vector in enumerate(VECTORS):
        with intervened(lm, ProjectOut(vector)):
            assert found[1 + k] == pytest.approx(score(lm, PROMPTS, TEXT).log_prob, abs=2e-3)
    with pytest.raises(InputError, match="must not be zero; 1 of 1"):
        removal_log_probs(lm, rows, [1] * len(rows), np.zeros((1, 64)), keep)


def test_kl_and_cross_entropy_are_those_of_two_runs() -> None:
    """One prompt at a time, its own greedy answer, both distributions in full: KL by torch, other batches (2e-3)."""
    lm = opened("llama")
    found = capability(lm, PROMPTS, VECTORS, steps=6)
    from lmprobe import generate

    own = generate(lm, PROMPTS, max_new_tokens=6, layers=()).tokens
    for i, (row, text) in enumerate(zip(lm.format_all(PROMPTS), own, strict=True)):
        whole = torch.tensor([[*row, *text]])
        with torch.no_grad():
            base = torch.log_softmax(lm.model(whole).logits[0, len(row) - 1 : -1].double(), dim=-1)
            with intervened(lm, ProjectOut(VECTORS[1])):
                edited = torch.log_softmax(lm.model(whole).logits[0, len(row) - 1 : -1].double(), dim=-1)
        slow = torch.nn.functional.kl_div(edited, base, log_target=True, reduction="none").sum(dim=-1)
        assert found.kl[1][i] == pytest.approx(slow.numpy(), abs=2e-3, rel=2e-3)
        taken = -base[torch.arange(len(text)), torch.tensor(text)].mean()
        assert found.answers[0, i] == pytest.approx(float(taken), abs=2e-3)
    assert found.texts[0] == pytest.approx(-prompt_log_prob(lm, PROMPTS), abs=2e-3)


def test_rows_of_cost() -> None:
    """A direction that is almost nothing to the model costs almost nothing; controls have a range and no interval."""
    lm = opened("llama")
    found = capability(lm, [*PROMPTS, "w5 w6 w7"], VECTORS, [Task("w1 w2", ("w3", "w4", "w5", "w6"))], steps=4)
    rows = {(r["metric"], r["condition"]): r for r in capability_rows(found, np.arange(5), ("removed", "random"))}
    kl = rows["KL, 4 tokens (nats)", "removed"]
    assert (
        kl["value"] == pytest.approx(found.mean_kl(0).mean(), abs=1e-12) and kl["ci_low"] < kl["value"] < kl["ci_high"]
    )
    assert kl["median"] <= kl["p95"] <= kl["largest"] and "compare it" in kl["p_note"]
    assert "ci_low" in rows["KL, 4 tokens (nats)", "random"], "one control direction has an interval over prompts"
    accuracy = rows["task accuracy (chance 0.25)", "untouched"]
    assert accuracy["value"] in (0.0, 1.0) and accuracy["n_prompts"] == 1


def test_tasks_are_decided_by_log_probability_per_byte() -> None:
    """Slow form: `score` of each choice by itself."""
    lm = wrap_model(tiny("llama"), tokenizer(TEMPLATE), name="tasks")
    tasks = [Task(p, ("w11 w12", "w60", "w7 w8 w9")) for p in PROMPTS]
    found = answer_tasks(lm, tasks, VECTORS[:1])
    for k, edit in enumerate(((), (ProjectOut(VECTORS[0]),))):
        with intervened(lm, *edit):
            slow = np.stack(
                [score(lm, PROMPTS, c).log_prob.sum(axis=1) / len(c.encode()) for c in tasks[0].choices], axis=1
            )
        assert found.right[k].tolist() == (slow.argmax(axis=1) == 0).tolist()
    assert found.chance == pytest.approx(1 / 3, abs=1e-12) and found.left_out == 0
    unknown = answer_tasks(lm, load_tasks()[:6], VECTORS[:1])
    assert unknown.left_out == 6 and unknown.right.shape == (2, 0), "one-word choices it does not know are alike"


def test_packaged_and_copying_tasks(tmp_path) -> None:
    tasks = load_tasks()
    assert len(tasks) == 48 and all(len(set(task.choices)) == 4 for task in tasks) and chance(tasks) == 0.25
    assert len({task.prompt for task in tasks}) == 48
    copying = copying_tasks(["apple basket bottle bread bridge", "Any other text."])
    assert len(copying) == 1 and copying[0].choices[0] == "Sure , apple basket bottle ."
    assert len(set(copying[0].choices)) == 4
    (tmp_path / "bad.csv").write_text("prompt,right\na,b\n")
    (tmp_path / "short.csv").write_text("prompt,right,wrong1\na,b,\n")
    for name in ("bad.csv", "short.csv", "absent.csv"):
        with pytest.raises(InputError, match="task"):
            load_tasks(tmp_path / name)
