"""Which split an image belongs to: pure functions of its content."""

# pyarrow.compute is filled when it is imported.
# pyright: reportAttributeAccessIssue=false

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tl_pipeline.config.split_specs import SplitSpec
from tl_pipeline.errors import DatasetError
from tl_pipeline.store import tables

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = (TRAIN, VALIDATION, TEST)
# That of all images of a dataset whose images have no labels.
UNLABELLED = "unlabelled"
# No split that an image is in: the training images that folds leave out in turn.
FOLDS = "folds"
# What scores candidates while they are compared.
CHOOSING = (FOLDS, VALIDATION)


def draw(name: str, seed: int) -> float:
    """A number in [0, 1) that depends on ``name`` and the seed alone.

    ``name`` is an image's id, so that it keeps its split when others come or go and
    when its label or file name changes; or the name of its group.
    """
    data = f"split:{seed}:{name}".encode()
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big") / 2**64


def assign(images: pa.Table, spec: SplitSpec) -> pa.Array:
    """The split of each of ``images``; see ``SplitSpec`` for the strategies.

    Their columns are those of the manifest that a split may depend on: ``image_id``,
    ``label``, ``group`` and ``split``, which is what the source declares. Images of one
    group (frames of one track, photos of one patient) are nearly the same image: they
    must not stand in two splits.

    Raises:
        DatasetError: ``predefined`` is asked for and the source declares no splits, or
            ``group`` and it gives no groups.
    """
    declared = frozenset(filter(None, pc.unique(images["split"]).to_pylist()))
    if spec.strategy == "predefined" and not declared:
        raise DatasetError(
            "split.strategy is 'predefined' but the source declares no splits; "
            "use 'stable' or 'auto'"
        )
    if spec.strategy == "group" and images["group"].null_count == images.num_rows:
        raise DatasetError(
            "split.strategy is 'group' but the source gives no groups; "
            "use 'stable' or 'auto', or name a column of groups"
        )
    if spec.strategy == "stratified":
        return pa.array(_stratified(images, spec), pa.string())
    if spec.strategy == "stable":
        declared = frozenset()
    return pa.array(
        (
            _assign(image_id, group, split, declared, spec)
            for image_id, group, split in tables.values(
                images, "image_id", "group", "split"
            )
        ),
        pa.string(),
        size=images.num_rows,
    )


def _assign(
    image_id: str,
    group: str | None,
    split: str | None,
    declared: frozenset[str],
    spec: SplitSpec,
) -> str:
    """Keep a declared split; else, and in a declared train, draw the missing ones."""
    if split in declared and split != TRAIN:
        return str(split)
    test = 0.0 if TEST in declared else spec.test
    validation = 0.0 if VALIDATION in declared else spec.validation
    grouped = group is not None and spec.strategy in ("auto", "group")
    share = draw(f"group {group}" if grouped else image_id, spec.seed)
    if share < test:
        return TEST
    return VALIDATION if share < test + validation else TRAIN


def _stratified(images: pa.Table, spec: SplitSpec) -> np.ndarray:
    """In every class the exact shares, rounded; the images in the order of their draw.

    A class keeps at least one image to train on, then gets one to test on, then one
    to validate on.
    """
    ids = tables.values(images, "image_id")
    shares = np.fromiter((draw(image_id, spec.seed) for (image_id,) in ids), np.float64)
    label = images["label"].combine_chunks().dictionary_encode().indices.to_numpy()
    order, found = np.lexsort((shares, label)), np.full(len(shares), TRAIN, object)
    sizes = np.bincount(label)
    for start, size in zip(np.cumsum(sizes) - sizes, sizes.tolist(), strict=True):
        spare = size - 1
        test = min(max(round(spec.test * size), 1), spare)
        validation = min(max(round(spec.validation * size), 1), spare - test)
        found[order[start : start + test]] = TEST
        found[order[start + test : start + test + validation]] = VALIDATION
    return found


def learned(manifest: pa.Table, names: Sequence[str] = (TRAIN,)) -> pa.Table:
    """The rows of the splits ``names`` to learn from: weight 0 is left out."""
    weight = pc.fill_null(manifest["weight"], 1)
    there = pc.is_in(manifest["split"], pa.array(names))
    return manifest.filter(pc.and_(there, pc.greater(weight, 0)))


def tiny(manifest: pa.Table) -> dict[str, tuple[str, ...]]:
    """The classes too small for all splits, and in which splits each has no image.

    ``manifest`` needs the columns ``label``, ``split`` and ``weight``; images of weight
    0 do not count in train. ``SplitSpec`` tells what becomes of such classes.
    """
    names = ["label", "split", "weight"]
    held = manifest.select(names).filter(pc.not_equal(manifest["split"], TRAIN))
    parts = (learned(manifest.select(names)), held)
    there = {
        (pair["label"], pair["split"])
        for part in parts
        for pair in part.group_by(["label", "split"]).aggregate([]).to_pylist()
    }
    missing = {
        label: tuple(split for split in SPLITS if (label, split) not in there)
        for label in sorted(pc.unique(manifest["label"]).to_pylist())
    }
    return {label: splits for label, splits in missing.items() if splits}
