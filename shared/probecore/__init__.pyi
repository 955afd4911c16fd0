from .activations import Activations, Label
from .errors import CertificateError, DesignError, InputError, MissingExtraError, ProbeError
from .results import Figure, Result
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

__all__ = [
    "Activations",
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
    "mcnemar_exact",
    "sign_flip_test",
    "unit_means",
    "variance_ratio",
    "welch",
    "wilson_interval",
]
