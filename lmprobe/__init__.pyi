from .capture import capture
from .generate import Generation, generate
from .loading import open_model
from .models import LanguageModel, wrap_model
from .readout import read_out
from .score import Scores, prompt_log_prob, score

__all__ = [
    "Generation",
    "LanguageModel",
    "Scores",
    "capture",
    "generate",
    "open_model",
    "prompt_log_prob",
    "read_out",
    "score",
    "wrap_model",
]
