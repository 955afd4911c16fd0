"""Where a clip of speaker A went when some layers came from a clip of speaker B: measures that point from A to B.

Conventions. Each measure is negative where the clip is A's and positive where it is B's:

    voice (nats)       log-odds of B against A by the speaker classifier, which is fitted on other sessions
    heard as B         whether they are positive (a share: 0 where A is heard, 1 where B is)
    pitch (semitones)  distance of the median pitch from A's decode, less that from B's
    phones             share of frames recognised as B's phone, less as A's, where both speak different ones
    MFCC               agreement with B's decode, less with A's
    mel (dB)           distance from A's decode, less from B's

With no layer swapped a measure takes the value of A's own decode, with all swapped that of B's; what lies between says
which layers carry it across.
"""

import numpy as np

from codecprobe.corpora.corpus import Clip
from codecprobe.scorers import SILENCE, Heard, Measure, Recogniser, median_pitch, mfcc_agreement, true_phones

SWAP_MEASURES = (
    Measure("voice (nats)", headline=True),
    Measure("heard as B", share=True),
    Measure("pitch (semitones)", headline=True),
    Measure("phones", headline=True),
    Measure("MFCC", headline=True),
    Measure("mel (dB)"),
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
