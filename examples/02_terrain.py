"""Does alignment show in the entropy of a language model, and where in the network?

Runs offline on the packaged organisms: tiny synthetic models in which alignment was planted with a known strength, so
that every gap has an exact expected value. For the real thing, name models and prompts:

    terrain(["gpt2", "microsoft/phi-2", "Qwen/Qwen2.5-1.5B-Instruct"], "my_prompts.csv")
"""

# %% One call: models side by side, safe against risk prompts that hold the same words in another order
from lmprobe import terrain

result = terrain(n_permutations=999, n_bootstrap=1000, seed=0)
print(result)

# %% Rows are plain records; `detail` marks those the printed table leaves out
gaps = {
    (row["model"], row["mode"]): row
    for row in result.rows
    if row["measure"] == "entropy gap" and row["contrast"] == "risk - safe"
}
for (model, mode), row in gaps.items():
    print(f"{model:12s} {mode:12s} measured {row['value']:+.3f}  planted {row['planted']:+.3f} nats")

# %% Which layers tell safe from risk, for families of prompts not seen in training?
layers = [row for row in result.records("separability") if row["model"] == "aligned-100" and "control" in row]
for row in layers:
    shown = (
        "no probe: " + row["p_note"] if row["accuracy"] is None else f"{row['accuracy']:.2f}, control {row['control']}"
    )
    print(f"{row['layer']:8s} {shown}")

# %% A figure, a folder with everything
# result.save("runs/terrain")   # result.json, tables as CSV, figures as SVG and PNG, report.html

# %% What must hold, because we planted it
assert all(abs(row["value"] - row["planted"]) < 0.02 for row in gaps.values())
assert gaps["base", "own text"]["p_adjusted"] > 0.05
assert gaps["aligned-100", "own text"]["p_adjusted"] < 0.01
