from .activations import Activations, Label
from .errors import CertificateError, DesignError, InputError, MissingExtraError, ProbeError
from .results import Figure, Result

__all__ = [
    "Activations",
    "CertificateError",
    "DesignError",
    "Figure",
    "InputError",
    "Label",
    "MissingExtraError",
    "ProbeError",
    "Result",
]
