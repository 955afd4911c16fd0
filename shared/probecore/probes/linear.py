"""Linear probes as scikit-learn estimators: fit, predict, decision_function, score, in pipelines and grid searches.

They fit one probe to the items given; for honest accuracies with p-values and intervals use `probe_layers`.

>>> import numpy as np
>>> x = np.random.default_rng(0).normal(size=(40, 5)); y = np.where(x[:, 0] > 0, "loud", "quiet")
>>> LinearProbe(kind="lda").fit(x, y).predict([[3.0, 0, 0, 0, 0]]).tolist()
['loud']
"""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, softmax
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from probecore.errors import InputError
from probecore.probes.fit import fit_linear
from probecore.validation import one_per_item

Array = NDArray[Any]


class _Linear(BaseEstimator):  # type: ignore[misc]
    """What both estimators share: decisions from `coef_` (k, features) and `intercept_` (k,)."""

    def _decisions(self, x: ArrayLike) -> NDArray[np.float64]:
        check_is_fitted(self)
        return np.asarray(validate_data(self, x, reset=False, dtype=np.float64) @ self.coef_.T + self.intercept_)


def _gives_probabilities(probe: "LinearProbe") -> bool:
    return probe.kind in ("lda", "logistic")


class LinearProbe(ClassifierMixin, _Linear):  # type: ignore[misc]
    """Linear classifier: ridge, LDA, logistic or mean difference.

    kind : "ridge", "lda", "logistic" or "mean-difference" (`probecore.probes.fit` defines each).
    alpha : penalty on the scaled features: a positive number; "trace" (default) for the mean squared norm of the
        centred, scaled items (a quarter of it for logistic, which makes its first Newton step the ridge probe); for
        ridge also "group-loo", "loo" or "gcv", chosen inside `fit`. For logistic alpha is 1 / C of scikit-learn.
    standardize : scale each feature to unit variance in the items fitted.
    priors : for LDA, "empirical", "equal" or one number per class (in the order of `classes_`).

    Fitted: classes_, coef_ (1, features) or (classes, features) and intercept_ in units of the raw features, alpha_.
    """

    def __init__(
        self,
        kind: str = "ridge",
        alpha: float | str = "trace",
        standardize: bool = True,
        priors: str | Sequence[float] = "empirical",
    ) -> None:
        self.kind = kind
        self.alpha = alpha
        self.standardize = standardize
        self.priors = priors

    def fit(self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Fit to X (items, features) and class labels y (items,); groups (items,) only for alpha "group-loo"."""
        x, labels = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        check_classification_targets(labels)
        self.classes_, codes = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError(f"a classifier needs at least 2 classes; got 1 class, {self.classes_[0]!r}")
        fit = fit_linear(
            x,
            codes.astype(np.int64),
            len(self.classes_),
            kind=self.kind,
            alpha=self.alpha,
            standardize=self.standardize,
            priors=self.priors,
            groups=_codes(groups, len(x)),
        )
        self.coef_, self.intercept_, self.alpha_ = fit.coef, fit.intercept, fit.alpha
        return self

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return decisions (items,), positive for `classes_[1]`, or (items, classes) for more than two classes."""
        decisions = self._decisions(X)
        return decisions[:, 0] if len(self.classes_) == 2 else decisions

    def predict(self, X: ArrayLike) -> Array:
        """Return the class of each item, (items,)."""
        decisions = self.decision_function(X)
        codes = (decisions > 0).astype(np.intp) if decisions.ndim == 1 else decisions.argmax(1)
        return np.asarray(self.classes_[codes])

    @available_if(_gives_probabilities)  # type: ignore[untyped-decorator]
    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return class probabilities (items, classes) of the model; only LDA and logistic probes have one."""
        decisions = self.decision_function(X)
        if decisions.ndim == 1:
            one = expit(decisions)
            return np.column_stack([expit(-decisions), one])
        return np.asarray(softmax(decisions, axis=1))


class LinearProbeRegressor(RegressorMixin, _Linear):  # type: ignore[misc]
    """Ridge regression with a label-free or inner-cross-validated penalty; alpha and standardize as in `LinearProbe`.

    Fitted: coef_ (features,) and intercept_ in units of the raw features, alpha_.
    """

    def __init__(self, alpha: float | str = "trace", standardize: bool = True) -> None:
        self.alpha = alpha
        self.standardize = standardize

    def fit(self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Fit to X (items, features) and numbers y (items,); groups (items,) only for alpha "group-loo"."""
        x, values = validate_data(self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=2)
        fit = fit_linear(
            x,
            np.asarray(values, dtype=np.float64),
            0,
            alpha=self.alpha,
            standardize=self.standardize,
            groups=_codes(groups, len(x)),
        )
        self.coef_, self.intercept_, self.alpha_ = fit.coef[0], float(fit.intercept[0]), fit.alpha
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the predicted value of each item, (items,)."""
        return self._decisions(X)


def _codes(groups: ArrayLike | None, n_items: int) -> NDArray[np.int64] | None:
    if groups is None:
        return None
    return np.unique(one_per_item(groups, n_items, "groups"), return_inverse=True)[1].astype(np.int64)
