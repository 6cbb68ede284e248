"""The path of one image from file to prediction, outside any run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tl_pipeline.embeddings import Embeddings
from tl_pipeline.engine import BATCH, Forward
from tl_pipeline.images import RefusedImage, pixels
from tl_pipeline.registry import Model


@dataclass(frozen=True)
class Prediction:
    """What a model says of one file; ``refused`` tells why it says nothing."""

    file: Path
    label: str | None = None
    confidence: float | None = None
    refused: str | None = None


def predict(model: Model, files: Sequence[Path]) -> list[Prediction]:
    """Classify ``files`` in their order; one that is no image is refused alone.

    Raises:
        WeightsError: the weights of the model's encoder are gone or changed.
    """
    forward = Forward(model.encoder)
    found: list[Prediction] = []
    for start in range(0, len(files), BATCH):
        found += _batch(model, forward, files[start : start + BATCH])
    return found


def _batch(model: Model, forward: Forward, files: Sequence[Path]) -> list[Prediction]:
    decoded: dict[Path, np.ndarray] = {}
    refused: dict[Path, str] = {}
    for file in files:
        try:
            decoded[file] = pixels(file.read_bytes(), model.encoder.preprocess)
        except (RefusedImage, OSError) as error:
            refused[file] = str(error)
    said = {}
    if decoded:
        vectors = forward(np.stack(list(decoded.values())))
        names = [str(file) for file in decoded]
        embeddings = Embeddings(model.encoder.key, names, vectors)
        probabilities = model.head.predict_proba(embeddings)
        winners = probabilities.argmax(axis=1)
        said = {
            file: (model.head.classes[winner], float(row[winner]))
            for file, winner, row in zip(decoded, winners, probabilities, strict=True)
        }
    return [
        Prediction(file, refused=refused[file])
        if file in refused
        else Prediction(file, *said[file])
        for file in files
    ]
