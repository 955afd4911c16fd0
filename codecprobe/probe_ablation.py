"""Ablation of the probe's input: what the speaker probe loses without a layer, and what a layer adds to those before.

Conventions. Features are mean and standard deviation over time of each layer's code vectors, z-scored over all windows
without labels, side by side; folds, probe and resamples are those of the speaker probe and the same for all rows.
Layers are redundant by construction of a residual quantiser, so a layer may carry the speaker and its loss still cost
nothing: losing and adding bound its share from below and from above.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from codecprobe.codecs.codec import Codec
from codecprobe.representation import Windows, represent
from probecore.activations import Activations
from probecore.probes.layers import probe_layers
from probecore.probes.result import ProbeResult
from probecore.probes.solvers import ProbeSpec
from probecore.results import Row
from probecore.seeds import generator
from probecore.stats.multiple import holm

LOSES, ADDS = "probe without", "probe adds"
METRIC = "speaker accuracy (probe)"


def probe_ablation(
    windows: Windows, codec: Codec, folds: str = "auto", *, n_bootstrap: int = 200, seed: int = 0,
    device: str = "cpu",
) -> list[Row]:  # fmt: skip
    """Return two rows per layer, of kinds "probe without" and "probe adds".

    Without: `value` is the accuracy of all layers but this one, `unablated_value` that of all layers, `control_value`
    that of all layers less as many features drawn at random. Adds: `value` is the accuracy of layers 0 to k,
    `unablated_value` that of layers 0 to k-1 (none for layer 0, whose row is left out). `effect` is the difference
    value - unablated_value with the interval and p of `ProbeResult.compare`; p_adjusted is Holm's over the layers of
    one kind.

    folds : scheme of `probe_layers`; "auto" leaves a session of each speaker out, "item" leaves clips out.
    """
    family = represent(windows, codec, "embedding")
    blocks = [_standardised(family.values(layer)) for layer in family.layers]
    n = len(blocks)
    stacks = {"all": np.concatenate(blocks, axis=1)}
    ends = np.cumsum([block.shape[1] for block in blocks])
    for k, block in enumerate(blocks):
        stacks[f"to {k}"] = stacks["all"][:, : ends[k]]
        if n > 1:
            stacks[f"without {k}"] = np.concatenate([b for j, b in enumerate(blocks) if j != k], axis=1)
            rng = generator(seed, "probe ablation", k)
            gone = rng.permutation(ends[-1])[: block.shape[1]]
            stacks[f"control {k}"] = np.delete(stacks["all"], gone, axis=1)
    made = replace(family, layers=tuple(stacks), read=stacks.__getitem__, info={**family.info, "features": "ablated"})
    result = _probe(made, folds, n_bootstrap, seed, device)
    rows: list[Row] = []
    if n > 1:
        rows += _adjusted([
            _row(result, LOSES, k, f"without {k}", "all") | {"control_value": result.row(f"control {k}")["accuracy"]}
            for k in range(n)
        ])  # fmt: skip
        rows += _adjusted([_row(result, ADDS, k, f"to {k}", f"to {k - 1}") for k in range(1, n)])
    return rows


def _probe(family: Activations, folds: str, n_bootstrap: int, seed: int, device: str) -> ProbeResult:
    return probe_layers(
        family,
        "speaker",
        clusters=family.label("speaker").values,
        probe=ProbeSpec("ridge", standardize="none"),
        folds=folds,
        n_permutations=0,
        n_bootstrap=n_bootstrap,
        seed=seed,
        device=device,
    )


def _row(result: ProbeResult, kind: str, layer: int, first: str, second: str) -> Row:
    own, step = result.row(first), result.compare(first, second)
    return {
        "kind": kind, "layers": str(layer), "metric": METRIC,
        "value": own["accuracy"], "ci_low": own["ci_low"], "ci_high": own["ci_high"],
        "unablated_value": result.row(second)["accuracy"], "control_value": None,
        "effect": step["difference"], "effect_low": step["ci_low"], "effect_high": step["ci_high"],
        "p_value": step["p_value"], "p_note": step["p_note"],
        "n_clips": own["n_items"], "n_speakers": len(result.design.names), "n_sessions": own["n_groups"],
    }  # fmt: skip


def _adjusted(rows: list[Row]) -> list[Row]:
    adjusted = holm([np.nan if row["p_value"] is None else row["p_value"] for row in rows])
    return [row | {"p_adjusted": None if np.isnan(p) else float(p)} for row, p in zip(rows, adjusted, strict=True)]


def _standardised(values: NDArray[np.float64]) -> NDArray[np.float64]:
    spread = values.std(axis=0)
    scaled: NDArray[np.float64] = (values - values.mean(axis=0)) / np.where(spread > 1e-12, spread, 1.0)
    return scaled
