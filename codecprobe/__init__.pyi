from .audio import band_edge_hz, read_audio, resample
from .corpora.corpus import Audio, Clip, Corpus, Phone, Problem
from .corpora.librispeech import read_librispeech

__all__ = [
    "Audio",
    "Clip",
    "Corpus",
    "Phone",
    "Problem",
    "band_edge_hz",
    "read_audio",
    "read_librispeech",
    "resample",
]
