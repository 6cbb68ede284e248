"""The path of one input from file to prediction, outside any run.

A file is one input: an image, a text in UTF-8, or a vector as .npy. It is decoded once,
prepared once for each way of feeding a network, and goes once through each network that
the model's members need; all of them are in memory at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tl_pipeline.embedding import rounding
from tl_pipeline.embedding.devices import devices
from tl_pipeline.embedding.forward import BATCH, Forward
from tl_pipeline.encoders import concat
from tl_pipeline.encoders.encoder import Encoder, sharing
from tl_pipeline.errors import InvalidSpec
from tl_pipeline.evaluation.averaging import aligned
from tl_pipeline.inputs import modalities
from tl_pipeline.inputs.images import RefusedImage
from tl_pipeline.inputs.modalities import Input
from tl_pipeline.registry.model import Model


@dataclass(frozen=True)
class Prediction:
    """What a model says of one input; ``refused`` tells why it says nothing.

    ``confidence`` is calibrated. ``labels`` are those that it may be, the most probable
    first: the right one is missing at most at the error rate of the model's operating
    point. ``accepted`` tells whether it is sure enough to keep to that rate. Models of
    older versions have neither. ``file`` is None where contents were given.
    """

    file: Path | None
    label: str | None = None
    confidence: float | None = None
    labels: list[str] | None = None
    accepted: bool | None = None
    refused: str | None = None


class Predictor:
    """A model whose networks are loaded, for any number of calls.

    Raises:
        WeightsError: the weights of one of the model's encoders are gone or changed.
    """

    def __init__(self, model: Model) -> None:
        device = devices()[0]
        self._model = model
        self._networks = [Forward(group, device) for group in sharing(model.encoders)]
        self._size = BATCH[device.type]

    def predict(self, inputs: Sequence[Path | bytes]) -> list[Prediction]:
        """Classify files, or contents, in their order; one that is none is refused."""
        found: list[Prediction] = []
        for start in range(0, len(inputs), self._size):
            some = inputs[start : start + self._size]
            found += _batch(self._model, self._networks, some)
        return found

    def probabilities(self, prepared: Sequence[Mapping[Input, Any]]) -> np.ndarray:
        """Calibrated, of inputs as networks are fed with them: float32 (n, n_classes).

        Raises:
            InvalidSpec: one has an embedding that cannot be kept.
        """
        found: list[np.ndarray] = []
        for start in range(0, len(prepared), self._size):
            some = prepared[start : start + self._size]
            vectors, beyond = _embedded(self._networks, some)
            if beyond:
                raise InvalidSpec(next(iter(beyond.values())))
            names = [str(number) for number in range(len(some))]
            said = probabilities(self._model, vectors, names)
            found.append(decide(self._model, said).probabilities)
        return np.concatenate(found)


def predict(model: Model, files: Sequence[Path]) -> list[Prediction]:
    """Classify ``files``; the networks of ``model`` stay loaded for the next call."""
    return model.predictor.predict(files)


def embed(encoder: Encoder, inputs: Sequence[Path | bytes]) -> np.ndarray:
    """The embeddings of files, or contents, as a store keeps them: (n, width).

    Raises:
        InvalidSpec: one cannot be read, is no input, or has an embedding out of range.
        WeightsError: the weights of ``encoder`` are gone or changed.
    """
    network, how = Forward([encoder], devices()[0]), encoder.preprocess
    size = BATCH[network.device.type]
    found: list[np.ndarray] = []
    for start in range(0, len(inputs), size):
        fed = []
        for given in inputs[start : start + size]:
            try:
                fed.append(_prepared(given, [how]))
            except (RefusedImage, OSError) as error:
                name = given if isinstance(given, Path) else "an input"
                raise InvalidSpec(f"{name}: {error}") from None
        vectors, beyond = _embedded([network], fed)
        for row, why in beyond.items():
            raise InvalidSpec(f"{inputs[start + row]}: {why}")
        found.append(vectors[encoder.key])
    return np.concatenate(found)


def probabilities(
    model: Model, vectors: Mapping[str, np.ndarray], names: list[str]
) -> np.ndarray:
    """What ``model`` says before it is calibrated: float32 (n_inputs, n_classes).

    ``vectors`` has the embeddings of the inputs ``names``, by encoder key.
    """
    total = np.zeros((len(names), len(model.classes)), np.float32)
    for member in model.members:
        embeddings = concat.concatenate(member.encoder, vectors, names)
        said = member.head.predict_proba(embeddings)
        if member.operating_point:
            said = member.operating_point.calibration.apply(said)
        total += member.times * aligned(said, member.head.classes, model.classes)
    return total / sum(member.times for member in model.members)


class Decided(NamedTuple):
    """What a model decides on n inputs by its operating point.

    ``probabilities`` are calibrated, float32 (n, n_classes), and ``order`` has the
    classes of each row, the most probable first. ``sets`` (n, n_classes) tells which
    may be right, ``accepted`` (n,) who is sure enough; None in models of older
    versions, which have no operating point.
    """

    probabilities: np.ndarray
    order: np.ndarray
    sets: np.ndarray | None
    accepted: np.ndarray | None

    def labels(self, classes: Sequence[str]) -> list[list[str]] | None:
        """The labels that each input may have, the most probable first."""
        if self.sets is None:
            return None
        pairs = zip(self.order, self.sets, strict=True)
        return [[classes[int(k)] for k in order if held[k]] for order, held in pairs]


def decide(model: Model, probabilities: np.ndarray) -> Decided:
    """What ``probabilities`` (n, n_classes), before calibration, mean."""
    point = model.operating_point
    if point:
        probabilities = point.calibration.apply(probabilities)
    return Decided(
        probabilities,
        np.argsort(-probabilities, axis=1, kind="stable"),
        point.sets(probabilities) if point else None,
        point.accepted(probabilities) if point else None,
    )


def _batch(
    model: Model, networks: Sequence[Forward], inputs: Sequence[Path | bytes]
) -> list[Prediction]:
    ways = list(dict.fromkeys(encoder.preprocess for encoder in model.encoders))
    files = [given if isinstance(given, Path) else None for given in inputs]
    prepared: dict[int, dict[Input, Any]] = {}
    found: dict[int, Prediction] = {}
    for at, given in enumerate(inputs):
        try:
            prepared[at] = _prepared(given, ways)
        except (RefusedImage, OSError) as error:
            found[at] = Prediction(files[at], refused=str(error))
    if prepared:
        vectors, beyond = _embedded(networks, list(prepared.values()))
        numbers = list(prepared)
        for row, why in beyond.items():
            found[numbers[row]] = Prediction(files[numbers[row]], refused=why)
        left = [row for row in range(len(numbers)) if row not in beyond]
        vectors = {key: block[left] for key, block in vectors.items()}
        numbers = [numbers[row] for row in left]
        if numbers:
            said = probabilities(model, vectors, [str(at) for at in numbers])
            named = [files[at] for at in numbers]
            found |= zip(numbers, _said(model, named, said), strict=True)
    return [found[at] for at in range(len(inputs))]


def _embedded(
    networks: Sequence[Forward], prepared: Sequence[Mapping[Input, Any]]
) -> tuple[dict[str, np.ndarray], dict[int, str]]:
    """The embeddings of all inputs by encoder key, as they are kept in a store.

    Besides, why some of them, by number, have one that cannot be kept.
    """
    vectors: dict[str, np.ndarray] = {}
    beyond: dict[int, str] = {}
    for network in networks:
        how = network.encoders[0].preprocess
        blocks = network(modalities.collate([fed[how] for fed in prepared], how))
        for encoder, block in zip(network.encoders, blocks, strict=True):
            kept = rounding.rounded(encoder, block)
            vectors[encoder.key] = kept.vectors
            for row in np.flatnonzero(~kept.fits).tolist():
                beyond[row] = f"{rounding.BEYOND}: {rounding.beyond(block[row])}"
    return vectors, beyond


def _prepared(given: Path | bytes, ways: Sequence[Input]) -> dict[Input, Any]:
    """What networks are fed with, by the way of feeding them.

    Raises:
        RefusedImage: it is none, or too small for one of the ways.
        OSError: it cannot be read.
    """
    modality = modalities.of(ways[0])
    data = given if isinstance(given, bytes) else given.read_bytes()
    decoded = modality.decode(data, ways[0])
    return {how: modality.prepare(decoded, how) for how in ways}


def _said(
    model: Model, files: Sequence[Path | None], probabilities: np.ndarray
) -> list[Prediction]:
    """What ``probabilities`` (n, K), before calibration, mean for ``files``."""
    found = decide(model, probabilities)
    sets = found.labels(model.classes)
    return [
        Prediction(
            file,
            label=model.classes[found.order[i, 0]],
            confidence=float(found.probabilities[i, found.order[i, 0]]),
            labels=None if sets is None else sets[i],
            accepted=None if found.accepted is None else bool(found.accepted[i]),
        )
        for i, file in enumerate(files)
    ]
