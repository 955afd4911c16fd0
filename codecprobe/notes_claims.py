"""The claims of the Qwen3-TTS notes, each as an estimand and a rule. Nothing here depends on data.

Conventions. `L` is the last layer of the codec, "later" means layers 3 to L; the margins are fixed here:

    .10   accuracy: half of what the notes' layer 1 has above chance. Smaller differences are not what the notes claim
    .25   "barely": less than a quarter of the largest effect
    .50   shares: "most of it", "far less" (less than half as much), "carries it across" (more than half of the way)

`docs/claims.md` says of each claim why this estimand and what could overturn it. A claim is measured by one of the
parts `PARTS`; where a part could not run, its claims are not decided, with the reason.
"""

import math

from probecore.claims import Claim
from probecore.verdicts import Rule

SPEAKER, CODES, USAGE, ABLATION, SWAP, LENS = "speaker", "timescales", "usage", "ablation", "swap", "lens"
PARTS = (SPEAKER, CODES, USAGE, ABLATION, SWAP, LENS)
MARGIN, BARELY, HALF = 0.10, 0.25, 0.50
NOTES_SPEAKERS, NOTES_CLIPS = 10, 5
LOST = Rule(low=0.0, fails_below=-math.inf, needs_p=True, negligible=MARGIN)
TALKER_LAYERS, MIDDLE = 28, (13, 20)  # layer 0 is the talker's input, layer i the stream after block i
STYLE = "Speak in a sad, slow voice."

FLIPPED = "p of no effect, signs of speakers flipped"
OF_A_HALF = "a share against a half is read by its interval"

CLAIMS = (
    Claim("speaker-0", "speaker at chance in layer 0", "accuracy - chance of layer 0, unheard sessions",
          Rule(-MARGIN, MARGIN), SPEAKER),
    Claim("speaker-1", "speaker above chance in layer 1", "accuracy - chance of layer 1, unheard sessions",
          Rule(low=0.0, fails_below=MARGIN, needs_p=True), SPEAKER),
    Claim("speaker-1-size", "about 30 % in layer 1", "accuracy of layer 1 among 10 speakers",
          Rule(0.30 - MARGIN, 0.30 + MARGIN), SPEAKER),
    Claim("speaker-0-1", "from layer 1 on, not before", "accuracy of layer 1 - layer 0, same folds",
          Rule(low=0.0), SPEAKER),
    Claim("speaker-2", "layer 2 similar", "accuracy of layer 2 - layer 1, same folds",
          Rule(-MARGIN, MARGIN), SPEAKER),
    Claim("speaker-later", "little more later", "accuracy of layers 0 to L - layers 0 to 2, same folds",
          Rule(high=MARGIN), SPEAKER),
    Claim("ablation-0-words", "ablation: layer 0 is what is said",
          "content lost with layer 0 of another clip, beyond a random change of that size", LOST,
          ABLATION),
    Claim("ablation-0-voice", "ablation: layer 0 is not who speaks",
          "speaker accuracy lost with layer 0 of another speaker", Rule(high=MARGIN), ABLATION),
    Claim("ablation-1-2-voice", "ablation: layers 1-2 are who speaks",
          "speaker accuracy lost with layers 1-2 of another speaker, beyond a random change of that size",
          LOST, ABLATION),
    Claim("ablation-probe-0", "ablation: the probe does not need layer 0",
          "probe accuracy of all layers - all but layer 0", Rule(high=MARGIN), ABLATION),
    Claim("persists", "layer 0 codes persist longer", "repeat rate of layer 0 - that of the slowest later layer",
          Rule(low=0.0), CODES),
    Claim("persists-beyond-use", "... not only because few are used",
          "autocorrelation at 1 frame of layer 0 - that of the slowest later layer", Rule(low=0.0), CODES),
    Claim("faster", "higher layers change faster", "rank correlation of layer and repeat rate",
          Rule(high=0.0, needs_p=True), CODES),
    Claim("uses-less", "layer 0 uses far less of its codebook",
          "share of codes used by layer 0 - half of that of layers 1 to L", Rule(high=0.0, needs_p=True), USAGE),
    Claim("uses-most", "higher layers use most of it", "share of codes used by layers 1 to L, mean",
          Rule(low=HALF), USAGE),
    Claim("lens-early", "style barely touches early layers of the talker",
          "largest style effect in the first third of the talker's layers, share of its peak", Rule(high=BARELY), LENS),
    Claim("lens-peak", "its effect peaks in layers 13-20", "layer of the peak",
          Rule(MIDDLE[0] - 0.5, MIDDLE[1] + 0.5), LENS),
    Claim("reading-0", "layer 0: what you say", "share of the words' way from A to B when layer 0 is swapped",
          Rule(low=HALF), SWAP),
    Claim("reading-1-2", "layers 1-2: who you are", "share of the voice's way from A to B when layers 1-2 are swapped",
          Rule(low=HALF), SWAP),
    Claim("reading-3", "layers 3 to L: how you say it",
          "pitch contour lost with layers 3 to L of another speaker, beyond a random change of that size",
          LOST, ABLATION),
    Claim("reading-3-pitch", "... and its pitch", "share of the pitch's way from A to B when layers 3 to L are swapped",
          Rule(low=HALF), SWAP),
)  # fmt: skip
