"""What is lost without a layer, and which layers carry a voice from one speaker to another?

Runs offline on the embedded voices and the embedded codec, whose answer is known by construction: layer 0 carries
what is said, layers 1 and 2 carry the voice. For the real thing, change two words:

    ablate("librispeech:dev-clean", "qwen3-tts-12hz", layers=["0", "1-2", "3-15"])
"""

# %% Frames of another speaker in place of a layer: what does the decoded clip lose?
from codecprobe import ablate

lost = ablate("embedded", "embedded", layers=["0", "1-2"], kinds=["resample"], seed=0)
print(lost)

# %% Rows are plain records: one measure, under one kind of edit, of one set of layers
rows = {(row["layers"], row["metric"]): row for row in lost.rows if row["kind"] == "resample"}
for layers in ("0", "1-2"):
    for metric in ("phone accuracy", "speaker accuracy"):
        row = rows[layers, metric]
        print(f"without {layers:3}  {metric:16}  {row['value']:.2f}, with all layers {row['unablated_value']:.2f}")

# %% The causal question: layers of speaker B inside a clip of speaker A. Who is heard, saying what?
swapped = ablate("embedded", "embedded", layers=["0", "1-2"], swap=True, seed=0)
moved = {(row["layers"], row["metric"]): row["moved"] for row in swapped.rows}
for layers in ("0", "1-2"):
    shares = ", ".join(f"{name} {moved[layers, name]:.2f}" for name in ("voice (nats)", "pitch (semitones)", "phones"))
    print(f"layers {layers:3} moved, from A (0) to B (1): {shares}")

# %% What must hold, because we planted it
assert rows["0", "phone accuracy"]["value"] < 0.2 < rows["1-2", "phone accuracy"]["value"]
assert rows["1-2", "speaker accuracy"]["value"] < 0.25 < rows["0", "speaker accuracy"]["value"]
assert moved["1-2", "voice (nats)"] > 0.5 > moved["0", "voice (nats)"]
assert moved["0", "phones"] > 0.5 > moved["1-2", "phones"]
