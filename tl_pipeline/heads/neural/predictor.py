"""A trained network with the standardisation before it, in numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

from tl_pipeline.heads.linear.design_matrix import BLOCK
from tl_pipeline.heads.neural.layers import Network, attentive_network, network
from tl_pipeline.heads.predictors import Parameters, Tensors
from tl_pipeline.store.embeddings import Places

_APART = ("mean", "scale", "places")  # of the tensors, those of no layer


@dataclass(frozen=True)
class NeuralPredictor:
    """Standardise, the layers, softmax; on the processor.

    ``places`` are those that rows hold, for layers that take them: their channels are
    standardised. ``layers`` are without values of their own: ``weights`` holds them, by
    the names of the layers. ``mean`` and ``scale`` are (width,) of float32, 0 and 1
    where rows are taken as they are.
    """

    layers: Network
    weights: Mapping[str, np.ndarray]
    mean: np.ndarray
    scale: np.ndarray
    classes: int
    places: Places | None = None

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        """See ``Predictor``; float32."""
        layers, x = self.layers.eval(), x.astype(np.float32, copy=False)
        found = np.empty((len(x), self.classes), np.float32)
        with torch.inference_mode():
            for first in range(0, len(x), BLOCK):
                some = x[first : first + BLOCK]
                rows = placed(some, self.mean, self.scale, self.places)
                logits = layers(torch.from_numpy(rows))
                found[first : first + BLOCK] = logits.softmax(dim=1).numpy()
        return found

    def tensors(self) -> dict[str, np.ndarray]:
        """See ``Predictor``."""
        found = {**self.weights, "mean": self.mean, "scale": self.scale}
        if self.places is not None:
            layout = [self.places.count, int(self.places.channels_first)]
            found["places"] = np.array(layout)
        return found

    @classmethod
    def of_tensors(cls, tensors: Tensors, classes: int, parameters: Parameters) -> Self:
        """See ``Predictor``."""
        weights = {k: v for k, v in tensors.items() if k not in _APART}
        layers = network_of(parameters, len(tensors["mean"]), classes)
        mean, scale = tensors["mean"], tensors["scale"]
        places = None
        if "places" in tensors:
            count, channels_first = tensors["places"].tolist()
            places = Places(count, channels_first=bool(channels_first))
        return cls(filled(layers, weights), weights, mean, scale, classes, places)


def network_of(parameters: Parameters, width: int, classes: int) -> Network:
    """The layers without values of a head of these ``parameters``.

    One that has a ``sharpness`` compares directions, one with ``queries`` attends to
    places, of which ``width`` is the channels.
    """
    if "queries" in parameters:
        queries, values = int(parameters["queries"]), int(parameters["values"])
        return attentive_network(width, queries, values, classes)
    hidden = [int(units) for units in str(parameters.get("hidden", 0)).split("x")]
    sharpness = parameters.get("sharpness")
    return network(
        width,
        [units for units in hidden if units],
        classes,
        batch_norm=bool(parameters.get("batch_norm", False)),
        cosine=sharpness is not None,
        sharpness=None if sharpness in (None, "learned") else float(sharpness),
    )


def placed(
    x: np.ndarray, mean: np.ndarray, scale: np.ndarray, places: Places | None
) -> np.ndarray:
    """``x`` (n, width) standardised, as layers take it.

    With ``places`` (n, count, channels), and by channel.
    """
    features = x if places is None else places.of(x)
    return np.ascontiguousarray(standardised(features, mean, scale))


def filled(layers: Network, weights: Mapping[str, np.ndarray]) -> Network:
    """``layers`` with ``weights`` in them.

    Raises:
        RuntimeError: their names or shapes are not those of the layers.
    """
    layers.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()})
    return layers


def standardised(x: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """``x`` (..., width) of float32 less ``mean``, over ``scale``."""
    rows = x - mean
    rows /= scale
    return rows
