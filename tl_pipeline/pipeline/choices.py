"""What was chosen of a head, for the stages after it; and which images choose.

``searches/<key>/`` holds the choice (``chosen.json``) and, as HELD_OUT, what the chosen
configuration says of images that it did not learn from.
"""

import json
from pathlib import Path
from typing import NamedTuple

from tl_pipeline import heads
from tl_pipeline.config.specs import HeadConfig, SearchSpec
from tl_pipeline.data.splits import FOLDS, TRAIN, VALIDATION
from tl_pipeline.evaluation.averaging import Predictions
from tl_pipeline.pipeline.manifest import EncodedImages, Rows
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.tables import HELD_OUT

CHOSEN = "chosen.json"


class Roles(NamedTuple):
    """Which images do what while heads are chosen.

    Configurations learn from ``learned`` and are scored on ``held``, or on folds of
    ``learned`` where that is None; the chosen one is fitted on ``all``. ``split`` is
    what the images that score are called.
    """

    learned: Rows
    held: Rows | None
    all: Rows
    split: str

    @property
    def scored(self) -> Rows:
        """The images that score configurations."""
        return self.held or self.learned


def roles(images: EncodedImages, how: SearchSpec) -> Roles:
    """Who learns and who scores under ``how``."""
    everything = images.learned(TRAIN, VALIDATION)
    if how.select == "cross_validation":
        return Roles(everything, None, everything, FOLDS)
    train = images.learned(TRAIN)
    held = images.held_out(VALIDATION)
    return Roles(train, held, everything if how.refit else train, VALIDATION)


def write(folder: Path, config: HeadConfig, classes: list[str], head: str) -> None:
    """Tell in ``folder`` what was chosen; ``head`` is the key of the fitted head.

    ``classes`` are those of the probabilities in HELD_OUT.
    """
    about = {
        "head": config.model_dump(mode="json"),
        "label": heads.label(config),
        "classes": classes,
        "key": head,
    }
    (folder / CHOSEN).write_text(json.dumps(about, ensure_ascii=False))


def fitted(store: Store, made: Artifact) -> Artifact:
    """The fitted head of what was chosen."""
    key = json.loads((store.path(made) / CHOSEN).read_text())["key"]
    return Artifact("heads", key, key)


def config_of(store: Store, made: Artifact) -> HeadConfig:
    """The configuration that was chosen."""
    about = json.loads((store.path(made) / CHOSEN).read_text())
    return HeadConfig.model_validate(about["head"])


def label_of(store: Store, made: Artifact) -> str:
    """The configuration that was chosen, as people read it."""
    return json.loads((store.path(made) / CHOSEN).read_text())["label"]


def held_out(store: Store, made: Artifact) -> Predictions:
    """What the chosen configuration says of images that it did not learn from."""
    folder = store.path(made)
    rows = tables.read(HELD_OUT, folder)
    classes = json.loads((folder / CHOSEN).read_text())["classes"]
    return Predictions.of_table(rows, classes)
