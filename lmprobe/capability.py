"""What a removal costs: how far the model moves on harmless prompts, its perplexity, and a small task set.

Conventions. KL is sum over the vocabulary of p_untouched (log p_untouched - log p_edited), nats, teacher-forced along
the untouched model's own greedy answer of at most `STEPS` tokens, its end token included; the value of a prompt is the
mean over its tokens. The first token alone says little: its KL has heavy tails, and an edit can spare it and damage
what follows. Cross-entropy is that of the same answers and of the prompts' own texts. Intervals are t intervals over
resampled clusters of prompts; beside each value stands the same for random directions.
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
STEPS = 30


@dataclass(frozen=True, eq=False)
class Capability:
    """What was measured for K directions on prompts.

    kl : K lists of one array of per-token KL per prompt. answers, texts : cross-entropy per token (1 + K, prompts) of
    the own answers and of the prompts' texts, untouched first. tasks : None where there are none.
    """

    kl: list[list[Floats]] = field(repr=False)
    answers: Floats = field(repr=False)
    texts: Floats = field(repr=False)
    tasks: TaskAnswers | None

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
    return Capability(kl, answers, texts, found)


def capability_rows(
    found: Capability, clusters: Ints, conditions: Sequence[str], *, n_bootstrap: int = 1000, seed: int = 0
) -> list[Row]:
    """Return rows of KL, cross-entropy and tasks for direction 0 and, as controls, the mean of all others.

    conditions : the words for direction 0 and for the others.
    """
    weights = cluster_weights(clusters, n_bootstrap, seed=seed)
    n_random = len(found.kl) - 1
    groups = [(conditions[0], [0]), *([(conditions[1], list(range(1, 1 + n_random)))] if n_random else [])]
    rows: list[Row] = []
    for what, first in ((f"KL over {STEPS} tokens", False), ("KL of the first token", True)):
        for condition, members in groups:
            per = np.mean(
                [[v[0] if first else v.mean() for v in found.kl[k]] for k in members], axis=0
            )  # fmt: skip
            tokens = np.concatenate([v[:1] if first else v for k in members for v in found.kl[k]])
            rows.append({
                "metric": f"{what} (nats)", "measure": "KL", "condition": condition,
                **_interval(per, clusters, weights),
                "median": float(np.median(tokens)), "p95": float(np.quantile(tokens, 0.95)),
                "largest": float(tokens.max()), "p_value": None, "n_directions": len(members),
                "p_note": "a KL is above 0 under any change: compare it with the random directions", "detail": first,
            })  # fmt: skip
    for what, values in (("own answers", found.answers), ("the prompts' texts", found.texts)):
        for condition, members in groups:
            after = values[[1 + k for k in members]].mean(axis=0)
            there = np.isfinite(after) & np.isfinite(values[0])
            if not there.any():
                continue
            p, why = flip_clusters(after - values[0], clusters, 0.05, seed)
            rows.append({
                "metric": f"rise of the cross-entropy of {what} (nats a token)", "measure": "cross-entropy",
                "condition": condition, **_interval(after - values[0], clusters, weights), "p_value": p, "p_note": why,
                "perplexity": float(np.exp(after[there].mean())), "n_directions": len(members),
                "untouched_perplexity": float(np.exp(values[0][there].mean())), "detail": what == "own answers",
            })  # fmt: skip
    return rows + _task_rows(found.tasks, groups)


def _task_rows(tasks: TaskAnswers | None, groups: Sequence[tuple[str, list[int]]]) -> list[Row]:
    if tasks is None or not tasks.right.shape[1]:
        return []
    right, n = tasks.right, tasks.right.shape[1]
    rows: list[Row] = []
    for condition, arms in (("untouched", [0]), *((c, [1 + k for k in m]) for c, m in groups)):
        value = float(right[arms].mean())
        low, high = wilson_interval(int(right[arms[0]].sum()), n) if len(arms) == 1 else (None, None)
        row: Row = {
            "metric": "task accuracy", "measure": "task accuracy", "condition": condition, "value": value,
            "ci_low": low, "ci_high": high, "chance": tasks.chance, "untouched": float(right[0].mean()),
            "n_prompts": n, "n_directions": len(arms), "left_out": tasks.left_out, "detail": False,
        }  # fmt: skip
        if len(arms) == 1 and arms[0]:
            lost, won = int((right[0] & ~right[arms[0]]).sum()), int((~right[0] & right[arms[0]]).sum())
            row |= {"p_value": mcnemar_exact(lost, won), "p_note": ""}
        else:
            why = "what the others are compared with" if not arms[0] else "mean over random directions: no test"
            row |= {"p_value": None, "p_note": why, "ci_note": "" if not arms[0] else "mean over random directions"}
        rows.append(row)
    return rows


def _cross_entropy(log_p: Tensor, tokens: Tensor) -> Floats:
    taken = log_p.gather(2, tokens[None, :, None].expand(len(log_p), -1, 1))[..., 0]
    return np.asarray(-taken.mean(dim=1).numpy())


def _interval(values: Floats, clusters: Ints, weights: Floats) -> Row:
    value, low, high = mean_with_interval(values, clusters, weights)
    kept = np.isfinite(values)
    found: Row = {"value": value, "ci_low": low, "ci_high": high, "n_prompts": int(kept.sum())}
    if not np.isfinite(low):
        found["ci_note"] = "no resamples, or fewer than 2 clusters"
    return found
