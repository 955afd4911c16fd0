"""How much of its codebooks does a codec use, how long do codes stay, and whom do they know without any training?

Runs offline on the embedded voices and the embedded codec, whose answer is known by construction. For the real thing:

    codebook_usage("librispeech:dev-clean", "qwen3-tts-12hz")
    code_timescales("librispeech:dev-clean", "qwen3-tts-12hz")
"""

# %% Usage: entropy corrected for few frames, codes at an equal number of frames, what layers share
import numpy as np

from codecprobe import code_timescales, codebook_usage
from probecore import counted_information, mutual_information

usage = codebook_usage("embedded", "embedded", seed=0)
print(usage)
bit_rate = next(row for row in usage.rows if row["metric"] == "bit rate")
print(f"\n{bit_rate['value']:.0f} of {bit_rate['most']:.0f} bit/s")

# %% Timescales: the voice stays, the content changes within a frame or two
times = code_timescales("embedded", "embedded", seed=0)
print(times)

# %% The same two questions on arrays of your own: why counting pairs of codes is not enough
rng = np.random.default_rng(0)
one, other = rng.integers(0, 2048, (2, 9600))  # two streams that share nothing
print(f"\ncounted: {mutual_information(one, other):.2f} bits; ours: {counted_information(one, other).reason}")

# %% What must hold, because we planted it
found = {(row["metric"], row["layer"]): row for row in times.shown}
assert found["G speaker", "layer 0"]["p_adjusted"] > 0.05
for layer in ("layer 1", "layer 2"):
    assert found["G speaker", layer]["p_adjusted"] < 0.01
    assert found["integrated time", layer]["value"] > 2 * found["integrated time", "layer 0"]["value"]
assert bit_rate["value"] < bit_rate["most"]
shared = {row["layer"]: row for row in usage.rows if row["metric"] == "excess information"}
assert shared["layer 1 and 2"]["p_adjusted"] < 0.05  # both quantise the voice, one what the other left
