"""How many directions carry refusal? Remove 1, 2, 3, ... of them, with capability as a gate and controls beside.

Runs offline on tiny organisms with one and with four planted directions. For a real model name it and give prompts:

    k_sweep("Qwen/Qwen2.5-1.5B-Instruct", read_prompts(["harmful=advbench.csv", "harmless=seed_tasks.jsonl"]))
"""

# %% One planted direction, and four
from lmprobe import k_sweep
from probecore.removal import gated_at

found = k_sweep(
    ["refusal-1", "refusal-4"], k_max=5, n_random=9, n_curves=1, n_permutations=20, n_bootstrap=100, n_extract=5
)
print(found)

# %% k@95 %: the smallest k from which on 95 % of the refusals are gone while capability holds
k95 = {row["model"]: row for row in found.rows if row["metric"] == "k@95 %"}
for name, row in k95.items():
    print(f"{name}: {row['value']} [{row['ci_low']:g}, {row['ci_high']:g}], planted {row['planted']}")

# %% The same from the curves, which are plain records
curves = {
    measure: [
        row["value"]
        for row in found.tables["curves"]
        if row["model"] == "refusal-4" and row["arm"] == "contrast" and row["measure"] == measure
    ]
    for measure in ("refusal", "capability")
}
print([round(value, 2) for value in curves["refusal"]])
by_hand = gated_at(curves["refusal"], curves["capability"], 0.95)

# %% Two behaviours: do they share directions, and does removing one take the other with it?
for row in found.rows:
    if row["measure"] in ("overlap", "collateral"):
        print(f"{row['model']}: {row['metric']}: {row['value']:.2f}")

# %% What must hold, because we planted it
assert {name: row["value"] for name, row in k95.items()} == {"refusal-1": 1, "refusal-4": 4} and by_hand.k == 4
overlap = {row["model"]: row["value"] for row in found.rows if row["measure"] == "overlap"}
assert overlap["refusal-1"] > 0.9 and overlap["refusal-4"] < 0.2
assert all(
    row["null_mean"] < 0.01 for row in found.rows if row["measure"] == "removed" and row["control"] == "random frames"
)
