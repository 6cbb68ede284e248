"""A neural head that is a scikit-learn classifier."""

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
from torch import nn
from torch.nn import functional


class MLPHead(ClassifierMixin, BaseEstimator):
    """Standardise, one hidden ReLU layer, dropout, softmax; trained with AdamW.

    A tenth of the rows given to ``fit``, stratified, is held out to stop early; the
    weights of its best epoch are kept. With too few rows for that, or a class of one
    row, all rows are trained on for ``max_epochs``. Sample weights multiply the losses
    of their rows, held out or not, and count in the mean and spread to standardise by.

    Args:
        hidden: units of the hidden layer.
        dropout: fraction of hidden units dropped in training (Srivastava et al. 2014).
        learning_rate: of AdamW (Loshchilov & Hutter 2019).
        weight_decay: of AdamW.
        max_epochs: passes over the rows at most.
        patience: epochs without a better held-out loss before stopping.
        batch_size: rows per step.
        random_state: seed of the weights, the held-out rows, batches and dropout.
    """

    def __init__(
        self,
        hidden: int = 256,
        dropout: float = 0.5,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-4,
        max_epochs: int = 200,
        patience: int = 20,
        batch_size: int = 256,
        random_state: int = 0,
    ) -> None:
        self.hidden = hidden
        self.dropout = dropout
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.max_epochs = max_epochs
        self.patience = patience
        self.batch_size = batch_size
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:  # noqa: N803
        """Learn from ``X`` of shape (n, width) and the labels ``y`` of shape (n,).

        ``sample_weight`` of shape (n,) is not negative; only its ratios matter. A row
        of weight 0 is as good as not there.
        """
        X, y = validate_data(self, X, y, dtype=np.float32)  # noqa: N806
        check_classification_targets(y)
        weights = None
        if sample_weight is not None:
            weights = _check_sample_weight(
                sample_weight, X, dtype=np.float64, ensure_non_negative=True
            )
            there = weights > 0
            X, y, weights = X[there], y[there], weights[there]  # noqa: N806
        self.classes_, targets = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"MLPHead needs at least two classes; got {len(self.classes_)} class"
            )
        # A generator of our own: heads may be trained in several threads at once.
        chance = torch.Generator().manual_seed(self.random_state)
        self.network_ = _network(X.shape[1], self.hidden, len(self.classes_))
        _initialise(self.network_, chance)
        mean, spread = _moments(X, weights)
        self.mean_ = mean.astype(np.float32)
        spread = spread.astype(np.float32)
        self.scale_ = np.where(spread > 0, spread, 1).astype(np.float32)
        factors = None
        if weights is not None:
            factors = torch.from_numpy((weights / weights.mean()).astype(np.float32))
        self._train(self._standardised(X), torch.from_numpy(targets), factors, chance)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """Class probabilities: float32 of shape (n, n_classes)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float32, reset=False)  # noqa: N806
        with torch.inference_mode():
            return self.network_(self._standardised(X)).softmax(dim=1).numpy()

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """The most probable class of each row of ``X``."""
        # before indexing classes_, so that an unfitted head says that it is unfitted
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(axis=1)]

    def tensors(self) -> dict[str, np.ndarray]:
        """All that was learned, by name: what ``from_tensors`` needs."""
        learned = {k: v.numpy() for k, v in self.network_.state_dict().items()}
        return {**learned, "mean": self.mean_, "scale": self.scale_}

    def from_tensors(self, tensors: dict[str, np.ndarray], classes: list[str]) -> Self:
        """Become the fitted head whose ``tensors`` these are."""
        self.classes_ = np.array(classes)
        self.mean_, self.scale_ = tensors["mean"], tensors["scale"]
        self.n_features_in_ = len(self.mean_)
        self.network_ = _network(self.n_features_in_, self.hidden, len(classes))
        names = self.network_.state_dict()
        self.network_.load_state_dict(
            {name: torch.from_numpy(tensors[name]) for name in names}
        )
        return self

    def _standardised(self, X: np.ndarray) -> torch.Tensor:  # noqa: N803
        return torch.from_numpy((X - self.mean_) / self.scale_)

    def _train(
        self,
        rows: torch.Tensor,
        targets: torch.Tensor,
        factors: torch.Tensor | None,
        chance: torch.Generator,
    ) -> None:
        kept, held = self._hold_out(targets.numpy())
        optimiser = torch.optim.AdamW(
            self.network_.parameters(),
            lr=self.learning_rate,
            weight_decay=self.weight_decay,
        )
        best, best_loss, best_epoch = self._copy(), float("inf"), 0
        for epoch in range(self.max_epochs):
            order = kept[torch.randperm(len(kept), generator=chance)]
            for chosen in order.split(self.batch_size):
                optimiser.zero_grad()
                hidden = self.network_[0](rows[chosen])
                logits = self.network_[1](_dropped(hidden, self.dropout, chance))
                _loss(logits, targets, factors, chosen).backward()
                optimiser.step()
            self.n_epochs_ = epoch + 1
            if not len(held):
                continue
            with torch.inference_mode():
                logits = self.network_(rows[held])
                loss = _loss(logits, targets, factors, held).item()
            if loss < best_loss:
                best, best_loss, best_epoch = self._copy(), loss, epoch
            elif epoch - best_epoch >= self.patience:
                break
        if len(held):
            self.network_.load_state_dict(best)

    def _hold_out(self, targets: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        rows, classes = len(targets), len(self.classes_)
        size = max(rows // 10, classes)
        if rows - size < 2 * classes or np.bincount(targets).min() < 2:
            return torch.arange(rows), torch.arange(0)
        split = StratifiedShuffleSplit(
            1, test_size=size, random_state=self.random_state
        )
        kept, held = next(split.split(np.zeros((rows, 1)), targets))
        return torch.from_numpy(kept), torch.from_numpy(held)

    def _copy(self) -> dict[str, torch.Tensor]:
        return {k: v.clone() for k, v in self.network_.state_dict().items()}


def _loss(
    logits: torch.Tensor,
    targets: torch.Tensor,
    factors: torch.Tensor | None,
    rows: torch.Tensor,
) -> torch.Tensor:
    """Mean cross-entropy of ``rows``, whose ``logits`` these are.

    ``factors`` have mean 1 over all rows, not over these: a batch of light rows makes
    a small step.
    """
    if factors is None:
        return functional.cross_entropy(logits, targets[rows])
    losses = functional.cross_entropy(logits, targets[rows], reduction="none")
    return (losses * factors[rows]).mean()


def _moments(
    rows: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean and standard deviation of each column, in float64."""
    if weights is None:
        return rows.mean(axis=0, dtype=np.float64), rows.std(axis=0, dtype=np.float64)
    shares = weights / weights.sum()
    blocks = range(
        0, len(rows), 4096
    )  # float64 of all rows would take twice their size
    mean = sum(shares[i : i + 4096] @ rows[i : i + 4096].astype("f8") for i in blocks)
    variance = sum(
        shares[i : i + 4096] @ np.square(rows[i : i + 4096] - mean) for i in blocks
    )
    return np.asarray(mean), np.sqrt(variance)


def _network(width: int, hidden: int, classes: int) -> nn.Sequential:
    """Two parts, so that dropout can be put between them in training."""
    # nn.Linear would draw weights, which are replaced, from the global generator
    linear = partial(nn.utils.skip_init, nn.Linear)
    first = nn.Sequential(linear(width, hidden), nn.ReLU())
    return nn.Sequential(first, linear(hidden, classes))


def _initialise(network: nn.Module, chance: torch.Generator) -> None:
    """Draw weights and biases as ``nn.Linear`` does, but from ``chance``."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            bound = layer.in_features**-0.5
            nn.init.uniform_(layer.weight, -bound, bound, generator=chance)
            nn.init.uniform_(layer.bias, -bound, bound, generator=chance)


def _dropped(
    hidden: torch.Tensor, share: float, chance: torch.Generator
) -> torch.Tensor:
    kept = torch.rand(hidden.shape, generator=chance) >= share
    return hidden * kept / (1 - share)
