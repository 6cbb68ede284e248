"""The table of heads: one visible row each, without scikit-learn and torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tl_pipeline.config.short_forms import Scalar
from tl_pipeline.heads.parameters import LIMITS, PREPARATION

BALANCE: Mapping[str, Scalar] = {"class_weight": "none"}
# of neural heads
STEPS: Mapping[str, Scalar] = {"max_epochs": 200, "patience": 20, "batch_size": 256}
LEARNING: Mapping[str, Scalar] = {
    "stop_by": "loss",
    "optimiser": "adamw",
    "schedule": "constant",
    "mixup": 0.0,
}


@dataclass(frozen=True)
class Head:
    """One family of heads.

    ``factory`` is ``module:function`` below this package, called with the parameters
    and a seed: an unfitted classifier of scikit-learn's kind. ``predictor`` is
    ``module:class``: what it is in numbers once it is fitted. Naming them keeps
    scikit-learn and torch unimported until they are needed. ``options`` are further
    parameters and their defaults; those of ``PREPARATION`` make steps before the head.
    ``limits`` are the least and the greatest value of each parameter that is a number,
    where they are not ``parameters.LIMITS``. A head that ``takes_groups`` holds out
    some of its training rows, whole groups of them; one that ``stops_early`` holds out
    single ones. One that ``takes_places`` is built for embeddings that keep them.
    ``revision`` is part of its key: raise it when the same rows must give
    another head.
    """

    name: str
    summary: str
    factory: str
    predictor: str
    defaults: Mapping[str, Scalar | list[Scalar]]
    limits: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    control: bool = False
    options: Mapping[str, Scalar] = field(default_factory=dict)
    takes_groups: bool = False
    takes_weights: bool = True
    stops_early: bool = False
    takes_places: bool = False
    revision: int = 0

    @property
    def parameters(self) -> dict[str, Scalar | list[Scalar]]:
        """All of them, with their defaults."""
        return {**self.defaults, **self.options}

    def limits_of(self, name: str) -> tuple[float, float] | None:
        """The least and the greatest number for a parameter, if it is a number."""
        return self.limits.get(name, LIMITS.get(name))


HEADS: dict[str, Head] = {
    row.name: row
    for row in (
        Head(
            "logistic",
            "multinomial logistic regression, all values of C at once",
            "linear.logistic:LogisticHead",
            "predictors:Linear",
            {"C": [0.001, 0.01, 0.1, 1.0]},
            options={**PREPARATION, **BALANCE},
        ),
        Head(
            "ridge",
            "least squares with an L2 penalty",
            "ridge:RidgeHead",
            "predictors:Linear",
            {"alpha": [1.0, 10.0, 100.0, 1000.0]},
            options={**PREPARATION, **BALANCE},
        ),
        Head(
            "linear_svm",
            "linear SVM, one class against the rest, by our own solver",
            "support_vectors:LinearSVMHead",
            "predictors:Linear",
            {"C": [1e-4, 1e-3, 1e-2]},
            options={**PREPARATION, **BALANCE},
            takes_groups=True,
            revision=1,  # folds of equal size
        ),
        Head(
            "rbf_svm",
            "SVM with a Gaussian kernel; slow beyond some thousand images",
            "classical:rbf_svm",
            "predictors:KernelMachine",
            {"C": [1.0, 10.0], "gamma": "scale"},
            options={**PREPARATION, **BALANCE},
            takes_groups=True,
            revision=1,  # folds of equal size
        ),
        Head(
            "lda",
            "linear discriminant analysis with a shrunk covariance",
            "discriminant:DiscriminantHead",
            "predictors:Linear",
            {"shrinkage": ["auto", 0.3]},
            options=PREPARATION,
        ),
        Head(
            "nearest_centroid",
            "the class whose mean direction is nearest",
            "cosine:CentroidHead",
            "predictors:Centroids",
            {"whiten": [False, True]},
            options={"l2": False, "scale": "standard", "pca": 0},
        ),
        Head(
            "knn",
            "vote of the nearest training images by cosine, nearer ones count more",
            "cosine:NeighbourHead",
            "predictors:Neighbours",
            {"k": [5, 20], "temperature": 0.07},
            options=PREPARATION,
            takes_weights=False,
        ),
        Head(
            "naive_bayes",
            "normal features, independent in each class",
            "classical:naive_bayes",
            "predictors:GaussianBayes",
            {"smoothing": [1e-9, 0.1]},
            options=PREPARATION,
        ),
        Head(
            "softmax",
            "one softmax layer by small steps, early stopping on a part of train",
            "neural.classifiers:softmax",
            "neural.predictor:NeuralPredictor",
            {
                "learning_rate": 1e-3,
                "weight_decay": 1e-4,
                **STEPS,
                "label_smoothing": 0.1,
            },
            options={**LEARNING, **PREPARATION, **BALANCE},
            stops_early=True,
        ),
        Head(
            "mlp",
            "one hidden layer with dropout, early stopping on a part of train",
            "neural.classifiers:NeuralHead",
            "neural.predictor:NeuralPredictor",
            {
                "hidden": 256,
                "dropout": 0.5,
                "learning_rate": 1e-3,
                "weight_decay": 1e-4,
                **STEPS,
            },
            options={
                "batch_norm": False,
                "label_smoothing": 0.0,
                **LEARNING,
                **PREPARATION,
                **BALANCE,
            },
            stops_early=True,
        ),
        Head(
            "cosine",
            "the learned class direction that is nearest, early stopping likewise",
            "neural.classifiers:cosine",
            "neural.predictor:NeuralPredictor",
            {
                "learning_rate": 3e-3,
                "weight_decay": 1e-4,
                **STEPS,
                "label_smoothing": 0.1,
            },
            options={"sharpness": "learned", **LEARNING, **PREPARATION, **BALANCE},
            stops_early=True,
        ),
        Head(
            "attentive",
            "queries attend to places (pool=tokens, grid2, grid3), stopped early",
            "neural.attentive:attentive",
            "neural.predictor:NeuralPredictor",
            {
                "queries": 8,
                "values": 128,
                "dropout": 0.5,
                "learning_rate": 1e-3,
                "weight_decay": 1e-4,
                **STEPS,
            },
            options={"label_smoothing": 0.0, **LEARNING, **BALANCE},
            stops_early=True,
            takes_places=True,
        ),
        Head(
            "majority",
            "the most frequent class, whatever the image: the floor",
            "classical:majority",
            "predictors:Prior",
            {},
            control=True,
        ),
    )
}
# Of heads in stores of version 0.1 -> today's.
OLDER_NAMES: Mapping[str, str] = {"linear": "logistic"}
