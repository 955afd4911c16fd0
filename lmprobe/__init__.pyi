from .archive import capture_to
from .capture import capture
from .edit_report import EditReport
from .generate import Generation, generate
from .interventions import Add, ProjectOut, Read, Replace, Skip, active_interventions, intervened
from .k_sweep import k_sweep
from .layer_ablation import ablate
from .leak_audit import LeakAudit, leak_audit
from .lens import lens
from .loading import open_model
from .models import LanguageModel, wrap_model
from .potential import potential
from .probe import probe
from .prompts import Prompts, load_prompts
from .readout import read_out
from .refusal import refusal
from .score import Scores, prompt_log_prob, score
from .terrain import terrain
from .weight_edits import orthogonalize
from .writers import Writers, find_writers

__all__ = [
    "Add",
    "EditReport",
    "Generation",
    "LanguageModel",
    "LeakAudit",
    "ProjectOut",
    "Prompts",
    "Read",
    "Replace",
    "Scores",
    "Skip",
    "Writers",
    "ablate",
    "active_interventions",
    "capture",
    "capture_to",
    "find_writers",
    "generate",
    "intervened",
    "k_sweep",
    "leak_audit",
    "lens",
    "load_prompts",
    "open_model",
    "orthogonalize",
    "potential",
    "probe",
    "prompt_log_prob",
    "read_out",
    "refusal",
    "score",
    "terrain",
    "wrap_model",
]
