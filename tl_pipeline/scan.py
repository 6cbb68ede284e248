"""One look at a source: every input accepted, refused, or the copy of another."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from tl_pipeline import splits
from tl_pipeline.datasets import DatasetSpec
from tl_pipeline.identity import Facts, Memo, image_id
from tl_pipeline.images import RefusedImage, probe
from tl_pipeline.progress import track
from tl_pipeline.sources import Entry, Source
from tl_pipeline.splits import Unassigned

Row = dict[str, Any]
# Telling the console of each file would cost as much as reading it.
_REPORT_EVERY = 256


@dataclass(frozen=True)
class Scan:
    """Rows of the tables MANIFEST, QUARANTINE and DUPLICATES, each sorted by its key.

    Every input of the source is in exactly one of them.
    """

    manifest: list[Row]
    quarantine: list[Row]
    duplicates: list[Row]

    @property
    def inputs(self) -> int:
        """How many inputs the source has."""
        return len(self.manifest) + len(self.quarantine) + len(self.duplicates)


def scan(source: Source, dataset: DatasetSpec, memo: Memo) -> Scan:
    """Read what ``memo`` does not know of ``source`` and draw the splits."""
    accepted: dict[str, list[tuple[Entry, Facts]]] = defaultdict(list)
    quarantine: list[Row] = []
    unreported = 0
    with track(f"ingest {dataset.name}", total=0) as progress:
        for entry in source.entries():
            try:
                facts = _facts(entry, source, memo)
                accepted[facts.image_id].append((entry, facts))
            except RefusedImage as refusal:
                quarantine.append(_refused(entry, refusal.reason, refusal.detail))
            unreported += 1
            if unreported == _REPORT_EVERY:
                progress.advance(unreported)
                unreported = 0
        progress.advance(unreported)
    memo.save()
    kept: list[tuple[Entry, Facts]] = []
    duplicates: list[Row] = []
    for same in accepted.values():
        if len({entry.label for entry, _ in same}) > 1:
            quarantine += _conflicting(same)
            continue
        (entry, facts), *others = sorted(same, key=_preference)
        kept.append((entry, facts))
        duplicates += [_duplicate(other, entry, facts) for other, _ in others]
    sides = splits.assign(
        [
            Unassigned(facts.image_id, str(entry.label), entry.group, entry.split)
            for entry, facts in kept
        ],
        dataset.split,
    )
    rows = [
        _row(entry, facts, side)
        for (entry, facts), side in zip(kept, sides, strict=True)
    ]
    return Scan(
        sorted(rows, key=lambda row: row["image_id"]),
        sorted(quarantine, key=lambda row: row["uri"]),
        sorted(duplicates, key=lambda row: row["uri"]),
    )


def _facts(entry: Entry, source: Source, memo: Memo) -> Facts:
    facts = memo.get(entry) or _read(entry, source, memo)
    # Last, so that what is no image at all is refused for that.
    if not entry.label:
        raise RefusedImage("no label", "the source tells no class for it")
    return facts


def _read(entry: Entry, source: Source, memo: Memo) -> Facts:
    try:
        data = source.read(entry.uri)
    except OSError as error:
        raise RefusedImage("unreadable", f"{error}") from None
    width, height = probe(data)
    facts = Facts(image_id(data), width, height, len(data))
    memo.put(entry, facts)
    return facts


def _conflicting(same: list[tuple[Entry, Facts]]) -> list[Row]:
    """Refuse copies of one image under different labels: who is right is unknown."""
    labels = sorted({str(entry.label) for entry, _ in same})
    detail = f"the same image is labelled {', '.join(labels)}"
    return [
        _refused(entry, "conflicting labels", detail, facts.image_id)
        for entry, facts in same
    ]


def _preference(copy: tuple[Entry, Facts]) -> tuple[int, str]:
    """Which of several copies to keep: that in a test split, then validation, train.

    A score must not be earned on an image that was also learned from.
    """
    rank = {splits.TEST: 0, splits.VALIDATION: 1}
    return rank.get(copy[0].split or "", 2), copy[0].uri


def _row(entry: Entry, facts: Facts, split: str) -> Row:
    return {
        "image_id": facts.image_id,
        "uri": entry.uri,
        "label": entry.label,
        "split": split,
        "width": facts.width,
        "height": facts.height,
        "bytes": facts.bytes,
        "group": entry.group,
    }


def _refused(
    entry: Entry, reason: str, detail: str, image_id: str | None = None
) -> Row:
    return {
        "uri": entry.uri,
        "reason": reason,
        "detail": detail,
        "image_id": image_id,
    }


def _duplicate(entry: Entry, kept: Entry, facts: Facts) -> Row:
    return {
        "uri": entry.uri,
        "image_id": facts.image_id,
        "kept_uri": kept.uri,
        "declared_split": entry.split,
    }
