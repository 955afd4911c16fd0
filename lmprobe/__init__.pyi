from .capture import capture
from .generate import Generation, generate
from .loading import open_model
from .models import LanguageModel, wrap_model

__all__ = ["Generation", "LanguageModel", "capture", "generate", "open_model", "wrap_model"]
