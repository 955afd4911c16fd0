"""How well each layer tells two categories of prompts apart, beyond what their words and their length tell.

Conventions. Items are the prompts of a contrast, features the states at the prompt's end, groups the prompt families:
a probe is tested on families it has not seen. The same probes, folds, labelings and resamples judge the controls:
"bag of words" (how often each word occurs, in any order), "length" (in tokens and characters) and, where it was made,
the same layer of a model of the same configuration with random weights. Any encoder of different words separates
categories, so what counts is *selectivity*: accuracy minus the best of these controls.
"""

import copy
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmprobe.capture import capture
from lmprobe.contrasts import Contrast
from lmprobe.models import LanguageModel, Template, wrap_model
from probecore.activations import Activations, Label
from probecore.probes.layers import probe_layers
from probecore.results import Row
from probecore.seeds import seed_for

MOST_WORDS = 2000
MOST_RANDOM_PARAMETERS = 50_000_000


@dataclass(frozen=True)
class Separability:
    """Rows of layers and of controls, each a record of `probe_layers`; layers carry selectivity and best control."""

    layers: tuple[Row, ...]
    controls: tuple[Row, ...]
    notes: tuple[str, ...]

    @property
    def best(self) -> Row:
        """The layer of highest accuracy (the first of equal ones); its adjusted p accounts for the choice."""
        return _most_accurate(self.layers) or self.layers[-1]

    @property
    def best_control(self) -> Row | None:
        """The control that the best layer is compared with; None where there is none."""
        name = self.best["control_name"]
        return next((row for row in self.controls if row["layer"] == name), None)


def separability(
    states: Activations,
    contrast: Contrast,
    texts: Sequence[str],
    lengths: Sequence[int],
    *,
    random_states: Activations | None = None,
    n_permutations: int = 999,
    n_bootstrap: int = 200,
    seed: int = 0,
) -> Separability:
    """Probe every layer and the controls for the categories of a contrast.

    states, random_states : of the contrast's prompts, in its order (n items). texts, lengths : (n,) prompts and their
    number of tokens.
    """
    label = Label(np.where(contrast.is_first, contrast.first, contrast.second))
    options: dict[str, Any] = {"n_permutations": n_permutations, "n_bootstrap": n_bootstrap, "seed": seed}
    result = probe_layers(states, label, groups=contrast.families, **options)
    surface = {
        "bag of words": bag_of_words(texts),
        "length": np.array([(n, len(text)) for n, text in zip(lengths, texts, strict=True)], dtype=np.float64),
    }
    controls = [
        {**row, **_blind(row, surface[str(row["layer"])], contrast)}
        for row in probe_layers(surface, label, groups=contrast.families, **options).rows
    ]
    blank: dict[str, Row] = {}
    if random_states is not None:
        found = probe_layers(random_states, label, groups=contrast.families, **options)
        blank = {str(row["layer"]): {**row, "layer": f"random weights, {row['layer']}"} for row in found.rows}
    rows = [_against(row, controls, blank.get(str(row["layer"]))) for row in result.rows]
    return Separability(tuple(rows), (*controls, *blank.values()), result.notes)


def bag_of_words(texts: Sequence[str]) -> NDArray[np.float64]:
    """Return counts (texts, words) of the words that occur in at least 2 texts, the most frequent 2,000.

    >>> bag_of_words(["The cat sees the dog.", "The dog sees the cat!"]).tolist()
    [[1.0, 1.0, 1.0, 2.0], [1.0, 1.0, 1.0, 2.0]]
    """
    counts = [Counter(re.findall(r"\w+", text.lower())) for text in texts]
    spread = Counter(word for count in counts for word in count)
    words = sorted([word for word, n in spread.most_common() if n > 1][:MOST_WORDS])
    return np.array([[count[word] for word in words] for count in counts], dtype=np.float64).reshape(len(texts), -1)


def random_twin(lm: LanguageModel, seed: int = 0) -> LanguageModel | None:
    """Return a model of the same configuration with random weights, None where that is too large to be worth it.

    At most 50 million parameters; on the device and in the dtype of `lm`.
    """
    if int(lm.info["parameters"]) > MOST_RANDOM_PARAMETERS:
        return None
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "separability", "random weights"))
        model = type(lm.model)(copy.deepcopy(lm.model.config))
    return wrap_model(model.to(device=lm.device, dtype=lm.dtype), lm.tokenizer, name=f"{lm.name}, random weights")


def random_states(
    lm: LanguageModel, texts: Sequence[str], *, template: Template = "auto", seed: int = 0
) -> Activations | None:
    """Return the states at the prompts' ends of the random twin of a model, None where there is none."""
    twin = random_twin(lm, seed)
    return None if twin is None else capture(twin, list(texts), at="last", template=template)


def _against(row: Row, controls: Sequence[Row], blank: Row | None) -> Row:
    """Add the best control and the selectivity against it; probe_layers' own selectivity is against chance."""
    best = _most_accurate([*controls, *([blank] if blank is not None else [])])
    value = None if best is None or row["accuracy"] is None else row["accuracy"] - best["accuracy"]
    return {
        **row,
        "control": None if best is None else best["accuracy"],
        "control_name": None if best is None else best["layer"],
        "selectivity": value,
    }


def _blind(row: Row, features: NDArray[np.float64], contrast: Contrast) -> Row:
    """Return what replaces a control whose features are the same for both prompts of every pair.

    Its answers cannot depend on the category: it is at chance by construction, and what a probe gives is rounding.
    """
    inside = [features[contrast.families == family] for family in np.unique(contrast.families)]
    if not contrast.paired or any((part != part[:1]).any() for part in inside):
        return {}
    blank = {key: None for key in ("ci_low", "ci_high", "p_value", "p_adjusted", "q_value")}
    same = (
        f"at chance by construction: both prompts of every family have the same {row['layer'].replace('bag of ', '')}"
    )
    return {**blank, "accuracy": 0.5, "balanced_accuracy": 0.5, "auc": 0.5, "chance": 0.5, "p_note": same}


def _most_accurate(rows: Sequence[Row]) -> Row | None:
    scored = [row for row in rows if row["accuracy"] is not None]
    return max(scored, key=lambda row: float(row["accuracy"]), default=None)
