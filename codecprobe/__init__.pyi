from .audio import band_edge_hz, read_audio, resample
from .claims import reproduce_notes
from .codecs.codec import CodecInfo, Codes
from .codecs.conformance import Conformance, check_codec
from .codecs.registry import open_codec
from .comparison import compare_codecs
from .corpora.corpus import Audio, Clip, Corpus, Phone, Problem
from .corpora.embedded import embedded_corpus
from .corpora.folder import read_folder
from .corpora.librispeech import read_librispeech
from .corpora.manifest import read_manifest
from .corpora.registry import open_corpus
from .dataset import load_tokenized, save_tokenized, to_dataset
from .dynamics import code_timescales
from .layer_ablation import ablate
from .representation import Windows, cut_windows, represent
from .speaker import speaker_probe
from .talker import Talker, open_talker
from .talker_lens import style_lens
from .targets import probe_target
from .tokenization import TokenizedCorpus, tokenize
from .usage import codebook_usage

__all__ = [
    "Audio",
    "Clip",
    "CodecInfo",
    "Codes",
    "Conformance",
    "Corpus",
    "Phone",
    "Problem",
    "Talker",
    "TokenizedCorpus",
    "Windows",
    "ablate",
    "band_edge_hz",
    "check_codec",
    "code_timescales",
    "codebook_usage",
    "compare_codecs",
    "cut_windows",
    "embedded_corpus",
    "load_tokenized",
    "open_codec",
    "open_corpus",
    "open_talker",
    "probe_target",
    "read_audio",
    "read_folder",
    "read_librispeech",
    "read_manifest",
    "represent",
    "reproduce_notes",
    "resample",
    "save_tokenized",
    "speaker_probe",
    "style_lens",
    "to_dataset",
    "tokenize",
]
