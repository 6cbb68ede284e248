"""What is done to embeddings before a head learns, as steps of a pipeline."""

from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.utils.validation import (
    _check_sample_weight,
    check_is_fitted,
    validate_data,
)

from tl_pipeline.heads.linear.design_matrix import moments
from tl_pipeline.heads.principal import Centred


class Components(TransformerMixin, BaseEstimator):
    """Principal components, without those that hold no variance.

    Unlike scikit-learn's PCA it takes weights, keeps at most as many components as
    there are, and whitens none that is rounding only: with fewer rows than features
    that would be noise, as large as the rest.

    Args:
        keep: components at most; a share below 1: as few as hold that of the variance;
            0: all.
        whiten: whether to divide each by its standard deviation.

    Attributes:
        mean_: (width,), taken off first.
        components_: (r, width), the greatest variance first.
        variances_: (r,) of the training rows along them.
    """

    def __init__(self, keep: float = 0, *, whiten: bool = False) -> None:
        self.keep = keep
        self.whiten = whiten

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:  # noqa: ARG002, N803
        """Learn from ``X`` (n, width) and weights (n,); ``y`` is not looked at."""
        X = validate_data(  # noqa: N806
            self, X, dtype=[np.float64, np.float32], ensure_min_samples=2
        )
        weights = _check_sample_weight(
            sample_weight, X, dtype=np.float64, ensure_non_negative=True
        )
        self.mean_, _ = moments(X, weights)
        ones, zeros = np.ones(X.shape[1]), np.zeros(len(X), int)
        rows = Centred(X, weights, self.mean_[None], zeros, ones)
        powers, directions = rows.principal()
        powers, directions = powers[::-1], directions[:, ::-1]
        count = max(1, min(self._count(powers), _real(powers, X)))
        found = directions[:, :count].T
        greatest = np.abs(found).argmax(axis=1)  # the sign is free: make it one
        found = found * np.sign(found[np.arange(count), greatest])[:, None]
        self.components_ = np.ascontiguousarray(found)
        self.variances_ = powers[:count] / weights.sum()
        return self

    def transform(self, X: Any) -> np.ndarray:  # noqa: N803
        """Of ``X`` (n, width) its components (n, r)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)  # noqa: N806
        return (X - self.mean_.astype(X.dtype)) @ self.axes().T.astype(X.dtype)

    def axes(self) -> np.ndarray:
        """What centred rows are multiplied by: (r, width)."""
        if not self.whiten:
            return self.components_
        deviations = np.sqrt(self.variances_)
        return self.components_ / np.where(deviations > 0, deviations, 1)[:, None]

    def _count(self, powers: np.ndarray) -> int:
        if not 0 < self.keep < 1:
            return int(self.keep) or len(powers)
        shares = np.cumsum(powers) / max(powers.sum(), np.finfo(float).tiny)
        return int(np.searchsorted(shares, self.keep)) + 1


def prepared(model: Any, *, l2: bool, scale: str, pca: float, whiten: bool) -> Any:
    """``model`` after the steps asked for: unit length, standard scale, components.

    All are fitted on the rows that the model is, and saved with it. A model that
    standardises by itself, and so has the parameter ``standardise``, does so if nothing
    has to follow. ``whiten`` without ``pca`` whitens all components.
    """
    steps: list[Any] = [Normalizer()] if l2 else []
    reduced = bool(pca) or whiten
    standardise = scale == "standard"
    if hasattr(model, "standardise"):
        model.set_params(standardise=standardise and not reduced)
        standardise = standardise and reduced
    if standardise:
        steps.append(StandardScaler())
    if reduced:
        steps.append(Components(pca, whiten=whiten))
    return make_pipeline(*steps, model) if steps else model


def _real(powers: np.ndarray, x: np.ndarray) -> int:
    """How many of ``powers``, descending, are more than rounding of ``x``."""
    least = powers[0] * max(x.shape) * np.finfo(x.dtype).eps if len(powers) else 0
    return int((powers > least).sum())
