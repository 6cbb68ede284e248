"""LogME: how well embeddings predict labels, without training anything.

You, Liu, Wang & Long, "LogME: Practical Assessment of Pre-trained Models for Transfer
Learning", ICML 2021, and the faster fixed point of You et al., "Ranking and Tuning
Pre-trained Models: A New Paradigm for Exploiting Model Hubs", JMLR 23 (2022), sec. 4.
"""

from dataclasses import dataclass

import numpy as np

TOLERANCE = 1e-12
ITERATIONS = 200
# The ratio of precisions is sought within this factor of the largest squared singular
# value, either way. Beyond it the evidence is flat, or grows without bound because a
# direction of the features *is* the label; then the score is that at the border.
_REACH = 1e12


@dataclass(frozen=True)
class LogME:
    """The logarithm of the maximum evidence per row.

    ``score`` is the mean of ``per_class``, one value for every class against the rest
    in the order of their names. ``converged`` tells whether within ``iterations`` steps
    the last one gained every class less than the tolerance.
    """

    score: float
    per_class: tuple[float, ...]
    iterations: int
    converged: bool


@dataclass(frozen=True)
class _Spectrum:
    """Features and targets in the basis of the singular vectors.

    ``squares`` (r,) are squared singular values, ``aligned`` (k, r) the squared
    components of each target along them, ``rest`` (k,) what lies outside the span.
    """

    rows: int
    squares: np.ndarray
    aligned: np.ndarray
    rest: np.ndarray


def logme(features: np.ndarray, labels: np.ndarray) -> LogME:
    """Score ``features`` (n, width) for ``labels``, names of shape (n,).

    Every class against the rest is a Bayesian linear regression of the 0/1 target
    without intercept: weights ~ N(0, 1/alpha), noise ~ N(0, 1/beta). One decomposition
    serves all classes. Given the ratio t = alpha/beta the best beta has a
    closed form, so that evidence is a function of t alone; t -> gamma res^2 /
    ((n - gamma) m^2) is MacKay's fixed point. It always points uphill, but creeps where
    evidence is flat and may overshoot. So a step that gains lets the next be twice as
    long, and one that loses is halved until it does not (adaptive overrelaxation,
    Salakhutdinov & Roweis, ICML 2003): evidence never falls.

    The score does not change when the features are rotated or scaled.

    Raises:
        ValueError: values that are not finite, no rows, fewer than two classes, or
            another number of labels than rows.
    """
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or not len(features) or len(features) != len(labels):
        raise ValueError(f"one label a row: {features.shape} and {len(labels)} labels")
    if not np.isfinite(features).all():
        raise ValueError("features must be finite")
    classes, codes = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"needs two classes; all rows are {classes[0]!r}")
    return _maximise(_decompose(features, np.eye(len(classes))[codes]))


def _decompose(features: np.ndarray, targets: np.ndarray) -> _Spectrum:
    """By the eigenvectors of the smaller of both Gram matrices, of rows or columns.

    That is several times as fast as a singular value decomposition. What it loses,
    below 1e-7 of the largest singular value, is rounding in embeddings of 32 bits.
    """
    rows, width = features.shape
    wide = rows <= width
    gram = features @ features.T if wide else features.T @ features
    squares, vectors = np.linalg.eigh(gram)  # unlike SciPy it lets other threads work
    least = squares.max(initial=0) * max(rows, width) * np.finfo(np.float64).eps
    kept = squares > least
    squares, vectors = squares[kept], vectors[:, kept]
    if wide:
        aligned = (targets.T @ vectors) ** 2
    else:
        aligned = (targets.T @ features @ vectors) ** 2 / squares
    rest = np.maximum((targets**2).sum(axis=0) - aligned.sum(axis=1), 0)
    return _Spectrum(rows, squares, aligned, rest)


def _maximise(found: _Spectrum) -> LogME:
    """Climb from the mean of the squared singular values, all classes at once."""
    if not len(found.squares):  # all features are zero: nothing but noise
        evidence = _evidence(found, np.zeros(len(found.rest)))
        return LogME(*_mean(evidence), 0, converged=True)
    centre = np.log(found.squares.max())
    low, high = centre - np.log(_REACH), centre + np.log(_REACH)
    place = np.full(len(found.rest), np.log(found.squares.mean()))
    evidence = _evidence(found, place)
    moving, factor, steps = np.ones(len(place), bool), np.ones(len(place)), 0
    while moving.any() and steps < ITERATIONS:
        steps += 1
        step = factor * (np.clip(_fixed_point(found, place), low, high) - place)
        step = np.where(moving, np.clip(place + step, low, high) - place, 0)
        reached = _evidence(found, place + step)
        factor = np.where(reached < evidence, 1, 2 * factor)
        while (worse := reached < evidence).any():
            step[worse] = np.where(abs(step[worse]) > TOLERANCE, step[worse] / 2, 0)
            reached = _evidence(found, place + step)
        moving &= reached - evidence > TOLERANCE
        place, evidence = place + step, reached
    return LogME(*_mean(evidence), steps, converged=not moving.any())


def _fixed_point(found: _Spectrum, place: np.ndarray) -> np.ndarray:
    """Log t that MacKay's update gives for log t = ``place``, both of shape (k,)."""
    ratio = np.exp(place)[:, None]
    shrunk = found.squares + ratio
    used = (found.squares / shrunk).sum(axis=1)  # gamma, the effective dimensions
    # rows - gamma, not taken as a difference: it may be smaller than gamma's rounding
    unused = found.rows - len(found.squares) + (ratio / shrunk).sum(axis=1)
    weights = (found.squares * found.aligned / shrunk**2).sum(axis=1)
    residual = (found.aligned * (ratio / shrunk) ** 2).sum(axis=1) + found.rest
    with np.errstate(divide="ignore"):  # no weights: infinite; no residual: zero
        return np.log(used) + np.log(residual) - np.log(unused) - np.log(weights)


def _evidence(found: _Spectrum, place: np.ndarray) -> np.ndarray:
    """Log evidence per row of every class at log t = ``place``, beta at its best."""
    ratio, rows = np.exp(place)[:, None], found.rows
    shrunk = found.squares + ratio
    # min over the weights of residual^2 + t weights^2
    loss = (found.aligned * ratio / shrunk).sum(axis=1) + found.rest
    volume = np.log(shrunk / ratio).sum(axis=1)
    return -0.5 * (np.log(2 * np.pi * loss / rows) + 1 + volume / rows)


def _mean(evidence: np.ndarray) -> tuple[float, tuple[float, ...]]:
    return float(evidence.mean()), tuple(map(float, evidence))
