"""Ingest: a source -> the manifest of its images.

Reads the source. Writes ``manifests/<key>/``: the tables MANIFEST, QUARANTINE and
DUPLICATES. A folder is always scanned, because only that can tell whether something
changed, and a memo makes it cheap; a source of few files is scanned when they changed
(``data/unchanged.py``). The fingerprint is that of (id, label, split, group), and
weight where the source tells one: a folder that was moved causes no further work.
"""

# pyarrow.compute is filled when it is imported.
# pyright: reportAttributeAccessIssue=false

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from tl_pipeline.config.datasets import DatasetSpec
from tl_pipeline.data import refusals, splits
from tl_pipeline.data.identity import Memo
from tl_pipeline.data.scan import Scan
from tl_pipeline.data.scan import scan as look
from tl_pipeline.data.unchanged import LastScan, Scanned
from tl_pipeline.errors import DatasetError
from tl_pipeline.pipeline.manifest import Manifest
from tl_pipeline.pipeline.stage import Unit
from tl_pipeline.runs import records
from tl_pipeline.runs.planning import LOST, Outcome
from tl_pipeline.sources import Source, open_source
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact
from tl_pipeline.store.keys import KeyDocument, document_of, key_document
from tl_pipeline.store.tables import DUPLICATES, MANIFEST, QUARANTINE

# Bump when the same inputs must give other rows.
VERSION = 1
_NAMED = 3  # of many, in a message
_FOLDERS = (
    "The folders directly in 'path' (or in its splits) are the classes: name the "
    "folder above them"
)
# Where classes come from, for who has only one.
_CLASSES = {
    "image_folder": _FOLDERS,
    "archive": _FOLDERS,
    "table": "See 'label_column'",
    "webdataset": "See 'label'",
    "huggingface": "See 'label_column'",
}


