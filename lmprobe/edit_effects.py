"""What an edit did: refusal odds and distance from the untouched model, beside random directions of the same number.

Conventions. rho, the refusal score, is the log-odds that an answer begins with a refusal token, nats
(`lmprobe.refusal_score`), on prompts that chose nothing. KL is sum p_untouched (log p_untouched - log p_edited), nats,
teacher-forced along the untouched model's own greedy answer of at most 30 tokens; the value of a prompt is the mean
over its tokens. Random directions are removed by hooks from the untouched model; a control is the mean over them.
Intervals are of resampled clusters of near-duplicates; p flips the signs of whole clusters, adjusted over both kinds of
prompts (Holm).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmprobe.capability import STEPS
from lmprobe.generate import generate
from lmprobe.interventions import ProjectOut, intervened
from lmprobe.models import LanguageModel
from lmprobe.refusal_score import first_token_log_probs, refusal_log_odds
from lmprobe.score import log_softmax, scan_logits
from probecore.ablation.paired import mean_with_interval, paired_effects
from probecore.results import Row
from probecore.seeds import generator
from probecore.stats.bootstrap import cluster_weights
from probecore.stats.multiple import holm

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
MOST_NUMBERS = 2**27  # log-probabilities of the untouched model that are kept, 1 GiB
MOST_PROMPTS = 64
BEFORE, EDITED, RANDOM = "before", "edited", "random directions"


@dataclass(frozen=True, eq=False)
class Answers:
    """The untouched model's own answers. rows : prompt and answer. starts : where answers begin. log_p : (n, V)."""

    rows: list[list[int]] = field(repr=False)
    starts: list[int] = field(repr=False)
    log_p: list[Tensor] = field(repr=False)


@dataclass(frozen=True, eq=False)
class Before:
    """What was measured on the untouched model and with random directions removed.

    odds : (prompts,). random_odds : (K, prompts). random_kl : K lists of per-token KL, one array per text.
    """

    answers: Answers
    odds: Floats = field(repr=False)
    random_odds: Floats = field(repr=False)
    random_kl: list[list[Floats]] = field(repr=False)


