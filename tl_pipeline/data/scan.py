"""One look at a source: every input accepted, refused, or the copy of another.

Inputs are Python objects a batch at a time and columns from then on, about 150 bytes
an image, so that a million of them need no more memory than a network does.
"""

# pyarrow.compute is filled when it is imported.
# pyright: reportAttributeAccessIssue=false

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby, islice
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tl_pipeline.config.datasets import DatasetSpec
from tl_pipeline.data import labels, splits
from tl_pipeline.data.corrections import Corrections
from tl_pipeline.data.identity import Facts, Memo, image_id
from tl_pipeline.inputs.images import RefusedImage
from tl_pipeline.inputs.modalities import MODALITIES
from tl_pipeline.progress import track
from tl_pipeline.sources import Entry, Source
from tl_pipeline.store import tables
from tl_pipeline.store.tables import DUPLICATES, MANIFEST, QUARANTINE, Columns

# Read before the console hears of it: telling of each would cost as much as reading.
_BATCH = 256
_SLICE = 65_536  # rows of a table that are put in order at a time

# Which of several copies to keep: that in a test split, then validation, train. A score
# must not be earned on an image that was also learned from.
_RANKS = {splits.TEST: 0, splits.VALIDATION: 1}
_RANK = 2

_NO_LABEL = RefusedImage("no label", "the source tells no class for it")
_ONE_LABEL = "one label an image is supported, so keep one of them"

# Large strings, because the uris of many millions of images are more than 2 GB.
_ACCEPTED = pa.schema(
    {
        "image_id": pa.large_string(),
        "rank": pa.int8(),
        "uri": pa.large_string(),
        "label": pa.large_string(),
        "split": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "bytes": pa.int64(),
        "group": pa.large_string(),
        "weight": pa.float32(),
    }
)


@dataclass(frozen=True)
class Scan:
    """The tables MANIFEST, QUARANTINE and DUPLICATES, each sorted by its key.

    Every input of the source is in exactly one of them. An image stands in the manifest
    with what the source says of the copy that is kept. ``notes`` are sentences: what a
    user should know besides.
    """

    manifest: pa.Table
    quarantine: pa.Table
    duplicates: pa.Table
    notes: tuple[str, ...] = ()

    @property
    def inputs(self) -> int:
        """How many inputs the source has."""
        found = (self.manifest, self.quarantine, self.duplicates)
        return sum(table.num_rows for table in found)


def scan(
    source: Source, dataset: DatasetSpec, memo: Memo, *, labelled: bool = True
) -> Scan:
    """Read what ``memo`` does not know of ``source`` and draw the splits.

    A label is taken without spaces around it and in Unicode's form NFC. Where a source
    declares validation and no test images, its validation is what others report as
    their test set and becomes the test split, unless the entry names the splits.
    Where inputs are not to be ``labelled`` all of that is left out, and no image has a
    label.
    """
    spelling, declared = labels.Spelling(), set[str | None]()
    mend = spelling.mend if labelled else _unlabelled
    corrected = labelled and (dataset.class_names or dataset.relabel)
    corrections = Corrections(dataset) if corrected else None
    images, refused = _look(source, dataset, memo, mend, declared, corrections)
    images, held_out = _held_out(images, declared, dataset)
    roles = _roles(images)
    kept = _taken(images, roles.kept)
    duplicates = _duplicates(images, roles)
    conflicting = _conflicting(images, roles.conflicting)
    refused.append(tables.from_rows(QUARANTINE, conflicting))
    del images
    place = kept.column_names.index("split")
    declared_splits = kept["split"]
    if labelled:
        kept = kept.set_column(place, "split", splits.assign(kept, dataset.split))
    else:  # the name that all have as a label stands for their split
        kept = kept.set_column(place, "split", kept["label"])
        nothing = pa.nulls(kept.num_rows, pa.string())
        kept = kept.set_column(kept.column_names.index("label"), "label", nothing)
    kept = kept.append_column("declared", declared_splits)
    manifest = kept.select(MANIFEST.schema.names)
    classes = pc.unique(manifest["label"].drop_null()).to_pylist()
    notes = (*source.notes(), *held_out, *spelling.notes())
    notes += (*corrections.notes(),) if corrections else ()
    return Scan(
        manifest.cast(MANIFEST.schema),
        pa.concat_tables(refused).sort_by("uri"),
        duplicates.sort_by("uri"),
        (*notes, *labels.look_alike(classes)),
    )


