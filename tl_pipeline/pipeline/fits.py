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
from tl_pipeline.pipeline.labels import TrainingRows, training_rows
from tl_pipeline.runs.planning import Context
from tl_pipeline.store.artifacts import Artifact
from tl_pipeline.store.keys import KeyDocument, digest, key_document

if TYPE_CHECKING:
    from tl_pipeline.heads.fitted import FittedHead

# Bump when the same inputs must give other heads.
VERSION = 1


def rows_of(
    context: Context, manifest: Artifact, embeddings: Artifact, *sides: str
) -> TrainingRows:
    """The images of the splits ``sides`` to learn from, in this context.

    A control that deals images one by one knows no groups.
    """
    rows = training_rows(context.store, manifest, embeddings, sides)
    return rows.ungrouped() if context.control else rows


def document(
    context: Context, embeddings: Artifact, rows: TrainingRows, config: HeadConfig
) -> KeyDocument:
    """What the head of ``config`` that learns from ``rows`` depends on."""
    return key_document(
        "train",
        VERSION,
        {"head": config.name, **config.params, "seed": context.seed},
        {"encoder": embeddings.key, **inputs(rows, config.name)},
    )


def inputs(rows: TrainingRows, head: str) -> dict[str, str]:
    """The fingerprints of ``rows``; groups count for heads that take them."""
    found = {"training rows": rows.fingerprint}
    if rows.groups and HEADS[head].takes_groups:
        found["groups"] = digest(sorted(rows.groups.items()))
    return found


def check(context: Context, rows: TrainingRows) -> None:
    """See that there is something to learn.

    Raises:
        DatasetError: fewer than two classes have an embedded training image.
    """
    if len(set(rows.labels.values())) < 2:
        raise DatasetError(
            f"{context.dataset.name}: fewer than two classes have training images that "
            "could be embedded; see the quarantine table"
        )


def make(
    context: Context,
    embeddings: Artifact,
    rows: TrainingRows,
    configs: Sequence[HeadConfig],
    done: Callable[[], None] = lambda: None,
) -> None:
    """Fit those of ``configs`` that are not there; ``done`` is called after each.

    Raises:
        DatasetError: fewer than two classes have an embedded training image.
        InvalidSpec: images have weights, and a head cannot take them.
    """
    # scikit-learn is imported only when there is something to train
    from tl_pipeline.heads import fitted, grids  # noqa: PLC0415

    store = context.store
    documents = [document(context, embeddings, rows, config) for config in configs]
    due = [
        at
        for at, told in enumerate(documents)
        if store.find("heads", digest(told)) is None
    ]
    if not due:
        return
    check(context, rows)
    vectors = concat.load(store, embeddings, rows.labels)
    learned = grids.Rows(vectors.vectors, *rows.columns(vectors.image_ids))
    for fit in grids.fit([configs[at] for at in due], context.seed, learned):
        at = due[fit.at]
        head = fitted.fitted_head(
            configs[at], context.seed, embeddings.key, fit.estimator
        )
        write = partial(_save, head, digest(documents[at]))
        store.build("heads", documents[at], write)
        done()


def _save(head: "FittedHead", key: str, folder: Path) -> str:
    from tl_pipeline.heads import fitted  # noqa: PLC0415 - as above

    fitted.save(head, folder)
    return key
