"""Does refusal hang on one direction? Find it, remove it, and ask what the same search finds where there is nothing.

Runs offline on tiny organisms with planted, known behaviour. For a real model name it and give prompts by path:

    refusal("Qwen/Qwen2.5-1.5B-Instruct", read_prompts(["harmful=advbench.csv", "harmless=seed_tasks.jsonl"]))
"""

# %% One planted direction: found, removed, added
import numpy as np

from lmprobe import refusal
from lmprobe.organisms import refusal_organism

found = refusal("refusal-1", limit=64, n_permutations=19, n_controls=1, n_bootstrap=200, seed=0)
print(found)

# %% Rows are plain records
rates = {(r["kind"], r["condition"]): r for r in found.rows if r["measure"] == "refusal rate" and r["tokens"] == 32}
for kind, condition in (
    ("harmful", "untouched"),
    ("harmful", "removed"),
    ("harmless", "untouched"),
    ("harmless", "added"),
):
    row = rates[kind, condition]
    print(f"{kind:8} {condition:9} refused {row['value']:.2f} [{row['ci_low']:.2f}, {row['ci_high']:.2f}]")

# %% The direction beside the planted one
vector = np.array([row["unit"] for row in found.tables["direction"]])
cosine = abs(float(refusal_organism("refusal-1").directions[0] @ vector))
print(f"cosine with the planted direction: {cosine:.2f}")

# %% Controls: whole searches with exchanged labels, matched and random directions
for row in (r for r in found.rows if r["measure"] == "refusal score"):
    print(f"{row['condition']:28} falls by {row['value']:6.2f}, p {row['p_value']:.2f}")

# %% An organism that never refuses: nothing is claimed
nothing = refusal("refusal-0", limit=48, n_permutations=0, n_controls=1, n_bootstrap=200, seed=0)
print(next(note for note in nothing.notes if "little refusal" in note))

# %% What must hold, because we planted it
assert cosine > 0.85
assert rates["harmful", "untouched"]["ci_low"] > 0.8 and rates["harmful", "removed"]["ci_high"] < 0.2
assert rates["harmless", "added"]["value"] > 0.8 > rates["harmless", "untouched"]["value"]
assert next(r for r in found.rows if r["measure"] == "refusal score")["p_value"] == 0.05
assert all(r["value"] == 0 for r in nothing.rows if r["measure"] == "refusal rate" and r["condition"] == "untouched")
