"""Which layer of a language model knows whether a prompt is a risk, beyond what its words tell?

Runs offline on two packaged organisms, tiny models of an artificial language: "base" was never aligned, "aligned-100"
was tuned to refuse risk prompts. The safe and the risk prompt of a family hold the same words in another order. For a
real model change two words:

    probe("Qwen/Qwen2.5-1.5B-Instruct", "xstest_prompts.csv", label="label")
"""

# %% States of prompts, layer by layer, with the certificate of the model
from pathlib import Path

import numpy as np

from lmprobe import ProjectOut, capture, intervened, open_model, probe
from lmprobe.archive import capture_to
from lmprobe.direction_file import read_directions
from lmprobe.prompt_table import read_table

prompts = read_table("default")
prompts = prompts.take([i for i, kind in enumerate(prompts.column("category")) if kind != "neutral"])
lm = open_model("aligned-100", device="cpu")
print(lm.certificate)
acts = capture_to("acts", lm, prompts.prompts, names=prompts.names, at="last")  # goes on where it was interrupted
print({layer: acts.values(layer).shape for layer in acts.layers})

# %% The probe: score on new families, chance, p over layers, and the gain over length, words and template
result = probe(["base", "aligned-100"], prompts, label="category", n_permutations=199, n_bootstrap=100, device="cpu")
print(result)

# %% The direction it found, as a file, removed while the model runs
probe(lm, prompts, label="category", layers=["block 2"], n_permutations=19, n_bootstrap=0, out=Path("found"))
direction = read_directions("found/directions/block-2.safetensors")[:, 0]
risk = np.array(prompts.column("category")) == "risk"


def gap(states):
    """Return how far the two categories lie apart along the direction, in units of the spread inside them."""
    along = states.values("block 2").astype(np.float64) @ direction
    return abs(along[risk].mean() - along[~risk].mean()) / np.sqrt((along[risk].var() + along[~risk].var()) / 2)


with intervened(lm, ProjectOut(direction, at="block 2")):
    without = capture(lm, prompts.prompts, at="last")
print(f"apart by {gap(acts):.1f} SD; installed while captured again: {without.info['interventions']}")

# %% What must hold, because it was planted
rows = {(row["model"], row["layer"]): row for row in result.rows if row["kind"] == "layer"}
assert rows["aligned-100", "block 2"]["gain_low"] > 0 and rows["aligned-100", "block 2"]["p_adjusted"] < 0.05
assert not rows["base", "block 2"]["gain_low"] > 0
assert gap(acts) > 3
assert np.abs(without.values("block 2").astype(np.float64) @ direction).max() < 1e-5
