"""What a removal costs: how far the model moves on harmless prompts, its perplexity, and a small task set.

Conventions. KL is sum over the vocabulary of p_untouched (log p_untouched - log p_edited), nats, teacher-forced along
the untouched model's own greedy answer of at most `STEPS` tokens, its end token included; the value of a prompt is the
mean over its tokens. The first token alone says little: its KL has heavy tails, and an edit can spare it and damage
what follows. Cross-entropy is that of the same answers and of the prompts' own texts. Intervals are t intervals over
resampled clusters of prompts; beside each value stand random directions, with the range over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmprobe.generate import generate
from lmprobe.models import LanguageModel, Template
from lmprobe.removal_scores import removal_log_probs
from lmprobe.tasks import Task, TaskAnswers, answer_tasks
from probecore.ablation.paired import flip_clusters, mean_with_interval
from probecore.results import Row
from probecore.stats.bootstrap import cluster_weights
from probecore.stats.effects import mcnemar_exact, wilson_interval

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
NOT_COMPARED = "what the others are compared with"
IS_CONTROL = "a control: its range is over its directions"
STEPS = 30


@dataclass(frozen=True, eq=False)
class Capability:
    """What was measured for K directions on prompts.

    kl : K lists of one array of per-token KL per prompt. answers, texts : cross-entropy per token (1 + K, prompts) of
    the own answers and of the prompts' texts, untouched first. tasks : None where there are none. steps : most
    tokens of an answer.
    """

    kl: list[list[Floats]] = field(repr=False)
    answers: Floats = field(repr=False)
    texts: Floats = field(repr=False)
    tasks: TaskAnswers | None
    steps: int = STEPS

    def mean_kl(self, k: int) -> Floats:
        """Return the mean KL of each prompt under removal of direction k, (prompts,)."""
        return np.array([values.mean() for values in self.kl[k]])


def capability(
    lm: LanguageModel,
    prompts: Sequence[str],
    vectors: Floats,
    tasks: Sequence[Task] = (),
    *,
    template: Template = "auto",
    steps: int = STEPS,
    batch_tokens: int = 4096,
) -> Capability:
    """Measure what the removal of each of K directions (K, d) costs."""
    rows = lm.format_all(prompts, template=template, room=steps)
    own = generate(lm, rows, max_new_tokens=steps, layers=(), template="raw", batch_tokens=batch_tokens).tokens
    n, n_arms = len(rows), 1 + len(vectors)
    kl: list[list[Floats]] = [[np.empty(0)] * n for _ in vectors]
    answers, texts = (np.full((n_arms, n), np.nan) for _ in range(2))

    def answered(i: int, log_p: Tensor, tokens: Tensor) -> None:
        p = log_p[0].exp()
        for k in range(len(vectors)):
            terms = torch.where(p > 0, p * (log_p[0] - log_p[1 + k]), 0.0)
            kl[k][i] = terms.sum(dim=1).clamp(min=0.0).numpy()  # rounding alone makes it negative
        answers[:, i] = _cross_entropy(log_p, tokens)

    def asked(i: int, log_p: Tensor, tokens: Tensor) -> None:
        if len(tokens):
            texts[:, i] = _cross_entropy(log_p, tokens)

    whole = [[*row, *text] for row, text in zip(rows, own, strict=True)]
    removal_log_probs(lm, whole, [len(row) for row in rows], vectors, answered, batch_tokens=batch_tokens)
    plain = lm.format_all(prompts, template="raw")
    removal_log_probs(lm, plain, [1] * n, vectors, asked, batch_tokens=batch_tokens)
    found = answer_tasks(lm, tasks, vectors, template=template, batch_tokens=batch_tokens) if tasks else None
    return Capability(kl, answers, texts, found, steps)


def capability_rows(
    found: Capability, clusters: Ints, conditions: Sequence[str], *, n_bootstrap: int = 1000, seed: int = 0
) -> list[Row]:
    """Return rows of KL, cross-entropy and tasks for direction 0 and, as controls, for all others together.

    conditions : the words for direction 0 and for the others. A control has the range over its directions in the place
    of an interval over prompts.
    """
    weights = cluster_weights(clusters, n_bootstrap, seed=seed)
    groups = [(conditions[0], [0])]
    if len(found.kl) > 1:
        groups.append((conditions[1], list(range(1, len(found.kl)))))
    rows: list[Row] = []
    for what, first in ((f"KL, {found.steps} tokens", False), ("KL, first token", True)):
        for condition, members in groups:
            per = np.array([[v[0] if first else v.mean() for v in found.kl[k]] for k in members])
            tokens = np.concatenate([v[:1] if first else v for k in members for v in found.kl[k]])
            rows.append({
                "metric": f"{what} (nats)", "measure": "KL", "condition": condition,
                **_estimate(per, clusters, weights), "median": float(np.median(tokens)),
                "p95": float(np.quantile(tokens, 0.95)), "largest": float(tokens.max()), "p_value": None,
                "p_note": "a KL is above 0 under any change: compare it with the random directions", "detail": first,
            })  # fmt: skip
    for what, values in (("own answers", found.answers), ("prompts", found.texts)):
        there = np.isfinite(values).all(axis=0)
        if not there.any():
            continue
        for condition, members in groups:
            rise = (values[[1 + k for k in members]] - values[0])[:, there]
            p, why = (None, IS_CONTROL) if members != [0] else flip_clusters(rise[0], clusters[there], 0.05, seed)
            rows.append({
                "metric": f"rise of CE, {what} (nats)", "measure": "cross-entropy", "condition": condition,
                **_estimate(rise, clusters[there], weights[:, there]), "p_value": p, "p_note": why,
                "perplexity": float(np.exp(values[[1 + k for k in members]][:, there].mean())),
                "untouched_perplexity": float(np.exp(values[0][there].mean())), "detail": what == "own answers",
            })  # fmt: skip
    return rows + _task_rows(found.tasks, groups)


def _task_rows(tasks: TaskAnswers | None, groups: Sequence[tuple[str, list[int]]]) -> list[Row]:
    if tasks is None or not tasks.right.shape[1]:
        return []
    right, n = tasks.right, tasks.right.shape[1]
    rows: list[Row] = []
    for condition, arms in (("untouched", [0]), *((c, [1 + k for k in m]) for c, m in groups)):
        row: Row = {
            "metric": f"task accuracy (chance {tasks.chance:.2g})", "measure": "task accuracy", "condition": condition,
            "value": float(right[arms].mean()), "chance": tasks.chance, "untouched": float(right[0].mean()),
            "n_prompts": n, "n_directions": len(arms), "left_out": tasks.left_out, "p_value": None, "detail": False,
        }  # fmt: skip
        if arms in ([0], [1]):
            row["ci_low"], row["ci_high"] = wilson_interval(int(right[arms[0]].sum()), n)
            row["p_note"] = NOT_COMPARED
        if arms == [1]:
            lost, won = int((right[0] & ~right[1]).sum()), int((~right[0] & right[1]).sum())
            row |= {"p_value": mcnemar_exact(lost, won), "p_note": ""}
        if arms not in ([0], [1]):
            shares = right[arms].mean(axis=1)
            row |= {"null_low": float(shares.min()), "null_high": float(shares.max()), "p_note": IS_CONTROL}
        rows.append(row)
    return rows


def _cross_entropy(log_p: Tensor, tokens: Tensor) -> Floats:
    taken = log_p.gather(2, tokens[None, :, None].expand(len(log_p), -1, 1))[..., 0]
    return np.asarray(-taken.mean(dim=1).numpy())


def _estimate(values: Floats, clusters: Ints, weights: Floats) -> Row:
    """Return the mean of values (directions, prompts), with an interval over prompts or the range over directions."""
    found: Row = {"value": float(values.mean()), "n_prompts": values.shape[1], "n_directions": len(values)}
    if len(values) > 1:
        means = values.mean(axis=1)
        return found | {"null_low": float(means.min()), "null_high": float(means.max())}
    _, low, high = mean_with_interval(values[0], clusters, weights)
    found |= {"ci_low": low, "ci_high": high}
    return found if np.isfinite(low) else found | {"ci_note": "no resamples, or fewer than 2 clusters"}
