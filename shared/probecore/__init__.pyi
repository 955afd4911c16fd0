from .activations import Activations, Label
from .errors import CertificateError, DesignError, InputError, MissingExtraError, ProbeError
from .report.html import load_result
from .results import Figure, Result
from .runs import RunFolder, parallel_map
from .stats.effects import (
    Effect,
    Welch,
    brown_forsythe,
    cohen_d,
    effect_from_d,
    hedges_g,
    mcnemar_exact,
    unit_means,
    welch,
    wilson_interval,
)
from .stats.samples import ExchangeTest, bootstrap_interval, exchange_test, sign_flip_test
from .stats.variance_ratio import VarianceRatio, alpha_null_interval, alpha_p_value, variance_ratio
from .store import ActivationStore, ArrayCache, load_activations, save_activations

__all__ = [
    "ActivationStore",
    "Activations",
    "ArrayCache",
    "CertificateError",
    "DesignError",
    "Effect",
    "ExchangeTest",
    "Figure",
    "InputError",
    "Label",
    "MissingExtraError",
    "ProbeError",
    "Result",
    "RunFolder",
    "VarianceRatio",
    "Welch",
    "alpha_null_interval",
    "alpha_p_value",
    "bootstrap_interval",
    "brown_forsythe",
    "cohen_d",
    "effect_from_d",
    "exchange_test",
    "hedges_g",
    "load_activations",
    "load_result",
    "mcnemar_exact",
    "parallel_map",
    "save_activations",
    "sign_flip_test",
    "unit_means",
    "variance_ratio",
    "welch",
    "wilson_interval",
]
