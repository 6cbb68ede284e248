"""What heads together say of the rows that chose them, as they would of new ones.

Members chosen on validation fit it better than new images, the more so the more heads
there are to choose from. So their validation scores are cross-fitted, as those of a
calibration are: the rows are cut into parts, and each part is predicted by members that
the other parts chose, calibrated by a map that the other parts taught. The ensemble
that is kept is chosen on all rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import pyarrow as pa

from tl_pipeline.evaluation import calibration
from tl_pipeline.evaluation.averaging import (
    Predictions,
    Products,
    averaged,
    chosen,
    products,
)


@dataclass(frozen=True)
class Validated:
    """What heads together say of validation rows.

    ``predictions`` are the means before calibration; ``calibrated``, float32
    (n, n_classes), those after it, each row by a map that it had no part in. ``units``
    (n,) tell what each row belongs to.
    """

    predictions: Predictions
    calibrated: np.ndarray
    units: np.ndarray


def shortage(units: np.ndarray) -> str | None:
    """Why rows of these units (n,) cannot be cut into parts, if that is so."""
    found = len(np.unique(units))
    if found >= calibration.PARTS:
        return None
    return (
        f"{found} held-out images (or groups) are too few to choose by, it takes "
        f"{calibration.PARTS}"
    )


def fixed(method: str, mean: Predictions, units: np.ndarray) -> Validated:
    """Of the ``mean`` of members that these rows did not choose step by step.

    Only its calibration is cross-fitted, by ``method`` of ``calibration.METHODS``;
    ``units`` (n,) tell what each row belongs to.
    """
    found = calibration.cross_fitted(method, mean.probabilities, mean.targets(), units)
    return Validated(mean, found, units)


def greedy(
    method: str, predictions: Sequence[Predictions], units: np.ndarray
) -> Validated:
    """Members that ``averaging.greedy`` chooses, as new rows meet them.

    No row has a say in what it is given: part p is predicted by the members that the
    other parts choose. The map that calibrates p is learned from the other parts; each
    of them, q, is for this predicted by the members that the parts without p and q
    choose. Sums over parts are all that choosing needs, so each is made once.

    Args:
        method: of ``calibration.METHODS``.
        predictions: what each candidate says of the same rows.
        units: what each row belongs to, (n,); whole units are left out, and there is no
            ``shortage`` of them.
    """
    whole = averaged(predictions, [1] * len(predictions))
    targets = whole.targets()
    part = calibration.parts(targets, units)
    cut = [
        [
            one.of(whole.image_ids.filter(pa.array(part == number)))
            for one in predictions
        ]
        for number in range(calibration.PARTS)
    ]
    sums = [products(rows) for rows in cut]
    raw = np.empty_like(whole.probabilities)
    calibrated = np.empty_like(whole.probabilities)
    for p, rows in enumerate(cut):
        here = part == p
        raw[here] = _predicted(rows, sums, {p})
        others = np.empty_like(whole.probabilities)
        for q, learned in enumerate(cut):
            if q != p:
                others[part == q] = _predicted(learned, sums, {p, q})
        taught = calibration.fit(method, others[~here], targets[~here])
        calibrated[here] = taught.apply(raw[here])
    mean = Predictions(whole.image_ids, whole.labels, whole.classes, raw)
    return Validated(mean, calibrated, units)


def _predicted(
    rows: Sequence[Predictions], sums: Sequence[Products], left_out: set[int]
) -> np.ndarray:
    """Of ``rows``, by the members that the parts which are not left out choose."""
    seen = [one for number, one in enumerate(sums) if number not in left_out]
    return averaged(rows, chosen(reduce(Products.plus, seen))).probabilities
