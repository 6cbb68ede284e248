"""How two runs differ: data, encoders, heads, scores, predictions, champion."""

# pyarrow.compute is filled when it is imported.
# pyright: reportAttributeAccessIssue=false

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel

from tl_pipeline.config.encoder_specs import texts_of
from tl_pipeline.config.specs import RunSpec
from tl_pipeline.data import split_counts
from tl_pipeline.evaluation import scored_rows
from tl_pipeline.evaluation.intervals import paired_difference
from tl_pipeline.evaluation.scored_rows import Compared
from tl_pipeline.runs.records import Registered, Result, RunRecord
from tl_pipeline.score import Score
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.tables import MANIFEST

_COLUMNS = ("image_id", "uri", "split", "label")


class ImageChange(BaseModel):
    """An image that entered or left, or that has another split or label now.

    As a row of the SQL view ``changes``, which is of each run and the one before.
    """

    image_id: str
    uri: str
    label: str | None
    change: str
    before: str | None
    after: str | None


class Flip(BaseModel):
    """A test image that the best head of either run predicts otherwise."""

    image_id: str
    uri: str
    label: str
    before: str
    after: str


class ScoreChange(BaseModel):
    """One head on one encoder in both runs, or in one of them.

    ``before`` and ``after`` are test accuracies. ``difference`` is after minus before
    on the ``images`` of test that both scored, with the interval of the pairs; None
    where either is missing or both are the same evaluation.
    """

    encoder: str
    head_before: str | None
    head_after: str | None
    before: Score | None
    after: Score | None
    same: bool
    difference: Score | None = None
    images: int = 0


class Difference(BaseModel):
    """What is another in the run ``after`` than in the run ``before``.

    ``settings`` are those of the run. ``changes`` are None where a manifest is gone,
    ``flips`` where the evaluation of a best head is. Of the ``compared`` test images
    ``won`` became right and ``lost`` wrong.
    """

    before: str
    after: str
    settings: list[str]
    images_before: int
    images_after: int
    changes: list[ImageChange] | None
    encoders_new: list[str]
    encoders_gone: list[str]
    scores: list[ScoreChange]
    compared: int = 0
    won: int = 0
    lost: int = 0
    flips: list[Flip] | None = None
    registered_before: Registered
    registered_after: Registered

    @property
    def counts(self) -> dict[str, int]:
        """How many images changed in each way."""
        return dict(Counter(one.change for one in self.changes or []))


def between(store: Store, before: RunRecord, after: RunRecord) -> Difference:
    """How the run ``after`` differs from the run ``before``."""
    was, now = manifests = [_manifest(store, record) for record in (before, after)]
    gone = was is None or now is None
    encoders_before, encoders_after = map(_encoders, (before, after))
    found = Difference(
        before=before.run_id,
        after=after.run_id,
        settings=_settings(before.spec, after.spec),
        images_before=before.images,
        images_after=after.images,
        changes=None if gone else list(_changes(was, now)),
        encoders_new=_only(encoders_after, encoders_before),
        encoders_gone=_only(encoders_before, encoders_after),
        scores=[_score(store, *pair) for pair in _pairs(before.results, after.results)],
        registered_before=before.registered,
        registered_after=after.registered,
    )
    both = _compared(store, before.best, after.best)
    if both is None:
        return found
    right, before_right = both.right
    return found.model_copy(
        update={
            "compared": len(right),
            "won": int((right & ~before_right).sum()),
            "lost": int((before_right & ~right).sum()),
            "flips": _flips(both, manifests),
        }
    )


def _settings(before: RunSpec, after: RunSpec) -> list[str]:
    """Each that differs, as ``name: before -> after``."""
    was, now = map(_as_typed, (before, after))
    return [f"{n}: {was[n]} -> {now[n]}" for n in now if was[n] != now[n]]


def _as_typed(spec: RunSpec) -> dict[str, str]:
    """The settings as the flow takes them, lists as words."""
    told = spec.model_dump(mode="json") | {
        "backbones": [str(texts_of(one)) for one in spec.backbones],
        "heads": [one.short() for one in spec.heads],
        "finetune": [one.short() for one in spec.finetune],
        "search": spec.search.short(),
    }
    return {
        name: ", ".join(value) if isinstance(value, list) else str(value)
        for name, value in told.items()
    }


