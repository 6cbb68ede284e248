"""What a classifier says of some rows, beside their labels: what all scores are of.

What several of them need is computed once.
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from tl_pipeline.evaluation.costs import Costs
from tl_pipeline.evaluation.one_vs_rest import Ranks, ranks


@dataclass(frozen=True, eq=False)
class PredictedRows:
    """Rows with their labels and probabilities.

    ``labels`` are names (n,), ``probabilities`` (n, n_classes) with columns in the
    order of ``classes``. A label may be none of them: the classifier cannot name it.
    ``units`` (n,) are equal for rows that belong together, such as images of one group.
    ``costs`` tell which errors are worse than others.
    """

    labels: np.ndarray
    classes: list[str]
    probabilities: np.ndarray
    units: np.ndarray
    costs: Costs = field(default_factory=dict)

    @cached_property
    def _numbered(self) -> tuple[list[str], np.ndarray]:
        found, number = np.unique(self.labels, return_inverse=True)
        place = {name: at for at, name in enumerate(self.classes)}
        names = [*self.classes, *(n for n in found.tolist() if n not in place)]
        place = {name: at for at, name in enumerate(names)}
        return names, np.array([place[name] for name in found.tolist()], int)[number]

    @property
    def names(self) -> list[str]:
        """The classes, then the labels that are none of them."""
        return self._numbered[0]

    @property
    def truth(self) -> np.ndarray:
        """The number of each label among ``names``, (n,)."""
        return self._numbered[1]

    @cached_property
    def predicted(self) -> np.ndarray:
        """The number of the most probable class, (n,)."""
        return self.probabilities.argmax(axis=1)

    @cached_property
    def right(self) -> np.ndarray:
        """Whether each prediction is right, bool (n,)."""
        return self.truth == self.predicted

    @cached_property
    def known(self) -> np.ndarray:
        """Whether each label is among the classes, bool (n,)."""
        return self.truth < len(self.classes)

    @cached_property
    def of_truth(self) -> np.ndarray:
        """The probability of each label, float64 (n,); 0 of one that is no class."""
        found = np.zeros(len(self.truth))
        at = np.flatnonzero(self.known)
        found[at] = self.probabilities[at, self.truth[at]]
        return found

    @cached_property
    def unit(self) -> np.ndarray:
        """The number of each row's unit, (n,)."""
        return np.unique(self.units, return_inverse=True)[1]

    @property
    def grouped(self) -> bool:
        """Whether some unit has several rows."""
        return int(self.unit.max(initial=0)) + 1 < len(self.unit)

    @cached_property
    def ranks(self) -> Ranks:
        """How well the probabilities of each class rank its rows."""
        return ranks(self.truth, self.probabilities, self.unit)
