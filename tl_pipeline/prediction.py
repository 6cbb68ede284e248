"""The path of one input from file to prediction, outside any run.

A file is one input: an image, a text in UTF-8, or a vector as .npy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl_pipeline import modalities
from tl_pipeline.devices import devices
from tl_pipeline.embeddings import Embeddings
from tl_pipeline.forward import BATCH, Forward
from tl_pipeline.images import RefusedImage
from tl_pipeline.registry import Model


@dataclass(frozen=True)
class Prediction:
    """What a model says of one file; ``refused`` tells why it says nothing."""

    file: Path
    label: str | None = None
    confidence: float | None = None
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
    said = {}
    if decoded:
        (vectors,) = forward(modality.collate(list(decoded.values())))
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
