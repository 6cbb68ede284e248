"""Which split an image belongs to: pure functions of its content."""

import hashlib

from tl_pipeline.errors import DatasetError
from tl_pipeline.specs import SplitSpec

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = (TRAIN, VALIDATION, TEST)


def draw(image_id: str, seed: int) -> float:
    """A number in [0, 1) that depends on the image's content and the seed alone.

    An image therefore keeps its side when others come or go, and when its own label or
    file name changes.
    """
    data = f"split:{seed}:{image_id}".encode()
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big") / 2**64


def assign(
    image_id: str, declared: str | None, present: frozenset[str], spec: SplitSpec
) -> str:
    """The split of one image.

    ``declared`` is what the source says of this image, ``present`` the splits that the
    source declares anywhere. Declared splits are kept; where a source declares no
    validation, its share is drawn from train, where it declares no test, likewise.

    Raises:
        DatasetError: ``predefined`` is asked for and the source declares no splits.
    """
    if spec.strategy == "predefined" and not present:
        raise DatasetError(
            "split.strategy is 'predefined' but the source declares no splits; "
            "use 'stable' or 'auto'"
        )
    if declared and declared != TRAIN and spec.strategy != "stable":
        return declared
    predefined = present if spec.strategy != "stable" else frozenset()
    share = draw(image_id, spec.seed)
    test = 0.0 if TEST in predefined else spec.test
    validation = 0.0 if VALIDATION in predefined else spec.validation
    if share < test:
        return TEST
    return VALIDATION if share < test + validation else TRAIN
