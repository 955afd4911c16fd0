"""Probe your own arrays: any network, any label, no codec and no language model.

Made here: 12 "layers" of 160 items from 16 people, 10 items each. A property of the item is planted from layer 5 on; a
property of the person is in every layer. Which layers carry the item's property, for people not seen in training?
"""

# %% Arrays with a known answer
import numpy as np

from probecore import LinearProbe, probe_layers

rng = np.random.default_rng(0)
person = np.repeat(np.arange(16), 10)
question = rng.permuted(np.tile([0, 1], (16, 5)), axis=1).ravel()  # half of each person's items, in any order
direction = rng.standard_normal(64) / 8
layers = {}
for k in range(12):
    strength = 0.0 if k < 5 else 0.5 * (k - 4)
    values = rng.standard_normal((160, 64)) + rng.standard_normal((16, 64))[person]
    layers[f"block {k}"] = values + strength * np.outer(2 * question - 1, direction)

# %% One call. groups: what must be new at test. The exchange of labels follows: inside each person.
result = probe_layers(layers, np.where(question, "question", "statement"), groups=person, n_permutations=999, seed=0)
print(result.to_result("probe", title="Question or statement, by layer, for people not seen in training"))

# %% Are two layers different? The same resamples answer for both.
step = result.compare("block 11", "block 7")
print(f"\nblock 11 - block 7: {step['difference']:+.3f} [{step['ci_low']:+.3f}, {step['ci_high']:+.3f}]")

# %% The probe alone, as a scikit-learn estimator
probe = LinearProbe(kind="ridge").fit(layers["block 11"][:120], question[:120])
held_out = probe.score(layers["block 11"][120:], question[120:])
cosine = float(probe.coef_.ravel() @ direction / np.linalg.norm(probe.coef_) / np.linalg.norm(direction))
print(f"held-out accuracy {held_out:.2f}; cosine of its weights with the planted direction {cosine:.2f}")

# %% What must hold, because we planted it
rows = {row["layer"]: row for row in result.rows}
assert all(rows[f"block {k}"]["p_adjusted"] > 0.05 for k in range(5))
assert all(rows[f"block {k}"]["p_adjusted"] <= 0.01 for k in range(7, 12))
assert held_out > 0.8 and cosine > 0.7
