from .activations import Activations, Label
from .claims import Claim, Part, claim_figures, claim_row, claim_rows, claim_tables, part_of
from .codebooks import entropy, rarefied_codes
from .collisions import CollisionLadder
from .contrastive import ContrastSpectrum, contrast_spectrum
from .directions import (
    ContrastiveSVD,
    Direction,
    Stability,
    contrastive_svd,
    cosine_interval,
    direction,
    direction_stability,
    paired_direction,
)
from .erasure import ErasureCheck, LeaceEraser, erasure_check, project_out
from .errors import CertificateError, DesignError, InputError, MissingExtraError, ProbeError
from .geometry import (
    Overlap,
    components_for,
    covariance_spectrum,
    dimensions,
    entropy_rank,
    parallel_analysis,
    participation_ratio,
    pca_shares,
    rarefied,
    subspace_overlap,
    two_nn,
)
from .information import Information, counted_information, mutual_information
from .lens import Lens, lens_divergence, logit_lens
from .probes.controls import Selectivity, selectivity, with_baselines
from .probes.description_length import DescriptionLength, description_length
from .probes.design import Design
from .probes.layers import probe_layers
from .probes.linear import LinearProbe, LinearProbeRegressor
from .probes.permutation import PermutationTest, permutation_test
from .probes.result import ProbeResult
from .probes.solvers import ProbeSpec
from .report.html import load_result
from .results import Figure, Result
from .runs import RunFolder, parallel_map
from .splits import (
    Folds,
    group_folds,
    item_folds,
    leave_one_group_out,
    leave_one_group_per_class_out,
    stratified_folds,
)
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
from .stats.multiple import benjamini_hochberg, holm
from .stats.permutation import max_t
from .stats.samples import ExchangeTest, bootstrap_interval, exchange_test, sign_flip_test
from .stats.variance_ratio import VarianceRatio, alpha_null_interval, alpha_p_value, variance_ratio
from .store import ActivationStore, ArrayCache, load_activations, save_activations
from .verdicts import Evidence, Rule, judge

__all__ = [
    "ActivationStore",
    "Activations",
    "ArrayCache",
    "CertificateError",
    "Claim",
    "CollisionLadder",
    "ContrastSpectrum",
    "ContrastiveSVD",
    "DescriptionLength",
    "Design",
    "DesignError",
    "Direction",
    "Effect",
    "ErasureCheck",
    "Evidence",
    "ExchangeTest",
    "Figure",
    "Folds",
    "Information",
    "InputError",
    "Label",
    "LeaceEraser",
    "Lens",
    "LinearProbe",
    "LinearProbeRegressor",
    "MissingExtraError",
    "Overlap",
    "Part",
    "PermutationTest",
    "ProbeError",
    "ProbeResult",
    "ProbeSpec",
    "Result",
    "Rule",
    "RunFolder",
    "Selectivity",
    "Stability",
    "VarianceRatio",
    "Welch",
    "alpha_null_interval",
    "alpha_p_value",
    "benjamini_hochberg",
    "bootstrap_interval",
    "brown_forsythe",
    "claim_figures",
    "claim_row",
    "claim_rows",
    "claim_tables",
    "cohen_d",
    "components_for",
    "contrast_spectrum",
    "contrastive_svd",
    "cosine_interval",
    "counted_information",
    "covariance_spectrum",
    "description_length",
    "dimensions",
    "direction",
    "direction_stability",
    "effect_from_d",
    "entropy",
    "entropy_rank",
    "erasure_check",
    "exchange_test",
    "group_folds",
    "hedges_g",
    "holm",
    "item_folds",
    "judge",
    "leave_one_group_out",
    "leave_one_group_per_class_out",
    "lens_divergence",
    "load_activations",
    "load_result",
    "logit_lens",
    "max_t",
    "mcnemar_exact",
    "mutual_information",
    "paired_direction",
    "parallel_analysis",
    "parallel_map",
    "part_of",
    "participation_ratio",
    "pca_shares",
    "permutation_test",
    "probe_layers",
    "project_out",
    "rarefied",
    "rarefied_codes",
    "save_activations",
    "selectivity",
    "sign_flip_test",
    "stratified_folds",
    "subspace_overlap",
    "two_nn",
    "unit_means",
    "variance_ratio",
    "welch",
    "wilson_interval",
    "with_baselines",
]
