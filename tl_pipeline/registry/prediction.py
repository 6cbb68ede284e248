"""The path of one input from file to prediction, outside any run.

A file is one input: an image, a text in UTF-8, or a vector as .npy. It is decoded once,
prepared once for each way of feeding a network, and goes once through each network that
the model's members need; all of them are in memory at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tl_pipeline.embedding.devices import devices
from tl_pipeline.embedding.engine import sharing
from tl_pipeline.embedding.forward import BATCH, Forward
from tl_pipeline.encoders import concat
from tl_pipeline.evaluation.averaging import aligned
from tl_pipeline.inputs import modalities
from tl_pipeline.inputs.images import RefusedImage
from tl_pipeline.inputs.modalities import Input
from tl_pipeline.registry.index import Model


@dataclass(frozen=True)
class Prediction:
    """What a model says of one file; ``refused`` tells why it says nothing.

    ``confidence`` is calibrated. ``labels`` are those that it may be, the most probable
    first: the right one is missing at most at the error rate of the model's operating
    point. ``accepted`` tells whether it is sure enough to keep to that rate. Models of
    older versions have neither.
    """

    file: Path
    label: str | None = None
    confidence: float | None = None
    labels: list[str] | None = None
    accepted: bool | None = None
    refused: str | None = None


def predict(model: Model, files: Sequence[Path]) -> list[Prediction]:
    """Classify ``files`` in their order; one that is no input is refused alone.

    Raises:
        WeightsError: the weights of one of the model's encoders are gone or changed.
    """
    device = devices()[0]
    networks = [Forward(group, device) for group in sharing(model.encoders)]
    found: list[Prediction] = []
    size = BATCH[device.type]
    for start in range(0, len(files), size):
        found += _batch(model, networks, files[start : start + size])
    return found


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


def _batch(
    model: Model, networks: Sequence[Forward], files: Sequence[Path]
) -> list[Prediction]:
    ways = list(dict.fromkeys(encoder.preprocess for encoder in model.encoders))
    prepared: dict[Path, dict[Input, Any]] = {}
    refused: dict[Path, str] = {}
    for file in files:
        try:
            prepared[file] = _prepared(file, ways)
        except (RefusedImage, OSError) as error:
            refused[file] = str(error)
    said: dict[Path, Prediction] = {}
    if prepared:
        vectors: dict[str, np.ndarray] = {}
        for network in networks:
            how = network.encoders[0].preprocess
            rows = [fed[how] for fed in prepared.values()]
            given = network(modalities.collate(rows, how))
            vectors |= {
                encoder.key: found
                for encoder, found in zip(network.encoders, given, strict=True)
            }
        found = probabilities(model, vectors, [str(file) for file in prepared])
        said = {one.file: one for one in _said(model, list(prepared), found)}
    return [
        Prediction(file, refused=refused[file]) if file in refused else said[file]
        for file in files
    ]


def _prepared(file: Path, ways: Sequence[Input]) -> dict[Input, Any]:
    """What networks are fed with, by the way of feeding them.

    Raises:
        RefusedImage: it is none, or too small for one of the ways.
        OSError: it cannot be read.
    """
    modality = modalities.of(ways[0])
    decoded = modality.decode(file.read_bytes(), ways[0])
    return {how: modality.prepare(decoded, how) for how in ways}


def _said(
    model: Model, files: Sequence[Path], probabilities: np.ndarray
) -> list[Prediction]:
    """What ``probabilities`` (n, K), before calibration, mean for ``files``."""
    classes, point = np.array(model.classes), model.operating_point
    if point is None:
        return [
            Prediction(file, str(classes[row.argmax()]), float(row.max()))
            for file, row in zip(files, probabilities, strict=True)
        ]
    calibrated = point.calibration.apply(probabilities)
    sets, accepted = point.sets(calibrated), point.accepted(calibrated)
    order = np.argsort(-calibrated, axis=1, kind="stable")
    return [
        Prediction(
            file,
            label=str(classes[order[i, 0]]),
            confidence=float(calibrated[i].max()),
            labels=[str(classes[k]) for k in order[i] if sets[i, k]],
            accepted=bool(accepted[i]),
        )
        for i, file in enumerate(files)
    ]
