"""Which layer of a codec knows who is speaking?

Runs offline on the embedded voices and the embedded codec, whose answer is known by construction: layer 0 carries
what is said, layers 1 and 2 carry the voice. For the real thing, change two words:

    speaker_probe("librispeech:dev-clean", "qwen3-tts-12hz")
"""

# %% One call: corpus, codec, table
from codecprobe import speaker_probe

result = speaker_probe("embedded", "embedded", n_permutations=999, seed=0)
print(result)

# %% Rows are plain records
layers = [row for row in result.rows if row["features"] == "embedding"]
best = max(layers, key=lambda row: row["accuracy"])
interval = f"[{best['ci_low']:.2f}, {best['ci_high']:.2f}]"
print(f"\n{best['layer']}: {best['accuracy']:.2f} {interval}, chance {best['chance']:.2f}")

# %% A codec without the plant does not show it: the control that every finding needs
flat = speaker_probe("embedded", "embedded-flat", n_permutations=999, n_bootstrap=0, seed=0)
found = [row["layer"] for row in flat.rows if row["features"] == "embedding" and row["p_adjusted"] <= 0.01]
print(f"layers of the codec without the plant that know the speaker: {found or 'none'}")

# %% What must hold, because we planted it
by_layer = {row["layer"]: row for row in layers}
assert by_layer["layer 0"]["p_adjusted"] > 0.05
assert by_layer["layer 1"]["p_adjusted"] < 0.01 and by_layer["layer 2"]["p_adjusted"] < 0.01
assert not found