def before_edit(
    lm: LanguageModel,
    rows: Sequence[list[int]],
    tokens: Sequence[int],
    texts: Sequence[str],
    *,
    k: int,
    n_controls: int,
    template: str = "auto",
    seed: int = 0,
) -> Before:
    """Measure the untouched model: refusal odds of formatted prompts `rows`, answers to `texts`; random k-frames."""
    most = max(4, MOST_NUMBERS // (STEPS * lm.vocabulary))
    prompts = lm.format_all(list(texts)[: min(MOST_PROMPTS, most)], template=template, room=STEPS)  # type: ignore[arg-type]
    own = generate(lm, prompts, max_new_tokens=STEPS, layers=(), template="raw").tokens
    whole = [[*row, *text] for row, text in zip(prompts, own, strict=True)]
    answers = Answers(whole, [len(row) for row in prompts], [])
    answers = Answers(whole, answers.starts, _log_probs(lm, answers))
    odds = refusal_log_odds(first_token_log_probs(lm, rows), tokens)
    random_odds, random_kl = [], []
    for i in range(n_controls):
        frame = generator(seed, "abliteration", "random", str(i)).standard_normal((lm.certificate.width, k))
        with intervened(lm, ProjectOut(frame)):
            random_odds.append(refusal_log_odds(first_token_log_probs(lm, rows), tokens))
            random_kl.append(kl_along(lm, answers))
    return Before(answers, odds, np.array(random_odds).reshape(n_controls, len(rows)), random_kl)


def _log_probs(lm: LanguageModel, answers: Answers) -> list[Tensor]:
    found: list[Tensor] = [torch.empty(0)] * len(answers.rows)

    def keep(i: int, logits: list[Tensor], tokens: Tensor) -> None:
        found[i] = log_softmax(logits[0], i).cpu()

    scan_logits([lm], answers.rows, answers.starts, keep)
    return found


def kl_along(lm: LanguageModel, answers: Answers) -> list[Floats]:
    """Return KL(untouched || lm) at every token of the untouched model's answers, one array per text."""
    found: list[Floats] = [np.empty(0)] * len(answers.rows)

    def keep(i: int, logits: list[Tensor], tokens: Tensor) -> None:
        base, other = answers.log_p[i], log_softmax(logits[0], i).cpu()
        terms = torch.where(base > -torch.inf, base.exp() * (base - other), 0.0)
        found[i] = terms.sum(dim=1).clamp(min=0.0).numpy()  # rounding alone makes it negative

    scan_logits([lm], answers.rows, answers.starts, keep)
    return found


def odds_rows(
    before: Before,
    after: Floats,
    kinds: Sequence[tuple[str, NDArray[np.bool_]]],
    clusters: Ints,
    *,
    n_bootstrap: int,
    seed: int,
) -> list[Row]:
    """Return rho before and after by kind of prompt; kinds : name and which prompts (prompts,) are of it."""
    rows: list[Row] = []
    for name, own in kinds:
        plain = before.odds[own]
        control = before.random_odds[:, own].mean(axis=0) if len(before.random_odds) else np.full(len(plain), np.nan)
        effects = paired_effects(
            [plain, after[own]], plain, [np.full(len(plain), np.nan), control], clusters=clusters[own],
            n_bootstrap=n_bootstrap, seed=seed,
        )  # fmt: skip
        for condition, effect in zip((BEFORE, EDITED), effects, strict=True):
            first = condition == BEFORE
            rows.append({
                "metric": f"refusal log-odds, {name} (nats)", "measure": "refusal log-odds", "kind": name,
                "condition": condition, "value": effect["value"], "ci_low": effect["ci_low"],
                "ci_high": effect["ci_high"], "change": None if first else effect["effect"],
                "change_low": None if first else effect["effect_low"],
                "change_high": None if first else effect["effect_high"],
                "control": None if first else effect["control_value"],
                "p_value": None if first else effect["p_value"], "p_control": None if first else effect["p_control"],
                "p_note": "what the edit is compared with" if first else effect["p_note"],
                "ci_note": effect.get("ci_note", ""), "n_prompts": len(plain), "n_clusters": effect["n_clusters"],
                "detail": False,
            })  # fmt: skip
    adjusted = holm([np.nan if row["p_value"] is None else row["p_value"] for row in rows])
    for row, p in zip(rows, adjusted, strict=True):
        row["p_adjusted"] = None if np.isnan(p) else float(p)
    return rows


def kl_rows(before: Before, after: list[Floats], clusters: Ints, *, n_bootstrap: int, seed: int) -> list[Row]:
    """Return the KL over the answers and of the first token alone, with that of random directions as control."""
    weights = cluster_weights(clusters, n_bootstrap, seed=seed)
    rows: list[Row] = []
    for words, first in ((f"KL over {STEPS} tokens", False), ("KL of the first token", True)):
        values = [np.array([v[0] if first else v.mean() for v in arm]) for arm in (after, *before.random_kl)]
        value, low, high = mean_with_interval(values[0], clusters, weights)
        tokens = np.concatenate([v[:1] if first else v for v in after])
        rows.append({
            "metric": f"{words} (nats)", "measure": "KL", "kind": "capability", "condition": EDITED, "value": value,
            "ci_low": low, "ci_high": high,
            "ci_note": "" if np.isfinite(low) else "no resamples, or fewer than 2 clusters",
            "control": float(np.mean(values[1:])) if before.random_kl else None,
            "median": float(np.median(tokens)), "p95": float(np.quantile(tokens, 0.95)),
            "p_value": None, "p_note": "a KL is above 0 under any change: compare it with the control",
            "n_prompts": len(after), "n_clusters": len(np.unique(clusters)), "detail": first,
        })  # fmt: skip
    return rows
