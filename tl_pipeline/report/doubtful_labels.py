"""Labels that may be wrong, as pictures: those that heads find least probable."""

from typing import NamedTuple

import numpy as np

from tl_pipeline.evaluation import scored_rows
from tl_pipeline.report.thumbnails import Thumbnail, Thumbnails
from tl_pipeline.store.artifacts import Artifact, Store

_MOST = 12


class Doubt(NamedTuple):
    """An image, how probable its label is, and which label is more probable."""

    image: Thumbnail
    probability: float
    suggested: str


def find(store: Store, evaluation: str, thumbnails: Thumbnails) -> list[Doubt]:
    """The first rows of ``label_issues`` in SQL: of images held out of heads.

    Raises:
        DamagedArtifact: a table of the evaluation cannot be read.
    """
    artifact = Artifact("evaluations", evaluation, evaluation)
    said = scored_rows.read(store, artifact).held_out
    probability, best = said.of_truth(), said.probabilities.argmax(axis=1)
    wrong = np.flatnonzero(best != said.targets())
    rows = wrong[np.argsort(probability[wrong], kind="stable")][:_MOST]
    ids = [said.image_ids[row].as_py() for row in rows.tolist()]
    made = thumbnails.of(ids)
    return [
        Doubt(made[image_id], float(probability[row]), said.classes[best[row]])
        for image_id, row in zip(ids, rows, strict=True)
    ]
