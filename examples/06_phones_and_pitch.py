"""What is said, how it is said, and who says it: which layer carries which?

Runs offline on the embedded voices and codec, where the answer is known: content is in layer 0, the voice (and with it
the pitch of the voice) in layers 1 and 2. For recordings take a target that they know:

    probe_target("f0-normalised", "librispeech:dev-clean", "qwen3-tts-12hz")
"""

# %% Phones, frame by frame: a probe, shared information, and ABX, each beside what chance gives
from codecprobe import embedded_corpus, open_codec, probe_target

corpus, codec = embedded_corpus(speakers=6, sessions=2, clips=5), open_codec("embedded")
phones = probe_target("phone", corpus, codec, n_permutations=99, seed=0)
print(phones)

# %% Pitch: raw, which holds the speaker's mean, and relative to the speaker
raw = probe_target("f0", corpus, codec, n_permutations=99, seed=0)
curve = probe_target("f0-normalised", corpus, codec, n_permutations=99, seed=0)


def of(result, metric, layer, features=None):
    """Return one row of a result."""
    same = {"metric": metric, "layer": layer} | ({"features": features} if features else {})
    return next(row for row in result.rows if all(row[key] == value for key, value in same.items()))


for layer in codec.info.layers[:3]:
    named, told = of(phones, "accuracy", layer)["value"], of(phones, "adjusted PNMI", layer)["value"]
    pitch, relative = of(raw, "R2", layer)["value"], of(curve, "R2", layer)["value"]
    print(f"{layer}: phone {named:.2f}, PNMI {told:.2f}, F0 {pitch:+.2f}, within speakers {relative:+.2f}")

# %% A codec without the plant tells phones, but no pitch of a voice
flat = probe_target("f0", corpus, open_codec("embedded-flat"), n_permutations=99, seed=0)
best = max(row["value"] for row in flat.rows if row["features"] == "embedding")
print(f"best R2 of raw F0 in the codec without the plant: {best:+.2f}")

# %% What must hold, because we planted it
assert of(phones, "accuracy", "layer 0")["value"] > 0.75
assert all(of(phones, "adjusted PNMI", f"layer {k}")["value"] < 0.05 for k in (1, 2))
assert of(phones, "ABX error across", "layer 0", "code")["value"] < 0.25
assert of(raw, "R2", "layer 1")["value"] > 0.5 > best
assert of(curve, "R2", "layer 0")["p_adjusted"] <= 0.05 < of(curve, "R2", "layer 1")["p_value"]