def _unlabelled(entry: Entry) -> Entry:
    """``entry`` as one of a single class and split, whatever the source says."""
    about = {"version": entry.version, "modified_ns": entry.modified_ns}
    return Entry(entry.uri, splits.UNLABELLED, **about)


def _held_out(
    images: pa.Table, declared: set[str | None], dataset: DatasetSpec
) -> tuple[pa.Table, tuple[str, ...]]:
    """``images`` with declared validation as test, if no test is declared; and a note.

    ``declared`` is what all inputs say, those that were refused as well: a test split
    that cannot be read is one.
    """
    alone = splits.VALIDATION in declared and splits.TEST not in declared
    if not alone or dataset.names_splits or dataset.split.strategy == "stable":
        return images, ()
    is_held_out = pc.equal(images["split"], splits.VALIDATION)
    renamed = pc.if_else(is_held_out, splits.TEST, images["split"])
    place = images.column_names.index("split")
    note = "no test split is declared: the declared validation is the test split"
    return images.set_column(place, images.schema.field("split"), renamed), (note,)


def _look(
    source: Source,
    dataset: DatasetSpec,
    memo: Memo,
    mend: Callable[[Entry], Entry],
    declared: set[str | None],
    corrections: Corrections | None,
) -> tuple[pa.Table, list[pa.Table]]:
    """The inputs that are images, in the order of the source, and those refused.

    ``declared`` takes up their splits, ``mend`` puts their labels in order, and
    ``corrections`` go before them.
    """
    accepted = Columns(_ACCEPTED)
    refused = [QUARANTINE.schema.empty_table()]
    entries = source.entries()
    if how := dataset.pixels.model_dump(exclude_defaults=True):
        entries = (_read_so(entry, json.dumps(how)) for entry in entries)
    with track(f"ingest {dataset.name}", total=0) as progress:
        while batch := list(map(mend, islice(entries, _BATCH))):
            declared.update(entry.split for entry in batch)
            reasons: list[tuple[Entry, RefusedImage]] = []
            facts = _facts(batch, source, dataset, memo, reasons, corrections)
            both = zip(batch, facts, strict=True)
            accepted.extend(_row(e, f) for e, f in both if f and e.label)
            if reasons:
                refused.append(tables.from_rows(QUARANTINE, map(_refused, reasons)))
            progress.advance(len(batch))
    memo.save()
    images = accepted.table()
    # What the memo held is free, but not yet given back, and its size is needed next.
    pa.default_memory_pool().release_unused()
    return images.combine_chunks(), refused


def _facts(
    batch: list[Entry],
    source: Source,
    dataset: DatasetSpec,
    memo: Memo,
    refused: list[tuple[Entry, RefusedImage]],
    corrections: Corrections | None,
) -> list[Facts | None]:
    """What the bytes of each input say, None for no image; tells the ``refused``.

    Labels in ``batch`` are corrected.
    """
    now = time.time_ns()
    facts = memo.get(batch)
    read: list[tuple[Entry, Facts]] = []
    for place, entry in enumerate(batch):
        try:
            found = facts[place]
            if found is None:
                facts[place] = found = _read(entry, source, dataset)
                read.append((entry, found))
        except RefusedImage as refusal:
            refused.append((entry, refusal))
        else:  # last, so that what is no image at all is refused for that
            if corrections:
                batch[place] = corrections.apply(entry, found.image_id)
            if not batch[place].label:
                refused.append((entry, _NO_LABEL))
    memo.put(read, now)
    return facts