def _manifest(store: Store, record: RunRecord) -> pa.Table | None:
    made = store.find("manifests", record.manifest)
    return tables.read(MANIFEST, store.path(made), _COLUMNS) if made else None


def _changes(before: pa.Table, after: pa.Table) -> Iterator[ImageChange]:
    """Those of each image, by uri."""
    both = split_counts.side_by_side(before, after)
    same = pc.and_(
        pc.equal(both["split"], both["old_split"]),
        pc.fill_null(pc.equal(both["label"], both["old_label"]), True),
    )
    changed = both.filter(pc.invert(pc.fill_null(same, False)))
    for row in sorted(changed.to_pylist(), key=lambda r: r["uri"] or r["old_uri"]):
        now, was = row["split"], row["old_split"]
        change = "entered" if was is None else "left" if now is None else "moved"
        told = {
            "image_id": row["image_id"],
            "uri": row["uri"] or row["old_uri"],
            "label": row["label"] if now else row["old_label"],
        }
        if now != was:
            yield ImageChange(**told, change=change, before=was, after=now)
        labels = row["old_label"], row["label"]
        if None not in (now, was) and labels[0] != labels[1]:
            yield ImageChange(
                **told, change="relabelled", before=labels[0], after=labels[1]
            )


def _encoders(record: RunRecord) -> Mapping[str, str]:
    """Key -> label of what the run embedded with."""
    return {
        step.keys["encoder"]: step.subject
        for step in record.steps
        if step.stage == "embed" and "encoder" in step.keys
    }


def _only(these: Mapping[str, str], those: Mapping[str, str]) -> list[str]:
    return [label for key, label in these.items() if key not in those]


def _pairs(
    before: Iterable[Result], after: Iterable[Result]
) -> Iterator[tuple[Result | None, Result | None]]:
    """Candidates on one encoder with one head, those of ``after`` in their order.

    Where a run has several heads of one name there, their parameters tell them apart.
    """
    was, now = (
        [one for one in results if one.role != "control"] for results in (before, after)
    )
    names = [Counter(_name(one) for one in side) for side in (was, now)]

    def place(one: Result) -> tuple[str, str]:
        alone = all(side[_name(one)] <= 1 for side in names)
        return _name(one) if alone else (one.encoder, one.head)

    left = {place(one): one for one in was}
    for one in now:
        yield left.pop(place(one), None), one
    for one in left.values():
        yield one, None


def _name(one: Result) -> tuple[str, str]:
    return one.encoder, one.head.partition("(")[0]


def _score(store: Store, before: Result | None, after: Result | None) -> ScoreChange:
    one = after or before
    assert one  # noqa: S101 - of a pair one is there
    found = ScoreChange(
        encoder=one.encoder,
        head_before=before and before.head,
        head_after=after and after.head,
        before=before and before.test,
        after=after and after.test,
        same=bool(before and after and before.evaluation == after.evaluation),
    )
    if found.same or before is None or after is None:
        return found
    both = _compared(store, before, after)
    if both is None or not len(both.units):
        return found
    difference = paired_difference(*both.right, both.units, seed=0)
    return found.model_copy(
        update={"difference": difference, "images": len(both.units)}
    )


def _compared(store: Store, before: Result, after: Result) -> Compared | None:
    """``after`` and ``before`` on test images of both; None where one is gone."""
    now, was = (store.find("evaluations", one.evaluation) for one in (after, before))
    return scored_rows.compared(store, now, was, on_test=True) if now and was else None


def _flips(both: Compared, manifests: Sequence[pa.Table | None]) -> list[Flip]:
    """The images of ``both`` that are predicted otherwise, by uri."""
    changed = both.first != both.second
    ids = both.image_ids.filter(pa.array(changed))
    uris: dict[str, str] = {}
    for table in manifests:
        if table is not None:
            rows = table.filter(pc.is_in(table["image_id"], value_set=ids))
            names = (rows[name].to_pylist() for name in ("image_id", "uri"))
            uris |= dict(zip(*names, strict=True))
    named = (
        [both.names[number] for number in numbers[changed]]
        for numbers in (both.truth, both.second, both.first)
    )
    found = [
        Flip(image_id=i, uri=uris.get(i, ""), label=label, before=was, after=now)
        for i, label, was, now in zip(ids.to_pylist(), *named, strict=True)
    ]
    return sorted(found, key=lambda flip: flip.uri)