@dataclass(frozen=True)
class Ingest(Unit[Manifest]):
    """The manifest of ``dataset``; with ``verify`` every input is read again.

    Where images are not ``labelled`` they are to be predicted: any number of them will
    do, and none of them has a label.

    Raises:
        DatasetError: nothing to learn from: no images, one class, an empty split, no
            weight above 0; or a weight that is none.
        TooManyRefused: more than ``max_quarantined`` of the inputs were refused.
    """

    stage: ClassVar[str] = "ingest"
    kind: ClassVar[str] = "manifests"
    label: ClassVar[str] = "manifest"

    dataset: DatasetSpec
    verify: bool = False
    labelled: bool = True

    @property
    def subject(self) -> str:
        return self.dataset.name

    def plan(self) -> Outcome[Manifest]:
        """Scan the source into the overlay of the store: it is cheap enough."""
        return replace(self, dataset=self.dataset.offline()).run()

    def run(self) -> Outcome[Manifest]:
        """Write the tables, then check them: of a refused dataset they can be read."""
        outcome = super().run()
        if not (self._known or refusals.may_pass(self.scan.quarantine)):
            self._last.remember(self.key, self.scan.notes)
        try:
            _check(self.dataset, self.scan, labelled=self.labelled)
        except DatasetError:
            if not self.at.store.planning:
                records.note_refused(self.at.store, self.dataset.name, self.key)
            raise
        return outcome

    @cached_property
    def scan(self) -> Scan:
        """What the source holds."""
        if self._known:
            return _read(self.at.store.path(self._known.manifest), self._known.notes)
        memo = Memo(self.at.store, self.dataset.name, trust=not self.verify)
        return look(self._source, self.dataset, memo, labelled=self.labelled)

    @cached_property
    def fingerprint(self) -> str:
        """Of the rows."""
        if self._known:
            return self._known.manifest.fingerprint
        return tables.content(self.scan.manifest)

    @cached_property
    def _source(self) -> Source:
        return open_source(self.dataset)

    @cached_property
    def _last(self) -> LastScan:
        """The last scan; made before this one, which is then at least as new."""
        store, dataset = self.at.store, self.dataset
        return LastScan(store, self._source, dataset, labelled=self.labelled)

    @cached_property
    def _known(self) -> Scanned | None:
        """What the last scan gave, if it would give the same again."""
        last = self._last
        return None if self.verify else last.find()

    def depends_on(self) -> KeyDocument:
        if self._known:
            return document_of(self.at.store.provenance(self._known.manifest))
        scan, dataset = self.scan, self.dataset
        return key_document(
            "ingest",
            VERSION,
            {"dataset": dataset.name, "split": dataset.split.model_dump(mode="json")},
            {
                "images": self.fingerprint,
                "places": tables.fingerprint(scan.manifest, "uri"),
                "refused": tables.fingerprint(scan.quarantine, "uri", "reason"),
                "duplicates": tables.fingerprint(scan.duplicates, "uri", "kept_uri"),
                **_declared(scan.manifest),
            },
        )

    def found(self, made: Artifact) -> str:
        return _joined(_summary(self.scan), *_findings(self.scan))

    def missing(self) -> str:
        return _joined(self._changes(), *_findings(self.scan))

    def units(self, made: Artifact | None) -> int:
        """The images of the dataset."""
        return self.scan.manifest.num_rows

    def write(self, folder: Path) -> str:
        tables.write(MANIFEST, self.scan.manifest, folder)
        tables.write(QUARANTINE, self._dated(self.scan.quarantine), folder)
        tables.write(DUPLICATES, self.scan.duplicates, folder)
        return self.fingerprint

    def output(self, made: Artifact | None) -> Manifest:
        made = made or Artifact(self.kind, self.key, self.fingerprint)
        return Manifest(self.at.store, made, self.dataset.name)

    def _before(self) -> Artifact | None:
        """The manifest of the last run."""
        key = self.at.manifest_before(self.dataset.name)
        return self.at.store.find("manifests", key) if key else None

    def _changes(self) -> str:
        """How the rows differ from those of the last run."""
        key = self.at.manifest_before(self.dataset.name)
        if key is None:
            return f"new: {_summary(self.scan)}"
        found = self._before()
        if key == self.key or found is None:
            return LOST
        names = ["image_id", "uri", "label", "split", "weight"]
        old = tables.read(MANIFEST, self.at.store.path(found), names)
        return _differences(old, self.scan.manifest.select(names))

    def _dated(self, quarantine: pa.Table) -> pa.Table:
        """When each input was first refused for its reason: by the last run, or now."""
        now = pa.scalar(datetime.now(UTC), QUARANTINE.schema.field("first_seen").type)
        seen = pa.repeat(now, quarantine.num_rows)
        if found := self._before():
            old = tables.read(QUARANTINE, self.at.store.path(found))
            known = old["uri"].combine_chunks()
            then = old.take(pc.index_in(quarantine["uri"], value_set=known))
            same = pc.fill_null(pc.equal(then["reason"], quarantine["reason"]), False)
            seen = pc.if_else(same, then["first_seen"], seen)
        at = quarantine.column_names.index("first_seen")
        return quarantine.set_column(at, QUARANTINE.schema.field(at), seen)


def _read(manifest: Path, notes: tuple[str, ...]) -> Scan:
    """The scan that gave the artifact in the folder ``manifest``."""
    images, refused, copies = (
        tables.read(table, manifest) for table in (MANIFEST, QUARANTINE, DUPLICATES)
    )
    return Scan(images, refused, copies, notes)


def _declared(manifest: pa.Table) -> dict[str, str]:
    """The splits that the source declares, if it does."""
    if manifest["declared"].null_count == manifest.num_rows:
        return {}
    return {"declared splits": tables.fingerprint(manifest, "declared")}


def _check(dataset: DatasetSpec, scan: Scan, *, labelled: bool) -> None:
    name, manifest = dataset.name, scan.manifest
    refusals.check(dataset, scan.inputs, scan.quarantine, manifest["label"])
    if not labelled:
        refusals.check_expected(dataset, manifest["label"])
        return
    classes = tables.counts(manifest["label"])
    if len(classes) < 2:
        raise DatasetError(
            f"{name}: all {scan.inputs} images are of one class, "
            f"{next(iter(classes))!r}; a classifier needs two. "
            f"{_CLASSES.get(dataset.type, '')}"
        )
    refusals.check_expected(dataset, manifest["label"])
    _check_weights(name, manifest)
    sizes = tables.counts(manifest["split"])
    learned = pc.count_distinct(splits.learned(manifest)["label"]).as_py()
    if len(sizes) < len(splits.SPLITS) or learned < 2:
        raise DatasetError(
            f"{name}: {manifest.num_rows} images split into {_shares(sizes)}, with "
            f"{learned} classes to learn; every split needs images. Add images "
            "or change split.validation, split.test or split.seed"
        )