def _read(entry: Entry, source: Source, dataset: DatasetSpec) -> Facts:
    try:
        data = source.read(entry.uri)
    except OSError as error:
        raise RefusedImage("unreadable", f"{error}") from None
    width, height = MODALITIES[dataset.modality].probe(data, dataset.pixels)
    return Facts(image_id(data), width, height, len(data))


def _read_so(entry: Entry, how: str) -> Entry:
    """``entry`` of another version, as far as the memo knows, if it is read so."""
    if entry.version is None:
        return entry
    return replace(entry, version=f"{entry.version} {how}")


def _row(entry: Entry, facts: Facts) -> tuple[Any, ...]:
    rank = _RANKS.get(entry.split or "", _RANK)
    said = (facts.image_id, rank, entry.uri, entry.label, entry.split)
    return (*said, *facts[1:], entry.group, entry.weight)


class _Roles(NamedTuple):
    """Rows of the accepted inputs; ``originals[i]`` is kept instead of ``copies[i]``.

    ``kept`` is in the order of the ids. ``conflicting`` are copies of one image under
    different labels, who is right being unknown.
    """

    kept: np.ndarray
    copies: np.ndarray
    originals: np.ndarray
    conflicting: np.ndarray


def _roles(images: pa.Table) -> _Roles:
    keys = [(name, "ascending") for name in ("image_id", "rank", "uri")]
    order = pc.sort_indices(images, sort_keys=keys).to_numpy()
    ids = images["image_id"].take(pa.array(order))
    first = np.ones(len(order), bool)  # of the copies of an image
    first[1:] = pc.not_equal(ids[1:], ids[:-1]).to_numpy()
    starts, image = np.flatnonzero(first), np.cumsum(first) - 1
    encoded = images["label"].combine_chunks().dictionary_encode()
    labels = encoded.indices.to_numpy()[order]
    bounds = [bound.reduceat(labels, starts) for bound in (np.minimum, np.maximum)]
    conflict = np.not_equal(*bounds)
    copies = ~first & ~conflict[image]
    return _Roles(
        kept=order[starts[~conflict]],
        copies=order[copies],
        originals=order[starts[image[copies]]],
        conflicting=order[conflict[image]],
    )


def _taken(images: pa.Table, rows: np.ndarray) -> pa.Table:
    """These rows, in slices: no piece of a column outgrows Arrow's plain strings."""
    slices = (rows[start : start + _SLICE] for start in range(0, len(rows), _SLICE))
    parts = [images.take(pa.array(part)) for part in slices]
    return pa.concat_tables([images.schema.empty_table(), *parts])


def _duplicates(images: pa.Table, roles: _Roles) -> pa.Table:
    names = ["uri", "image_id", "split"]
    copies = _taken(images.select(names), roles.copies)
    kept = _taken(images.select(["uri", "split"]), roles.originals)
    columns = [copies["uri"], copies["image_id"], kept["uri"]]
    columns += [copies["split"], kept["split"]]
    return pa.table(columns, DUPLICATES.schema.names).cast(DUPLICATES.schema)


def _conflicting(images: pa.Table, rows: np.ndarray) -> Iterator[dict[str, str]]:
    taken = _taken(images.select(["image_id", "uri", "label"]), rows)
    copies = tables.values(taken, *taken.column_names)
    for image, same in groupby(copies, key=itemgetter(0)):
        labelled = [(uri, label) for _, uri, label in same]
        names = ", ".join(sorted({label for _, label in labelled}))
        for uri, _ in labelled:
            yield {
                "uri": uri,
                "reason": "conflicting labels",
                "detail": f"the same image is labelled {names}; {_ONE_LABEL}",
                "image_id": image,
            }


def _refused(refusal: tuple[Entry, RefusedImage]) -> dict[str, str]:
    entry, why = refusal
    return {"uri": entry.uri, "reason": why.reason, "detail": why.detail}
