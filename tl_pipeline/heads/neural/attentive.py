"""A head that attends to places: of a map, of the cells of a grid, or tokens."""

from dataclasses import replace
from typing import Any

import numpy as np

from tl_pipeline.errors import InvalidSpec
from tl_pipeline.heads.neural.classifiers import NeuralHead
from tl_pipeline.heads.neural.layers import Network
from tl_pipeline.heads.neural.predictor import NeuralPredictor, network_of, placed
from tl_pipeline.store.embeddings import Places


class AttentiveHead(NeuralHead):
    """Standardise channels, attend to places by learned queries, softmax.

    Efficient probing: Psomas et al., "Attention, Please! Revisiting Attentive Probing
    Through the Lens of Efficiency", ICLR 2026, the section on EP: multi-query
    cross-attention without a projection of keys or queries, see ``layers.Attention``.
    Class tokens, which ``pool=tokens`` keeps before the places, are attended to like
    these; the authors do so where a network was trained to use its class token.
    Channels are standardised over all places of all rows. Early stopping, the grouping
    of rows and the other parameters are those of ``NeuralHead``.

    Args:
        places: how a row holds its places; None: it is one.
        queries: how many are learned.
        values: numbers that a query takes from the places, of all queries together; a
            multiple of ``queries``.
        dropout: fraction of these numbers dropped in training.
        learning_rate: see ``NeuralHead``; and so are all the others.

    Attributes:
        mean_: (channels,), taken off the features first.
        scale_: (channels,), by which they are divided then.
        tensors_: weights by the names of their layers.
        n_epochs_: epochs trained.
    """

    def __init__(
        self,
        places: Places | None = None,
        queries: int = 8,
        values: int = 128,
        *,
        dropout: float = 0.5,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-4,
        max_epochs: int = 200,
        patience: int = 20,
        batch_size: int = 256,
        stop_by: str = "loss",
        optimiser: str = "adamw",
        schedule: str = "constant",
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        class_weight: str = "none",
        random_state: int = 0,
    ) -> None:
        super().__init__(
            dropout=dropout,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            max_epochs=max_epochs,
            patience=patience,
            batch_size=batch_size,
            stop_by=stop_by,
            optimiser=optimiser,
            schedule=schedule,
            label_smoothing=label_smoothing,
            mixup=mixup,
            class_weight=class_weight,
            random_state=random_state,
        )
        self.places = places
        self.queries = queries
        self.values = values

    def predictor(self) -> NeuralPredictor:
        """What was learned, in numbers."""
        return replace(super().predictor(), places=self._places)

    @property
    def _places(self) -> Places:
        return self.places or Places(1)

    def _features(self, x: np.ndarray) -> np.ndarray:
        """Every place of every row of ``x``, (n * places, channels)."""
        places = self._places.of(x)
        return places.reshape(-1, places.shape[2])

    def _rows(self, x: np.ndarray) -> np.ndarray:
        return placed(x, self.mean_, self.scale_, self._places)

    def _network(self) -> Network:
        return network_of(
            {"queries": self.queries, "values": self.values},
            len(self.mean_),
            len(self.classes_),
        )


def attentive(places: Places | None = None, **params: Any) -> AttentiveHead:
    """A head for embeddings with these ``places``.

    Raises:
        InvalidSpec: they have none.
    """
    if places is None:
        raise InvalidSpec(
            "head 'attentive' attends to places, and these embeddings are one vector "
            "an image; embed with pool=tokens, pool=grid2 or pool=grid3"
        )
    return AttentiveHead(places, **params)
