"""Fitted heads as numbers: what predicts, in numpy, without the solver that fitted it.

In: rows of embeddings, (n, width) of float32 or float64. Out: class probabilities
(n, K). A predictor is a few arrays, which is also how it is kept: ``tensors`` names
them, ``of_tensors`` takes them back and checks their shapes, since they come from a
file. ``parameters`` of ``of_tensors`` are those of the head's configuration.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from scipy.special import softmax

from tl_pipeline.config.short_forms import Scalar
from tl_pipeline.heads.linear.temperature import probabilities

Tensors = Mapping[str, np.ndarray]
Parameters = Mapping[str, Scalar]

# Products of rows with rows that are kept (neighbours, support vectors) at one time.
PRODUCTS = 1 << 24


class Predictor(Protocol):
    """Class probabilities of rows."""

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        """Class probabilities (n, K) of ``x`` (n, width)."""
        ...

    def tensors(self) -> dict[str, np.ndarray]:
        """All that was learned, by name."""
        ...

    @classmethod
    def of_tensors(cls, tensors: Tensors, classes: int, parameters: Parameters) -> Self:
        """The predictor of ``classes`` whose ``tensors`` these are.

        Raises:
            KeyError, ValueError: a tensor is missing or has another shape.
        """
        ...


@dataclass(frozen=True)
class Preparation:
    """What is done to rows before a head sees them; nothing by default.

    First ``l2``: to length 1. Then ``(x - mean) / scale``, both (width,), and the
    products with ``axes`` (r, width): principal components, whitened or not.
    """

    l2: bool = False
    mean: np.ndarray | None = None
    scale: np.ndarray | None = None
    axes: np.ndarray | None = None

    def apply(self, x: np.ndarray) -> np.ndarray:
        """Of ``x`` (n, width) what the head is given: (n, width) or (n, r)."""
        if self.l2:
            x = unit_rows(x)
        if self.mean is not None:
            x = x - self.mean.astype(x.dtype)
        if self.scale is not None:
            x = x / self.scale.astype(x.dtype)
        return x if self.axes is None else x @ self.axes.T.astype(x.dtype)

    def tensors(self) -> dict[str, np.ndarray]:
        """The arrays that there are, by name."""
        named = {"mean": self.mean, "scale": self.scale, "axes": self.axes}
        return {name: found for name, found in named.items() if found is not None}


@dataclass(frozen=True)
class Linear:
    """Standardise, one product, softmax: logistic regression, ridge, SVM and LDA.

    ``coef`` (K, width) and ``intercept`` (K,) are of features less ``mean`` over
    ``scale``, both (width,); of two classes there is one row, positive for the second.
    The softmax is of the decisions times ``inverse_temperature``.
    """

    coef: np.ndarray
    intercept: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    inverse_temperature: float = 1.0

    def decisions(self, x: np.ndarray) -> np.ndarray:
        """Scores (n, K), or (n,) of two classes."""
        standardised = (x - self.mean.astype(x.dtype)) / self.scale.astype(x.dtype)
        scores = standardised @ self.coef.T + self.intercept
        return scores[:, 0] if len(self.coef) == 1 else scores

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        """See ``Predictor``."""
        return probabilities(self.decisions(x), self.inverse_temperature)

    def tensors(self) -> dict[str, np.ndarray]:
        """See ``Predictor``."""
        return {
            "coef": self.coef,
            "intercept": self.intercept,
            "mean": self.mean,
            "scale": self.scale,
            "inverse_temperature": np.array([self.inverse_temperature]),
        }

    @classmethod
    def of_tensors(cls, tensors: Tensors, classes: int, parameters: Parameters) -> Self:  # noqa: ARG003
        """See ``Predictor``."""
        rows, width = (1 if classes == 2 else classes), len(tensors["mean"])
        _check(tensors, coef=(rows, width), intercept=(rows,), scale=(width,))
        return cls(
            *(tensors[name] for name in ("coef", "intercept", "mean", "scale")),
            inverse_temperature=tensors["inverse_temperature"].item(),
        )


@dataclass(frozen=True)
class Centroids:
    """The softmax of ``inverse_temperature`` times cosines with ``centroids`` (K, w).

    Centroids have length 1.
    """

    centroids: np.ndarray
    inverse_temperature: float

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        """See ``Predictor``."""
        cosines = unit_rows(x) @ self.centroids.T.astype(x.dtype)
        return probabilities(cosines, self.inverse_temperature)

    def tensors(self) -> dict[str, np.ndarray]:
        """See ``Predictor``."""
        factor = np.array([self.inverse_temperature])
        return {"centroids": self.centroids, "inverse_temperature": factor}

    @classmethod
    def of_tensors(cls, tensors: Tensors, classes: int, parameters: Parameters) -> Self:  # noqa: ARG003
        """See ``Predictor``."""
        _check(tensors, centroids=(classes, tensors["centroids"].shape[1]))
        return cls(tensors["centroids"], tensors["inverse_temperature"].item())


@dataclass(frozen=True)
class Neighbours:
    """A vote of the ``k`` kept rows of the greatest cosine; see ``NeighbourHead``.

    ``rows`` (m, width) have length 1, ``targets`` (m,) are their class numbers; there
    are ``classes``.
    """

    rows: np.ndarray
    targets: np.ndarray
    classes: int
    k: int
    temperature: float

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        """See ``Predictor``."""
        x = unit_rows(x)
        found = np.empty((len(x), self.classes), x.dtype)
        step = max(1, PRODUCTS // len(self.rows))
        shares = np.bincount(self.targets, minlength=self.classes) / len(self.targets)
        for first in range(0, len(x), step):
            votes = self._votes(x[first : first + step] @ self.rows.T, shares)
            found[first : first + step] = votes / votes.sum(axis=1, keepdims=True)
        return found

    def _votes(self, cosines: np.ndarray, shares: np.ndarray) -> np.ndarray:
        """Votes (n, K) by ``cosines`` (n, m); one more is dealt by ``shares`` (K,)."""
        count = min(self.k, len(self.rows))
        nearest = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
        close = np.take_along_axis(cosines, nearest, axis=1)
        close -= close.max(axis=1, keepdims=True)
        votes = np.exp(close / self.temperature)
        cells = np.arange(len(cosines))[:, None] * self.classes + self.targets[nearest]
        sums = np.bincount(cells.ravel(), votes.ravel(), len(cosines) * self.classes)
        dealt = votes.min(axis=1, keepdims=True) * shares
        return sums.reshape(len(cosines), -1) + dealt

    def tensors(self) -> dict[str, np.ndarray]:
        """See ``Predictor``."""
        return {"rows": self.rows, "targets": self.targets}

    @classmethod
    def of_tensors(cls, tensors: Tensors, classes: int, parameters: Parameters) -> Self:
        """See ``Predictor``."""
        rows, targets = tensors["rows"], tensors["targets"]
        _check(tensors, targets=rows.shape[:1])
        if not 0 <= targets.min() <= targets.max() < classes:
            raise ValueError(f"targets are no numbers of {classes} classes")
        k, temperature = int(parameters["k"]), float(parameters["temperature"])
        return cls(rows, targets, classes, k, temperature)


@dataclass(frozen=True)
class GaussianBayes:
    """Normal features, independent given the class.

    ``means`` and ``variances`` are (K, width), ``priors`` (K,).
    """

    means: np.ndarray
    variances: np.ndarray
    priors: np.ndarray

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        """See ``Predictor``."""
        with np.errstate(divide="ignore"):  # a prior of 0: never
            logits = np.log(self.priors) - np.log(self.variances).sum(axis=1) / 2
        logits = np.tile(logits, (len(x), 1))
        for k, (mean, variance) in enumerate(
            zip(self.means, self.variances, strict=True)
        ):
            logits[:, k] -= ((x - mean) ** 2 / variance).sum(axis=1) / 2
        return softmax(logits, axis=1)

    def tensors(self) -> dict[str, np.ndarray]:
        """See ``Predictor``."""
        return {
            "means": self.means,
            "variances": self.variances,
            "priors": self.priors,
        }

    @classmethod
    def of_tensors(cls, tensors: Tensors, classes: int, parameters: Parameters) -> Self:  # noqa: ARG003
        """See ``Predictor``."""
        shape = (classes, tensors["means"].shape[1])
        _check(tensors, means=shape, variances=shape, priors=(classes,))
        return cls(tensors["means"], tensors["variances"], tensors["priors"])


@dataclass(frozen=True)
class Prior:
    """The ``shares`` (K,) of the training rows, whatever the row."""

    shares: np.ndarray

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        """See ``Predictor``."""
        return np.tile(self.shares, (len(x), 1))

    def tensors(self) -> dict[str, np.ndarray]:
        """See ``Predictor``."""
        return {"shares": self.shares}

    @classmethod
    def of_tensors(cls, tensors: Tensors, classes: int, parameters: Parameters) -> Self:  # noqa: ARG003
        """See ``Predictor``."""
        _check(tensors, shares=(classes,))
        return cls(tensors["shares"])


@dataclass(frozen=True)
class KernelMachine:
    """A support vector machine with a Gaussian kernel, one class against each other.

    ``vectors`` (m, width) are its support vectors, those of one class together,
    ``counts`` (K,) how many of each. ``dual`` (K - 1, m) and ``intercept``
    (K (K - 1) / 2,) are libsvm's, as scikit-learn's ``SVC`` names them; the kernel is
    exp(-``gamma`` distance^2), the softmax of the decisions times
    ``inverse_temperature``.
    """

    vectors: np.ndarray
    counts: np.ndarray
    dual: np.ndarray
    intercept: np.ndarray
    gamma: float
    inverse_temperature: float

    def decisions(self, x: np.ndarray) -> np.ndarray:
        """Scores (n, K), or (n,) of two classes, positive for the second."""
        step = max(1, PRODUCTS // len(self.vectors))
        parts = [x[at : at + step] for at in range(0, len(x), step)]
        return np.concatenate([self._decisions(part) for part in parts])

    def _decisions(self, x: np.ndarray) -> np.ndarray:
        kernel = self._kernel(x.astype(np.float64))
        if len(self.counts) == 2:
            return kernel @ self.dual[0] + self.intercept[0]
        ends = np.cumsum([0, *self.counts])
        own = [slice(*ends[k : k + 2]) for k in range(len(self.counts))]
        votes, sums = np.zeros((2, len(x), len(own)))
        pairs = [(i, j) for i in range(len(own)) for j in range(i + 1, len(own))]
        for (i, j), free in zip(pairs, self.intercept, strict=True):
            score = kernel[:, own[i]] @ self.dual[j - 1, own[i]]
            score += kernel[:, own[j]] @ self.dual[i, own[j]] + free
            sums[:, i] += score
            sums[:, j] -= score
            votes[:, i] += score >= 0
            votes[:, j] += score < 0
        # sums decide between equal votes only, as in scikit-learn
        return votes + sums / (3 * (np.abs(sums) + 1))

    def _kernel(self, x: np.ndarray) -> np.ndarray:
        square = (x**2).sum(axis=1)[:, None] + (self.vectors**2).sum(axis=1)
        return np.exp(-self.gamma * (square - 2 * x @ self.vectors.T).clip(0))

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        """See ``Predictor``."""
        return probabilities(self.decisions(x), self.inverse_temperature)

    def tensors(self) -> dict[str, np.ndarray]:
        """See ``Predictor``."""
        return {
            "vectors": self.vectors,
            "counts": self.counts,
            "dual": self.dual,
            "intercept": self.intercept,
            "gamma": np.array([self.gamma]),
            "inverse_temperature": np.array([self.inverse_temperature]),
        }

    @classmethod
    def of_tensors(cls, tensors: Tensors, classes: int, parameters: Parameters) -> Self:  # noqa: ARG003
        """See ``Predictor``."""
        number = len(tensors["vectors"])
        _check(
            tensors,
            counts=(classes,),
            dual=(classes - 1, number),
            intercept=(classes * (classes - 1) // 2,),
        )
        if tensors["counts"].min() < 0 or tensors["counts"].sum() != number:
            raise ValueError(f"counts do not add up to {number} support vectors")
        return cls(
            *(tensors[name] for name in ("vectors", "counts", "dual", "intercept")),
            gamma=tensors["gamma"].item(),
            inverse_temperature=tensors["inverse_temperature"].item(),
        )


def unit_rows(x: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row of zeros, which has no direction, stays as it is."""
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(lengths > 0, lengths, 1)


def _check(tensors: Tensors, **shapes: tuple[int, ...]) -> None:
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise ValueError(f"{name} has the shape {tensors[name].shape}, not {shape}")
