"""Neural heads that are scikit-learn classifiers: softmax, mlp and cosine."""

from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
import torch
from sklearn.model_selection import StratifiedShuffleSplit

from tl_pipeline.embedding.devices import devices, exact_float32
from tl_pipeline.heads.estimators import NumericHead, balanced
from tl_pipeline.heads.linear.design_matrix import moments
from tl_pipeline.heads.neural.layers import Network, initialise
from tl_pipeline.heads.neural.predictor import (
    NeuralPredictor,
    filled,
    network_of,
    standardised,
)
from tl_pipeline.heads.neural.training import Course, Examples, train
from tl_pipeline.heads.threads import single_threaded


class NeuralHead(NumericHead):
    """Standardise, hidden ReLU layers, dropout, softmax; trained by small steps.

    A tenth of the rows given to ``fit``, stratified, is held out to stop early; the
    weights of its best epoch are kept. The row of a class of one row is never held out;
    with too few rows, all are trained on for ``max_epochs``. Rows are held out one by
    one also where they come in groups: on GTSRB's tracks to hold out whole ones cost 2
    to 12 points of accuracy, since fewer were left to learn from. Sample weights
    multiply the losses of their rows, held out or not, and count in the mean and
    deviation to standardise by. Trained on a GPU where there is one; it predicts on the
    processor.

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

    dtypes: ClassVar[Any] = np.float32

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
        x, targets, weights, _ = self.training_set(X, y, sample_weight)
        features = self._features(x)
        self.mean_ = np.zeros(features.shape[1], np.float32)
        self.scale_ = np.ones(features.shape[1], np.float32)
        if self.standardise:
            repeated = np.repeat(weights, len(features) // len(x))
            mean, scale = moments(features, repeated)
            self.mean_, self.scale_ = mean.astype("f4"), scale.astype("f4")
        factors = balanced(targets, weights, self.class_weight)
        factors = (factors / factors.mean()).astype(np.float32)
        self._train(self._rows(x), targets, factors)
        return self

    def predictor(self) -> NeuralPredictor:
        """What was learned, in numbers."""
        layers = filled(self._network(), self.tensors_)
        count = len(self.classes_)
        return NeuralPredictor(layers, self.tensors_, self.mean_, self.scale_, count)

    def _features(self, x: np.ndarray) -> np.ndarray:
        """What of ``x`` has one mean and deviation in each column."""
        return x

    def _rows(self, x: np.ndarray) -> np.ndarray:
        """``x`` as the layers take it."""
        return standardised(x, self.mean_, self.scale_)

    def _network(self) -> Network:
        parameters = {
            "hidden": self.hidden,
            "batch_norm": self.batch_norm,
            **({"sharpness": self.sharpness} if self.cosine else {}),
        }
        return network_of(parameters, len(self.mean_), len(self.classes_))

    def _train(
        self, rows: np.ndarray, targets: np.ndarray, factors: np.ndarray
    ) -> None:
        (device, *_) = devices()
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
        with exact_float32(device):
            self.n_epochs_ = single_threaded(work)
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
        """The numbers of rows to train on, and of those to stop by."""
        counts = np.bincount(targets)
        single = counts[targets] == 1
        rows, classes = np.flatnonzero(~single), int((counts > 1).sum())
        size = max(len(rows) // 10, classes)
        if classes < 2 or len(rows) - size < 2 * classes:
            return np.arange(len(targets)), np.arange(0)
        split = StratifiedShuffleSplit(
            1, test_size=size, random_state=self.random_state
        )
        kept, held = next(split.split(np.zeros((len(rows), 1)), targets[rows]))
        return np.concatenate([rows[kept], np.flatnonzero(single)]), rows[held]


def softmax(**params: Any) -> NeuralHead:
    """One softmax layer: multinomial logistic regression, stopped early."""
    return NeuralHead(hidden=0, dropout=0.0, **params)


def cosine(**params: Any) -> NeuralHead:
    """One layer of class directions; see ``layers.Cosine``."""
    return NeuralHead(hidden=0, dropout=0.0, cosine=True, **params)
