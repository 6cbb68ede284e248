"""Shuffle: a manifest drawn by group -> the same, drawn image by image: a control.

Reads the manifest. Writes ``manifests/<key>/`` with the training and validation images
dealt anew, one by one, in the same shares; test is untouched. How much better
validation gets by that is the leakage that the groups prevent.
"""

import time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from tl_pipeline.data import splits
from tl_pipeline.runs.planning import Context, Outcome, Step
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact
from tl_pipeline.store.keys import digest, key_document
from tl_pipeline.store.tables import MANIFEST

# Bump when the same inputs must give other rows.
VERSION = 1


def plan(context: Context, manifest: Artifact) -> Outcome[Artifact]:
    """Shuffle into the overlay of ``context.store``: it is cheap enough."""
    return run(context, manifest)


def run(context: Context, manifest: Artifact) -> Outcome[Artifact]:
    """Write the shuffled manifest, unless that very one exists."""
    started, store = time.perf_counter(), context.store
    seed = context.dataset.split.seed
    document = key_document(
        "shuffle", VERSION, {"seed": seed}, {"manifest": manifest.fingerprint}
    )
    made = store.find("manifests", digest(document))
    reason = "a control for leakage: validation drawn image by image"
    write = partial(_write, store.path(manifest), seed)
    step = Step(
        stage="shuffle",
        subject=context.dataset.name,
        cached=made is not None,
        reason=reason,
        keys={"manifest": digest(document)},
        seconds=time.perf_counter() - started,
    )
    outcome = Outcome(made or store.build("manifests", document, write), (step,))
    return outcome if made else outcome.ran(time.perf_counter() - started)


def _write(before: Path, seed: int, folder: Path) -> str:
    rows = tables.read(MANIFEST, before)
    sides = rows["split"].to_numpy(zero_copy_only=False).astype(object)
    dealt = np.flatnonzero(np.isin(sides, (splits.TRAIN, splits.VALIDATION)))
    held = int((sides == splits.VALIDATION).sum())
    ids = rows["image_id"].to_pylist()
    order = np.argsort([splits.draw(ids[i], seed) for i in dealt], kind="stable")
    sides[dealt] = splits.TRAIN
    sides[dealt[order[:held]]] = splits.VALIDATION
    place = rows.schema.get_field_index("split")
    rows = rows.set_column(place, MANIFEST.schema.field("split"), pa.array(sides))
    tables.write(MANIFEST, rows, folder)
    return tables.content(rows)
