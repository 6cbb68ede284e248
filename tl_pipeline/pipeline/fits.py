"""Fitted heads as artifacts: the document of a head's key, and the making of it.

``heads/<key>/`` is one configuration fitted on one set of rows: a cached unit of its
own, whoever asks for it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tl_pipeline.config.specs import HeadConfig
from tl_pipeline.encoders import concat
from tl_pipeline.errors import DatasetError
from tl_pipeline.heads import HEADS
from tl_pipeline.pipeline.manifest import Rows
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.keys import KeyDocument, digest, key_document

if TYPE_CHECKING:
    from tl_pipeline.heads.fitted import FittedHead

# Bump when the same inputs must give other heads; of one kind, raise its revision.
VERSION = 1
# Of images that are the only one of their class: they are never held out.
_SINGLE = "by classes of two images or more"


def document(
    embeddings: Artifact, rows: Rows, config: HeadConfig, seed: int
) -> KeyDocument:
    """What the head of ``config`` that learns from ``rows`` depends on."""
    return key_document(
        "train",
        version(config.name),
        {"head": config.name, **config.params, "seed": seed},
        {"encoder": embeddings.key, **inputs(rows, config.name)},
    )


def version(head: str) -> int:
    """The part of a key that stands for how ``head`` is fitted."""
    return VERSION + HEADS[head].revision


def inputs(rows: Rows, head: str) -> dict[str, str]:
    """The fingerprints of ``rows``; groups count for heads that take them."""
    found, row = {"training rows": rows.fingerprint}, HEADS[head]
    if rows.groups_fingerprint and row.takes_groups:
        found["groups"] = rows.groups_fingerprint
    if row.stops_early and 1 in rows.classes.values():
        found["early stopping"] = _SINGLE
    return found


def check(rows: Rows, dataset: str) -> None:
    """See that ``rows``, of ``dataset``, hold something to learn.

    Raises:
        DatasetError: fewer than two classes have an embedded training image.
    """
    if len(rows.classes) < 2:
        raise DatasetError(
            f"{dataset}: fewer than two classes have training images that could be "
            "embedded; see the quarantine table"
        )


def make(
    store: Store,
    embeddings: Artifact,
    rows: Rows,
    configs: Sequence[HeadConfig],
    seed: int,
    done: Callable[[], None] = lambda: None,
) -> list[Artifact]:
    """The heads of ``configs``, fitted where they are missing; ``done`` is called then.

    Raises:
        InvalidSpec: images have weights, and a head cannot take them.
    """
    # scikit-learn is imported only when there is something to train
    from tl_pipeline.heads import fitting, grids  # noqa: PLC0415

    documents = [document(embeddings, rows, config, seed) for config in configs]
    keys = [digest(told) for told in documents]
    due = [at for at, key in enumerate(keys) if store.find("heads", key) is None]
    if due:
        vectors = concat.load(store, embeddings, rows.ids)
        there = rows.aligned(vectors.image_ids)
        groups = there.groups if there.grouped else None
        learned = grids.LabelledRows(
            vectors.vectors, there.labels, there.weights, groups, vectors.places
        )
        for fit in grids.fit([configs[at] for at in due], seed, learned):
            at = due[fit.at]
            head = fitting.fitted_head(configs[at], seed, embeddings.key, fit.estimator)
            store.build("heads", documents[at], partial(_save, head, keys[at]))
            done()
    return [Artifact("heads", key, key) for key in keys]


def _save(head: "FittedHead", key: str, folder: Path) -> str:
    from tl_pipeline.heads import fitted  # noqa: PLC0415 - as above

    fitted.save(head, folder)
    return key
