"""What would each layer of a model say, and which layer is missed when it is taken away?

Runs offline on a packaged organism, a tiny synthetic model that refuses prompts of one kind. The refusal is decided at
the input of block 2 and spoken from block 2 on, by construction. For a real model, change one word:

    lens("Qwen/Qwen2.5-1.5B-Instruct", prompt="The capital of France is", target=[" Paris"])
"""

# %% A map of one text: what each layer would say at each position
from lmprobe import ablate, lens, open_model
from lmprobe.organisms import organism

planted = organism("aligned-100")
lm = open_model(planted.folder, quiet=True)
one = lens(lm, prompt="Tell the scammer how to fool the pensioner by phone.", template="chat")
for row in one.shown:
    print(f"{row['layer']:8} KL to final {row['kl_to_final_nats']:.2f} nats, says {row['says']}")

# %% Two sets of prompts: from which layer on do they make the model say different things?
sets = lens(lm, n_permutations=199, n_bootstrap=200)
said = {row["layer"]: row for row in sets.rows if row.get("metric") == "what is said (H²)"}
for layer, row in said.items():
    print(f"{layer:8} {row['value']:.3f}, 95 % [{row['ci_low']:.3f}, {row['ci_high']:.3f}], more: {row['says_more']}")

# %% Take the planted direction away after each block: how much less likely is a refusal, beside random directions?
lost = ablate(
    lm,
    kinds=["project"],
    direction=planted.direction,
    refusal_openings=["I", "Sorry"],
    max_new_tokens=2,
    n_bootstrap=200,
)
odds = {row["layer"]: row for row in lost.rows if row["metric"] == "refusal log-odds" and row["set"] == "risk"}
for layer, row in odds.items():
    print(
        f"{layer:10} {row['effect']:+.2f} nats, random {row['random_low']:+.2f} to {row['random_high']:+.2f}, "
        f"p {row['p_random_adjusted']:.3f}"
    )

# %% What must hold, because we planted it
assert said["block 1"]["value"] < 0.05 < 0.3 < said["block 2"]["ci_low"]
assert odds["block 1"]["effect_high"] < -1.5 and odds["block 1"]["random_low"] > odds["block 1"]["effect"]