def _check_weights(name: str, manifest: pa.Table) -> None:
    weight = pc.fill_null(manifest["weight"], 1)
    good = pc.and_(pc.is_finite(weight), pc.greater_equal(weight, 0))
    wrong = manifest.filter(pc.invert(good))
    if wrong.num_rows:
        first = ", ".join(
            f"{weight:g} of {uri}"
            for weight, uri in tables.values(wrong[:_NAMED], "weight", "uri")
        )
        raise DatasetError(
            f"{name}: {wrong.num_rows} weights are no weights: {first}. A weight is "
            "0 (not learned from) or more; correct the source"
        )
    if (
        splits.TRAIN in tables.counts(manifest["split"])
        and not splits.learned(manifest).num_rows
    ):
        raise DatasetError(
            f"{name}: all training images have weight 0, so there is nothing to learn "
            "from; correct the weights in the source"
        )


def _differences(old: pa.Table, now: pa.Table) -> str:
    """How the rows ``now`` differ from the ``old`` ones, in words."""
    labels = pc.unique(now["label"]).to_pylist()
    place = pc.index_in(now["image_id"], value_set=old["image_id"].combine_chunks())
    now, then = now.filter(pc.is_valid(place)), old.take(place.drop_null())
    same = {name: pc.equal(*_filled(now, then, name)) for name in now.column_names}
    lost = set(pc.unique(old["label"]).to_pylist()) - set(labels)
    counts = {
        "added": place.null_count,
        "removed": old.num_rows - now.num_rows,
        "relabelled": _count(pc.invert(same["label"])),
        "in another split": _count(pc.invert(same["split"])),
        "weighed anew": _count(pc.invert(same["weight"])),
        "moved": _count(pc.and_(pc.invert(same["uri"]), same["label"])),
    }
    said = [f"{n:,} {what}" for what, n in counts.items() if n]
    said += [f"class {label!r} has no image any more" for label in sorted(lost)]
    return ", ".join(said) or "other files are refused or duplicate"


def _filled(now: pa.Table, then: pa.Table, name: str) -> list[pa.ChunkedArray]:
    nothing = 1 if name == "weight" else ""
    return [pc.fill_null(column, nothing) for column in (now[name], then[name])]


def _count(mask: pa.ChunkedArray) -> int:
    return pc.sum(mask).as_py() or 0


def _summary(scan: Scan) -> str:
    if not _labelled(scan):
        said = f"{scan.manifest.num_rows:,} images without labels"
    else:
        classes = len(tables.counts(scan.manifest["label"]))
        shares = _shares(tables.counts(scan.manifest["split"]))
        said = f"{scan.manifest.num_rows:,} images of {classes} classes ({shares})"
    if scan.duplicates.num_rows:
        said += f", {scan.duplicates.num_rows:,} duplicates"
    return said


def _labelled(scan: Scan) -> bool:
    return scan.manifest["label"].null_count < scan.manifest.num_rows


def _shares(sizes: dict[str, int]) -> str:
    return ", ".join(f"{split} {sizes.get(split, 0):,}" for split in splits.SPLITS)


def _joined(*sentences: str) -> str:
    return "; ".join(filter(None, sentences))


def _findings(scan: Scan) -> tuple[str, ...]:
    """What is to be said of ``scan`` whether or not it changed anything."""
    return refusals.summary(scan.quarantine), _tiny(scan), *scan.notes


def _tiny(scan: Scan) -> str:
    tiny = splits.tiny(scan.manifest) if _labelled(scan) else {}
    said = [f"{label} (no {', '.join(lacks)})" for label, lacks in tiny.items()]
    if len(said) > _NAMED:
        said[_NAMED:] = [f"{len(said) - _NAMED:,} more"]
    return f"too small for all splits: {', '.join(said)}" if said else ""
