"""Several heads as one: which of them, and the mean of their class probabilities.

Everything comes from the predictions that evaluations stored; no head is asked again.
Heads of different encoders may know different classes and have scored different images,
so classes meet by name and rows by image id.
"""

# pyarrow.compute is filled when it is imported.
# pyright: reportAttributeAccessIssue=false

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# Of greedy selection; later ones would change weights by less than a fiftieth.
ROUNDS = 50
# Images at a time, so that memory stays bounded.
_STEP = 1024


@dataclass(frozen=True, eq=False)
class Predictions:
    """What one head predicts of the images of one split, sorted by ``image_ids`` (n,).

    ``labels`` (n,) are the true ones; ``probabilities`` is float32 of shape
    (n, n_classes), its columns in the order of ``classes``.
    """

    image_ids: pa.Array
    labels: pa.Array
    classes: list[str]
    probabilities: np.ndarray

    @classmethod
    def of_table(cls, rows: pa.Table, classes: list[str]) -> Self:
        """Those in the columns ``image_id``, ``label``, ``probabilities`` of ``rows``.

        ``rows`` are sorted by image id.
        """
        flat = rows["probabilities"].combine_chunks().flatten().to_numpy()
        return cls(
            rows["image_id"].combine_chunks(),
            rows["label"].combine_chunks(),
            classes,
            flat.reshape(len(rows), len(classes)),
        )

    def column(self) -> pa.Array:
        """The probabilities as a column of lists, (n,)."""
        ends = np.arange(len(self.image_ids) + 1) * len(self.classes)
        flat = pa.array(np.ascontiguousarray(self.probabilities).ravel())
        return pa.ListArray.from_arrays(pa.array(ends.astype(np.int32)), flat)

    def of(self, image_ids: pa.Array) -> "Predictions":
        """Of ``image_ids`` alone, which are sorted and all among these."""
        if len(image_ids) == len(self.image_ids):
            return self
        at = pc.index_in(image_ids, value_set=self.image_ids)
        rows = self.probabilities[at.to_numpy()]
        return Predictions(image_ids, self.labels.take(at), self.classes, rows)

    def naming(self, classes: list[str]) -> "Predictions":
        """The same with a column for each of ``classes``, which hold its own."""
        columns = aligned(self.probabilities, self.classes, classes)
        return Predictions(self.image_ids, self.labels, classes, columns)

    def names(self) -> np.ndarray:
        """The true labels as text (n,)."""
        return np.array(self.labels.to_pylist(), dtype=np.str_)

    def targets(self) -> np.ndarray:
        """The column of each image's label (n,); -1 for one that is no class."""
        classes = pa.array(self.classes, pa.string())
        return pc.index_in(self.labels, value_set=classes).fill_null(-1).to_numpy()

    def of_truth(self) -> np.ndarray:
        """The probability of each image's true class, (n,); 0 of an unknown one."""
        columns = self.targets()
        found = self.probabilities[np.arange(len(columns)), columns]
        return np.where(columns < 0, 0, found)


@dataclass(frozen=True)
class Products:
    """All that the squared error of an ensemble depends on, summed over ``rows``.

    ``agreement``, float64 (n_heads, n_heads), are the products of the probabilities of
    two heads, summed over classes; ``hit`` (n_heads,) those of the true class.
    """

    rows: int
    agreement: np.ndarray
    hit: np.ndarray

    def plus(self, other: "Products") -> "Products":
        """Of the rows of both."""
        return Products(
            self.rows + other.rows,
            self.agreement + other.agreement,
            self.hit + other.hit,
        )


def aligned(
    probabilities: np.ndarray, classes: Sequence[str], wanted: Sequence[str]
) -> np.ndarray:
    """``probabilities`` (n, k) with a column for each class that is ``wanted``.

    A class that the head does not know has the probability 0.
    """
    if list(classes) == list(wanted):
        return probabilities
    found = np.zeros((len(probabilities), len(wanted)), probabilities.dtype)
    place = {name: column for column, name in enumerate(wanted)}
    found[:, [place[name] for name in classes]] = probabilities
    return found


def shared(predictions: Sequence[Predictions]) -> pa.Array:
    """The images that all of ``predictions`` are about, sorted."""
    ids = predictions[0].image_ids
    for one in predictions[1:]:
        ids = ids.filter(pc.is_in(ids, value_set=one.image_ids))
    return ids


def averaged(predictions: Sequence[Predictions], times: Sequence[int]) -> Predictions:
    """The mean over heads, the i-th counted ``times[i]``, for images they all scored.

    Its classes are those that some head knows, in the order of their names.
    """
    ids = shared(predictions)
    classes = sorted({name for one in predictions for name in one.classes})
    total = np.zeros((len(ids), len(classes)), np.float32)
    for one, weight in zip(predictions, times, strict=True):
        if weight:
            total += weight * aligned(one.of(ids).probabilities, one.classes, classes)
    return Predictions(ids, predictions[0].of(ids).labels, classes, total / sum(times))


def greedy(predictions: Sequence[Predictions]) -> list[int]:
    """How often each head counts in the ensemble that these images choose.

    See ``chosen``; images that not all of them scored have no say.
    """
    ids = shared(predictions)
    return chosen(products([one.of(ids) for one in predictions]))


def chosen(seen: Products, rounds: int = ROUNDS) -> list[int]:
    """How often each head counts in an ensemble that is put together step by step.

    Ensemble selection with replacement (Caruana, Niculescu-Mizil, Crew & Ksikes 2004,
    ICML, sections 2 and 2.1): begin with the best head, add in each round the one that
    makes the mean of probabilities best, and keep the rounds up to the best mean.

    What is best is the squared error of the probabilities (Brier score). Accuracy
    hardly tells ensembles apart on few images, log loss fears the sure more than the
    wrong. With it test accuracy was highest over three datasets, and never much below
    that of the best head alone.
    """
    agreement, hit = seen.agreement / seen.rows, seen.hit / seen.rows
    heads = len(hit)
    times = np.zeros(heads)
    order: list[int] = []
    errors: list[float] = []
    for size in range(1, rounds + 1):
        # |mean - truth|^2 = |mean|^2 - 2 mean.truth + 1, with each head once more
        square = times @ agreement @ times + 2 * agreement @ times
        square += np.diagonal(agreement)
        tried = square / size**2 - 2 * (times @ hit + hit) / size + 1
        best = int(tried.argmin())
        times[best] += 1
        order.append(best)
        errors.append(float(tried[best]))
    # Rounds that differ by rounding alone are equal, and the first of them is simplest.
    last = int(np.argmax(np.array(errors) <= min(errors) + 1e-12))
    kept = order[: last + 1]
    return np.bincount(kept, minlength=heads).tolist()


def products(predictions: Sequence[Predictions]) -> Products:
    """Those of ``predictions``, which are about the same images."""
    images = len(predictions[0].image_ids)
    classes = sorted({name for one in predictions for name in one.classes})
    agreement = np.zeros((len(predictions), len(predictions)))
    for start in range(0, images, _STEP):
        rows = [
            aligned(one.probabilities[start : start + _STEP], one.classes, classes)
            for one in predictions
        ]
        flat = np.stack(rows).reshape(len(predictions), -1).astype(np.float64)
        agreement += flat @ flat.T
    hit = np.array([one.of_truth().sum(dtype=np.float64) for one in predictions])
    return Products(images, agreement, hit)
