"""Which split an image belongs to: pure functions of its content."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tl_pipeline.datasets import SplitSpec
from tl_pipeline.errors import DatasetError

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = (TRAIN, VALIDATION, TEST)


@dataclass(frozen=True, slots=True)
class Unassigned:
    """What the split of an image may depend on; ``declared`` is what the source says.

    Images of one ``group`` (frames of one track, photos of one patient) are nearly the
    same image: they must not stand on two sides.
    """

    image_id: str
    label: str
    group: str | None = None
    declared: str | None = None


def draw(name: str, seed: int) -> float:
    """A number in [0, 1) that depends on ``name`` and the seed alone.

    ``name`` is an image's id, so that it keeps its side when others come or go and when
    its label or file name changes; or the name of its group.
    """
    data = f"split:{seed}:{name}".encode()
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big") / 2**64


def assign(images: Sequence[Unassigned], spec: SplitSpec) -> list[str]:
    """The split of each of ``images``; see ``SplitSpec`` for the strategies.

    Raises:
        DatasetError: ``predefined`` is asked for and the source declares no splits, or
            ``group`` and it gives no groups.
    """
    declared = frozenset(image.declared for image in images if image.declared)
    if spec.strategy == "predefined" and not declared:
        raise DatasetError(
            "split.strategy is 'predefined' but the source declares no splits; "
            "use 'stable' or 'auto'"
        )
    if spec.strategy == "group" and all(image.group is None for image in images):
        raise DatasetError(
            "split.strategy is 'group' but the source gives no groups; "
            "use 'stable' or 'auto', or name a column of groups"
        )
    if spec.strategy == "stratified":
        return _stratified(images, spec)
    if spec.strategy == "stable":
        declared = frozenset()
    test = 0.0 if TEST in declared else spec.test
    validation = 0.0 if VALIDATION in declared else spec.validation
    return [_assign(image, declared, test, validation, spec) for image in images]


def _assign(
    image: Unassigned,
    declared: frozenset[str],
    test: float,
    validation: float,
    spec: SplitSpec,
) -> str:
    """Keep a declared split; else, and in a declared train, draw the missing ones."""
    if image.declared in declared and image.declared != TRAIN:
        return str(image.declared)
    grouped = image.group is not None and spec.strategy in ("auto", "group")
    share = draw(f"group {image.group}" if grouped else image.image_id, spec.seed)
    if share < test:
        return TEST
    return VALIDATION if share < test + validation else TRAIN


def _stratified(images: Sequence[Unassigned], spec: SplitSpec) -> list[str]:
    """In every class the exact shares, rounded; the images in the order of their draw.

    A class keeps at least one image to train on, then gets one to test on, then one
    to validate on.
    """
    classes: dict[str, list[int]] = defaultdict(list)
    for position, image in enumerate(images):
        classes[image.label].append(position)
    found = [TRAIN] * len(images)
    for members in classes.values():
        members.sort(key=lambda i: draw(images[i].image_id, spec.seed))
        spare = len(members) - 1
        test = min(max(round(spec.test * len(members)), 1), spare)
        validation = min(max(round(spec.validation * len(members)), 1), spare - test)
        for position in members[:test]:
            found[position] = TEST
        for position in members[test : test + validation]:
            found[position] = VALIDATION
    return found
