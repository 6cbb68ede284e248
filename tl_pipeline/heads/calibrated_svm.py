"""The head ``rbf_svm``: a support vector machine whose margins are calibrated."""

from typing import Any, Self

import numpy as np
from sklearn.base import clone

from tl_pipeline.heads.estimators import DecisionHead
from tl_pipeline.heads.folds import stratified_group_folds
from tl_pipeline.heads.linear.temperature import fit_inverse_temperature
from tl_pipeline.heads.predictors import KernelMachine


class CalibratedSVM(DecisionHead):
    """``machine`` fitted on all rows, and the softmax of its decisions.

    The softmax is of the decisions times ``inverse_temperature_``, one number for all
    classes, found on decisions of training rows that a fit of the same machine has not
    seen: the rows of each class, or whole groups, are divided into ``folds`` parts by
    chance, each left out in turn (Platt 1999 by cross-validation, with the one
    parameter of Guo et al. 2017, so that the class with the greatest margin keeps the
    greatest probability). A class of one row or group is in every fit and left out in
    none; if all are, the factor is 1. Rows that are near duplicates of each other, and
    whose groups nobody names, make it too great.

    Args:
        machine: an unfitted ``SVC`` with a Gaussian kernel.
        folds: fits for the factor.
        random_state: seed of the folds.

    Attributes:
        machine_: fitted.
        inverse_temperature_: see ``temperature.fit_inverse_temperature``.
    """

    def __init__(
        self, machine: Any, folds: int = 3, random_state: int | None = None
    ) -> None:
        self.machine = machine
        self.folds = folds
        self.random_state = random_state

    def fit(
        self,
        X: Any,  # noqa: N803
        y: Any,
        sample_weight: Any = None,
        groups: Any = None,
    ) -> Self:
        """Learn from ``X`` (n, width), labels ``y``, weights and groups, all (n,)."""
        x, targets, weights, groups = self.training_set(X, y, sample_weight, groups)
        fold = stratified_group_folds(targets, self.folds, self.random_state, groups)
        left_out = fold >= 0
        scores: Any = None
        for part in np.unique(fold[left_out]):
            held = fold == part
            machine: Any = clone(self.machine)
            machine.fit(x[~held], targets[~held], sample_weight=weights[~held])
            found = machine.decision_function(x[held])
            if scores is None:
                scores = np.zeros((len(x), *found.shape[1:]))
            scores[held] = found
        self.inverse_temperature_ = 1.0
        if scores is not None:
            self.inverse_temperature_ = fit_inverse_temperature(
                scores[left_out], targets[left_out], weights[left_out]
            )
        machine = clone(self.machine)
        self.machine_ = machine.fit(x, targets, sample_weight=weights)
        return self

    def predictor(self) -> KernelMachine:
        """What was learned, in numbers."""
        machine = self.machine_
        return KernelMachine(
            vectors=machine.support_vectors_,
            counts=machine.n_support_,
            dual=machine.dual_coef_,
            intercept=machine.intercept_,
            gamma=float(machine._gamma),  # noqa: SLF001 - the number behind "scale"
            inverse_temperature=self.inverse_temperature_,
        )
