from .capture import capture
from .generate import Generation, generate
from .interventions import Add, ProjectOut, Read, Replace, Skip, active_interventions, intervened
from .loading import open_model
from .models import LanguageModel, wrap_model
from .potential import potential
from .prompts import Prompts, load_prompts
from .readout import read_out
from .refusal import refusal
from .score import Scores, prompt_log_prob, score
from .terrain import terrain

__all__ = [
    "Add",
    "Generation",
    "LanguageModel",
    "ProjectOut",
    "Prompts",
    "Read",
    "Replace",
    "Scores",
    "Skip",
    "active_interventions",
    "capture",
    "generate",
    "intervened",
    "load_prompts",
    "open_model",
    "potential",
    "prompt_log_prob",
    "read_out",
    "refusal",
    "score",
    "terrain",
    "wrap_model",
]
