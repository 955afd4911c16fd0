"""Copies of a base with other weights: rounded to bfloat16 (a floor), and half way to an aligned model.

A copy doubles the memory of the base, so none is made of more than `MOST_PARAMETERS`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lmprobe.entropy_tables import family_interval
from lmprobe.mixing import Pair, pair_models
from lmprobe.models import LanguageModel, wrap_model
from lmprobe.prompts import Prompts
from lmprobe.score import log_softmax, scan_logits
from probecore.results import Row

MOST_PARAMETERS = 2_000_000_000
ROUNDING = "weights rounded to bfloat16"


def rounded_twin(base: LanguageModel) -> Pair | None:
    """Return base and a copy with weights rounded to bfloat16; None where that is too large or changes nothing."""
    if int(base.info["parameters"]) > MOST_PARAMETERS or base.dtype not in (torch.float32, torch.float64):
        return None
    twin = copy.deepcopy(base.model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.copy_(parameter.bfloat16().to(parameter.dtype))
    return pair_models(base, wrap_model(twin, base.tokenizer, name=f"{base.name}, {ROUNDING}"))


def halfway_row(pair: Pair, prompts: Prompts, ids: Sequence[list[int]]) -> Row:
    """Return how far weights interpolated half way are from logits interpolated half way, at the prompts' ends."""
    n = len(prompts)
    row: Row = {
        "metric": "KL(logits half way || weights half way), prompt end (nats)", "measure": "weight interpolation",
        "model": pair.aligned.name, "mode": "prompt end", "p_value": None, "p_note": "a distance has no null",
        "n_prompts": n, "n_families": len(set(prompts.families)), "detail": True,
    }  # fmt: skip
    reason = no_middle(pair)
    if reason:
        return row | {"value": None, "ci_low": None, "ci_high": None, "value_note": reason}
    ours, theirs = pair.base.model.state_dict(), pair.aligned.model.state_dict()
    half = copy.deepcopy(pair.base.model)
    with torch.no_grad():
        for name, tensor in half.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_((ours[name].float() + theirs[name].to(ours[name].device).float()) / 2)
    middle = wrap_model(half, pair.base.tokenizer, name="weights half way")
    values, whole = np.zeros(n), np.zeros(n)

    def keep(i: int, logits: list[Tensor], tokens: Tensor) -> None:
        log_b, log_a, log_w = (log_softmax(each, i) for each in logits)
        log_mix = torch.log_softmax((log_b + log_a) / 2, dim=-1)
        values[i] = float((log_mix.exp() * (log_mix - log_w)).sum())
        whole[i] = float((log_mix.exp() * (log_mix - log_b)).sum())

    rows = [[*row, 0] for row in ids]
    scan_logits([pair.base, pair.aligned, middle], rows, [len(row) for row in ids], keep)
    low, high = family_interval(values, prompts.families)
    row |= {"value": float(values.mean()), "ci_low": low, "ci_high": high}
    return row | {"control": float(whole.mean()), "control_name": "KL(logits half way || base)"}


def no_middle(pair: Pair) -> str:
    """Return why no weights lie half way between two models, "" where they do."""
    if int(pair.base.info["parameters"]) > MOST_PARAMETERS:
        return f"no copy is made of more than {MOST_PARAMETERS:,} parameters"
    ours, theirs = pair.base.model.state_dict(), pair.aligned.model.state_dict()
    if ours.keys() != theirs.keys() or any(ours[name].shape != theirs[name].shape for name in ours):
        return "the two models have other weights: there is none half way"
    fixed = [name for name, tensor in ours.items() if not tensor.is_floating_point()]
    if any(not torch.equal(ours[name], theirs[name].to(ours[name].device)) for name in fixed):
        return "the models hold quantised weights, which have no mean"
    return ""
