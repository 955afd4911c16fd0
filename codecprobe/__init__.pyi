from .audio import band_edge_hz, read_audio, resample
from .codecs.codec import CodecInfo, Codes
from .codecs.registry import open_codec
from .corpora.corpus import Audio, Clip, Corpus, Phone, Problem
from .corpora.librispeech import read_librispeech
from .dataset import load_tokenized, save_tokenized, to_dataset
from .tokenization import TokenizedCorpus, tokenize

__all__ = [
    "Audio",
    "Clip",
    "CodecInfo",
    "Codes",
    "Corpus",
    "Phone",
    "Problem",
    "TokenizedCorpus",
    "band_edge_hz",
    "load_tokenized",
    "open_codec",
    "read_audio",
    "read_librispeech",
    "resample",
    "save_tokenized",
    "to_dataset",
    "tokenize",
]
