"""Neural heads that are scikit-learn classifiers: softmax, mlp and cosine."""

from functools import partial
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    _check_sample_weight,
    check_is_fitted,
    validate_data,
)

from tl_pipeline.embedding.devices import devices, exact_float32
from tl_pipeline.heads.linear.design_matrix import BLOCK, moments
from tl_pipeline.heads.linear.logistic import balance, counted
from tl_pipeline.heads.neural.layers import Network, initialise, network
from tl_pipeline.heads.neural.training import Course, Examples, train
from tl_pipeline.heads.threads import alone


class NeuralHead(ClassifierMixin, BaseEstimator):
    """Standardise, hidden ReLU layers, dropout, softmax; trained by small steps.

    A tenth of the rows given to ``fit``, stratified, is held out to stop early; the
    weights of its best epoch are kept. With too few rows for that, or a class of one
    row, all rows are trained on for ``max_epochs``. Rows are held out one by one also
    where they come in groups: on GTSRB's tracks to hold out whole ones cost 2 to 12
    points of accuracy, since fewer were left to learn from. Sample weights multiply the
    losses of their rows, held out or not, and count in the mean and spread to
    standardise by. Trained on a GPU where there is one; it predicts on the processor.

    Args:
        hidden: units of the hidden layer, or of several, as in ``512x256``; 0 for none.
        dropout: fraction of hidden units dropped in training (Srivastava et al. 2014).
        learning_rate: of the optimiser.
        weight_decay: decoupled with adamw (Loshchilov & Hutter 2019), else an L2 term.
        max_epochs: passes over the rows at most.
        patience: epochs without a better held-out loss before stopping.
        stop_by: which held-out loss: as it is, or refined, which is what is left of it
            after the best temperature. It rises later: networks become too sure before
            they become worse (Berta et al. 2025, "Rethinking Early Stopping: Refine,
            Then Calibrate").
        batch_size: rows per step.
        optimiser: adamw, adam (Kingma & Ba 2015), or sgd with momentum 0.9.
        schedule: of the learning rate: constant, cosine or step; see ``Course.rate``.
        label_smoothing: share of the target that all classes get alike.
        mixup: both parameters of the beta distribution of ``training.mixed``; 0: none.
        batch_norm: whether to standardise what goes into each ReLU.
        class_weight: none, or balanced as in scikit-learn.
        cosine: whether the last layer compares directions only; see ``layers.Cosine``.
        sharpness: factor on its cosines, or learned.
        standardise: whether to; else the features are taken as they are.
        random_state: seed of the weights, the held-out rows, batches and dropout.

    Attributes:
        mean_: (width,), taken off the features first.
        scale_: (width,), by which they are divided then.
        tensors_: weights by the names of their layers.
        n_epochs_: epochs trained.
    """

    def __init__(
        self,
        hidden: int | str = 256,
        dropout: float = 0.5,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-4,
        max_epochs: int = 200,
        patience: int = 20,
        batch_size: int = 256,
        *,
        stop_by: str = "loss",
        optimiser: str = "adamw",
        schedule: str = "constant",
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        batch_norm: bool = False,
        class_weight: str = "none",
        cosine: bool = False,
        sharpness: float | str = "learned",
        standardise: bool = True,
        random_state: int = 0,
    ) -> None:
        self.hidden = hidden
        self.dropout = dropout
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.max_epochs = max_epochs
        self.patience = patience
        self.batch_size = batch_size
        self.stop_by = stop_by
        self.optimiser = optimiser
        self.schedule = schedule
        self.label_smoothing = label_smoothing
        self.mixup = mixup
        self.batch_norm = batch_norm
        self.class_weight = class_weight
        self.cosine = cosine
        self.sharpness = sharpness
        self.standardise = standardise
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:  # noqa: N803
        """Learn from ``X`` of shape (n, width) and the labels ``y`` of shape (n,).

        ``sample_weight`` of shape (n,) is not negative; only its ratios matter. A row
        of weight 0 is as good as not there.

        Raises:
            ValueError: fewer than two classes.
            InvalidSpec: training diverged; see ``training.train``.
        """
        X, y = validate_data(self, X, y, dtype=np.float32)  # noqa: N806
        check_classification_targets(y)
        weights = _check_sample_weight(
            sample_weight, X, dtype=np.float64, ensure_non_negative=True
        )
        X, y, weights = counted(X, y, weights)  # noqa: N806
        self.classes_, targets = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"NeuralHead needs at least two classes; got {len(self.classes_)} class"
            )
        self.mean_ = np.zeros(X.shape[1], np.float32)
        self.scale_ = np.ones(X.shape[1], np.float32)
        if self.standardise:
            mean, scale = moments(X, weights)
            self.mean_, self.scale_ = mean.astype("f4"), scale.astype("f4")
        factors = balance(y, weights, self.class_weight)
        factors = (factors / factors.mean()).astype(np.float32)
        self._train(self._standardised(X), targets, factors)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """Class probabilities: float32 of shape (n, n_classes)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float32, reset=False)  # noqa: N806
        layers = self._network().eval()
        layers.load_state_dict(_torch(self.tensors_))
        found = np.empty((len(X), len(self.classes_)), np.float32)
        with torch.inference_mode():
            for first in range(0, len(X), BLOCK):
                rows = torch.from_numpy(self._standardised(X[first : first + BLOCK]))
                found[first : first + BLOCK] = layers(rows).softmax(dim=1).numpy()
        return found

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """The most probable class of each row of ``X``."""
        # before indexing classes_, so that an unfitted head says that it is unfitted
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(axis=1)]

    def tensors(self) -> dict[str, np.ndarray]:
        """All that was learned, by name: what ``from_tensors`` needs."""
        return {**self.tensors_, "mean": self.mean_, "scale": self.scale_}

    def from_tensors(self, tensors: dict[str, np.ndarray], classes: list[str]) -> Self:
        """Become the fitted head whose ``tensors`` these are.

        Raises:
            RuntimeError: their names or shapes are not those of this head.
        """
        self.classes_ = np.array(classes)
        self.tensors_ = dict(tensors)
        self.mean_, self.scale_ = self.tensors_.pop("mean"), self.tensors_.pop("scale")
        self.n_features_in_ = len(self.mean_)
        self._network().load_state_dict(_torch(self.tensors_))
        return self

    def _network(self) -> Network:
        hidden = [int(units) for units in str(self.hidden).split("x")]
        return network(
            self.n_features_in_,
            [units for units in hidden if units],
            len(self.classes_),
            batch_norm=self.batch_norm,
            cosine=self.cosine,
            sharpness=None if self.sharpness == "learned" else float(self.sharpness),
        )

    def _standardised(self, X: np.ndarray) -> np.ndarray:  # noqa: N803
        if not self.standardise:
            return X
        rows = X - self.mean_
        rows /= self.scale_
        return rows

    def _train(
        self, rows: np.ndarray, targets: np.ndarray, factors: np.ndarray
    ) -> None:
        (device, *_) = devices()
        if device.type != "cpu":
            exact_float32()
        # A generator of our own: heads may be trained in several threads at once.
        chance = torch.Generator().manual_seed(self.random_state)
        layers = self._network()
        initialise(layers, chance)
        layers.to(device)
        examples = Examples(
            torch.from_numpy(rows).to(device),
            torch.from_numpy(targets).to(device),
            None if (factors == 1).all() else torch.from_numpy(factors).to(device),
        )
        kept, held = (torch.from_numpy(part) for part in self._hold_out(targets))
        course = self._course()
        work = partial(train, layers, course, examples, kept, held, chance)
        self.n_epochs_ = alone(work)
        learned = layers.state_dict().items()
        self.tensors_ = {name: value.cpu().numpy() for name, value in learned}

    def _course(self) -> Course:
        return Course(
            optimiser=self.optimiser,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            schedule=self.schedule,
            max_epochs=self.max_epochs,
            patience=self.patience,
            refined=self.stop_by == "refined",
            batch_size=self.batch_size,
            dropout=self.dropout,
            label_smoothing=self.label_smoothing,
            mixup=self.mixup,
            seed=self.random_state,
        )

    def _hold_out(self, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows, classes = len(targets), len(self.classes_)
        size = max(rows // 10, classes)
        if rows - size < 2 * classes or np.bincount(targets).min() < 2:
            return np.arange(rows), np.arange(0)
        split = StratifiedShuffleSplit(
            1, test_size=size, random_state=self.random_state
        )
        return next(split.split(np.zeros((rows, 1)), targets))


def softmax(**params: Any) -> NeuralHead:
    """One softmax layer: multinomial logistic regression, stopped early."""
    return NeuralHead(hidden=0, dropout=0.0, **params)


def cosine(**params: Any) -> NeuralHead:
    """One layer of class directions; see ``layers.Cosine``."""
    return NeuralHead(hidden=0, dropout=0.0, cosine=True, **params)


def _torch(tensors: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in tensors.items()}
