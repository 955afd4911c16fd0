"""Where a clip of speaker A went when some layers came from a clip of speaker B: measures that point from A to B.

Conventions. Each measure is negative where the clip is A's and positive where it is B's: what it says of A minus what
it says of B, or the other way round for distances. With no layer swapped it takes the value of A's own decode, with
all swapped that of B's; what lies between says which layers carry it across.
"""

import numpy as np

from codecprobe.corpora.corpus import Clip
from codecprobe.scorers import SILENCE, Heard, Measure, Recogniser, median_pitch, mfcc_agreement, true_phones

SWAP_MEASURES = (
    Measure("voice (score of B - A)", headline=True),
    Measure("heard as B rather than A", share=True),
    Measure("pitch (semitones from A - from B)", headline=True),
    Measure("phones (accuracy for B - for A)", headline=True),
    Measure("MFCC agreement (with B - with A)", headline=True),
    Measure("mel (dB from A - from B)"),
)


def compare_pair(
    a: Clip, b: Clip, heard: Heard, reference_a: Heard, reference_b: Heard, recogniser: Recogniser
) -> dict[str, float]:
    """Return every swap measure of a waveform that lies between the references of clips a and b."""
    voice = float("nan")
    if a.speaker in recogniser.speakers and b.speaker in recogniser.speakers:
        scores = recogniser.speaker_scores(heard)
        voice = float(scores[recogniser.speakers.index(b.speaker)] - scores[recogniser.speakers.index(a.speaker)])
    pitch = median_pitch(heard)
    values = (
        voice,
        float("nan") if np.isnan(voice) else float(voice > 0),
        abs(pitch - median_pitch(reference_a)) - abs(pitch - median_pitch(reference_b)),
        _phones(a, b, heard, recogniser),
        mfcc_agreement(heard, reference_b) - mfcc_agreement(heard, reference_a),
        float(np.abs(heard.mel - reference_a.mel).mean() - np.abs(heard.mel - reference_b.mel).mean()),
    )
    return dict(zip((measure.name for measure in SWAP_MEASURES), values, strict=True))


def _phones(a: Clip, b: Clip, heard: Heard, recogniser: Recogniser) -> float:
    """Return how much more often the recognised phone is that of b than that of a, where both speak and differ."""
    if recogniser.phones is None:
        return float("nan")
    of_a, of_b = (true_phones(clip, len(heard.cepstra)) for clip in (a, b))
    decided = (of_a != of_b) & ~np.isin(of_a, SILENCE) & ~np.isin(of_b, SILENCE)
    if not decided.any():
        return float("nan")
    track = recogniser.phone_track(heard)
    return float((track == of_b)[decided].mean() - (track == of_a)[decided].mean())
