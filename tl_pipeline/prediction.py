"""The path of one input from file to prediction, outside any run.

A file is one input: an image, a text in UTF-8, or a vector as .npy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tl_pipeline import modalities
from tl_pipeline.devices import devices
from tl_pipeline.embeddings import Embeddings
from tl_pipeline.forward import BATCH, Forward
from tl_pipeline.images import RefusedImage
from tl_pipeline.registry import Model


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
        WeightsError: the weights of the model's encoder are gone or changed.
    """
    forward = Forward([model.encoder], devices()[0])
    found: list[Prediction] = []
    size = BATCH[forward.device.type]
    for start in range(0, len(files), size):
        found += _batch(model, forward, files[start : start + size])
    return found


def _batch(model: Model, forward: Forward, files: Sequence[Path]) -> list[Prediction]:
    how = model.encoder.preprocess
    modality = modalities.of(how)
    decoded: dict[Path, Any] = {}
    refused: dict[Path, str] = {}
    for file in files:
        try:
            decoded[file] = modality.prepare(modality.decode(file.read_bytes()), how)
        except (RefusedImage, OSError) as error:
            refused[file] = str(error)
    said: dict[Path, Prediction] = {}
    if decoded:
        (vectors,) = forward(modality.collate(list(decoded.values())))
        names = [str(file) for file in decoded]
        embeddings = Embeddings(model.encoder.key, names, vectors)
        found = _said(model, list(decoded), model.head.predict_proba(embeddings))
        said = {prediction.file: prediction for prediction in found}
    return [
        Prediction(file, refused=refused[file]) if file in refused else said[file]
        for file in files
    ]


def _said(
    model: Model, files: Sequence[Path], probabilities: np.ndarray
) -> list[Prediction]:
    """What ``probabilities`` of the head, (n, K), mean for ``files``."""
    classes, point = np.array(model.head.classes), model.operating_point
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
