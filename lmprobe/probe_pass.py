"""The probe pass: two short texts, made of token ids alone, that are run through a model to see what it does."""

from typing import Any

import numpy as np
import torch
from torch import nn

from lmprobe.inputs import forward_arguments

SHORT, LONG = 6, 16  # tokens of the two probes


def probe_rows(model: Any) -> list[list[int]]:  # noqa: ANN401
    """Return a short and a long row of token ids, spread over the vocabulary, all different."""
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    spread = np.linspace(0.15, 0.85, SHORT + LONG) * vocabulary
    ids = [int(i) % vocabulary for i in spread]
    return [ids[::-2][:SHORT], [*ids[::3], *ids[1::3]][:LONG]]


def probe_forward(model: nn.Module, *, cached: bool = False) -> Any:  # noqa: ANN401
    """Run a short probe of two texts through a model, for those who watch; return what the model returns."""
    row = probe_rows(model)[-1]
    ids = torch.tensor([row, row[::-1]])
    with torch.no_grad():
        return model(**forward_arguments(model, ids, torch.ones_like(ids), use_cache=cached))
