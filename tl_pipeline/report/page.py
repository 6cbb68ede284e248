"""The page of one run as text, from templates."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jinja2
import numpy as np

from tl_pipeline.config.datasets import DatasetSpec
from tl_pipeline.data import split_findings
from tl_pipeline.data.split_report import FEW, SplitReport
from tl_pipeline.data.splits import SPLITS, TRAIN, VALIDATION
from tl_pipeline.encoders import labels
from tl_pipeline.errors import TransferLearningError
from tl_pipeline.report import (
    class_table,
    confusion,
    cost_picture,
    doubtful_labels,
    duplicate_pairs,
    embedded,
    embedding_map,
    forest,
    gallery,
    history,
    score_table,
    tested,
    verdict,
)
from tl_pipeline.report.curves import Panel, panels
from tl_pipeline.report.embedding_map import EmbeddingMap
from tl_pipeline.report.reliability import reliability
from tl_pipeline.report.tested import PredictedTest
from tl_pipeline.report.thumbnails import Thumbnail, Thumbnails
from tl_pipeline.runs import summary
from tl_pipeline.runs.records import Result, RunRecord, Tuning
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.tables import CURVE

_Found = TypeVar("_Found")
TEMPLATES = jinja2.Environment(
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    loader=jinja2.PackageLoader("tl_pipeline.report"),
)


class Unavailable(NamedTuple):
    """What stands in place of a picture that could not be made."""

    reason: str


def render(
    store: Store, record: RunRecord, dataset: DatasetSpec, content_key: str
) -> str:
    """The page as text; ``content_key`` stands near its beginning.

    Raises:
        DamagedArtifact: the evaluation or the manifest of ``record`` cannot be read.
    """
    predicted = tested.read(store, record.best.evaluation)
    thumbnails = Thumbnails(store, record.manifest, dataset)
    pictures = _pictures(store, record, predicted, thumbnails)
    whole = not thumbnails.failed and not any(
        isinstance(picture, Unavailable) for picture in pictures.values()
    )
    # A page with gaps has no key, so that the next run tries again.
    return TEMPLATES.get_template("report.html").render(
        content_key=content_key if whole else "",
        run=record,
        best=record.best,
        short=labels.short(result.encoder for result in record.results),
        verdict=verdict.of(store, record, predicted, dataset.modality),
        forest=forest.plot(record.results),
        matrix=confusion.matrix(predicted),
        pairs=confusion.worst_pairs(predicted),
        class_names=predicted.classes,
        tested=predicted,
        gallery_shown=gallery.SHOWN,
        hues=_hues(predicted.classes),
        curves=_curves(store, record),
        decisions=record.decisions,
        looks=summary.looks(record),
        reliability=reliability(predicted.confidence, predicted.right),
        comparisons={one.evaluation: one for one in record.comparisons},
        **_history(store, record),
        split=record.split_report,
        **_split(record.split_report),
        shortcut=record.split_report and _shortcut(record.split_report, record.best),
        split_names=SPLITS,
        class_table=class_table.table(
            store, record.best.evaluation, predicted, record.split_report
        ),
        score_table=score_table.table(store, record.best.evaluation),
        class_numbers={name: at for at, name in enumerate(predicted.classes)},
        tuning=record.tuning,
        **(_tuning(record.tuning) if record.tuning else {}),
        **pictures,
        noun=dataset.modality,
    )


def _pictures(
    store: Store, record: RunRecord, predicted: PredictedTest, thumbnails: Thumbnails
) -> dict[str, Any]:
    """What needs embeddings or the bytes of the source, by name."""

    def errors() -> gallery.Gallery:
        rows = gallery.chosen(predicted)
        ids = predicted.image_ids[rows].tolist()
        learned = _learned(record, thumbnails)
        vectors = embedded.of_best(store, record)
        near = vectors.nearest(ids, learned) if ids else {}
        made = thumbnails.of([*ids, *(one.image_id for one in near.values())])
        return gallery.hang(predicted, rows, near, made)

    def places() -> tuple[EmbeddingMap, dict[int, Thumbnail]] | None:
        vectors = embedded.of_best(store, record)
        found = embedding_map.draw_map(vectors, predicted)
        if found is None:
            return None
        pixels = _pixels(predicted, thumbnails)
        rows = embedding_map.with_pictures(predicted, found, pixels)
        made = thumbnails.of(predicted.image_ids[rows].tolist())
        return found, {row: made[predicted.image_ids[row]] for row in rows}

    best = next(r for r in record.results if r.role != "control" and not r.members)
    return {
        "nearest_by": best.encoder,
        "gallery": _tried(errors),
        "map": _tried(places),
        "doubtful_labels": _tried(
            lambda: doubtful_labels.find(store, record.best.evaluation, thumbnails)
        ),
        "duplicate_pairs": _tried(
            lambda: duplicate_pairs.find(store, record.manifest, thumbnails)
        ),
    }


def _hues(classes: list[str]) -> dict[str, int]:
    """The colour of each class in degrees, none of them the red of errors."""
    return {name: 35 + round(177 * number) % 290 for number, name in enumerate(classes)}


def _tried(make: Callable[[], _Found]) -> _Found | Unavailable:
    """What ``make`` gives, or why it is not to be had."""
    try:
        return make()
    except TransferLearningError as error:
        return Unavailable(str(error))


def _learned(record: RunRecord, thumbnails: Thumbnails) -> list[str]:
    """The ids of the images that the final head learned from."""
    sides = {TRAIN, VALIDATION} if record.spec.search.refit else {TRAIN}
    images = thumbnails.manifest
    names = zip(
        images["image_id"].to_pylist(), images["split"].to_pylist(), strict=True
    )
    return [image_id for image_id, split in names if split in sides]


def _pixels(predicted: PredictedTest, thumbnails: Thumbnails) -> np.ndarray:
    """Of each test image, (n,); 0 for what is no image."""
    rows = thumbnails.rows(predicted.image_ids.tolist())
    names = ("width", "height")
    width, height = (rows[name].fill_null(0).to_numpy() for name in names)
    return width.astype(float) * height


def _curves(store: Store, record: RunRecord) -> dict[str, tuple[Panel, Panel]]:
    """The learning curve of each fine-tuning, by the key of its artifact."""
    keys = [one.finetuned for one in record.finetunings]
    folders = {key: store.path(Artifact("finetuned", key, key)) for key in keys}
    return {
        key: panels(tables.read(CURVE, folder).to_pylist())
        for key, folder in folders.items()
    }


def _history(store: Store, record: RunRecord) -> dict[str, Any]:
    """What ``history.html`` shows."""
    found = history.of(store, record)
    encoders = [run.record.best.encoder for run in found.runs] if found else []
    return {"history": found, "run_names": labels.short(encoders)}


def _tuning(tuning: Tuning) -> dict[str, Any]:
    """What ``tuning.html`` shows of ``tuning`` beside itself."""
    compared = [one.encoder for one in tuning.candidates]
    short = labels.short([*compared, *tuning.dropped, *tuning.unaffordable])
    return {
        "tuning_names": short,
        "tuning_dropped": [short[label] for label in tuning.dropped],
        "tuning_left_out": [short[label] for label in tuning.unaffordable],
        "costs": cost_picture.picture(tuning),
    }


def _shortcut(report: SplitReport, best: Result) -> tuple[str, bool] | None:
    """What files tell without their images, and whether that is much."""
    found = report.shortcut
    return found and (split_findings.shortcut(found), found.strong(best.test))


def _split(report: SplitReport | None) -> dict[str, Any]:
    """What templates show of ``report`` beside the report itself."""
    if report is None:  # an older record
        return {"tiny_classes": []}
    return {
        "few": FEW,
        "tiny_classes": split_findings.tiny_classes(report),
        "open_leaks": split_findings.open_leaks(report),
        "closed_leaks": split_findings.closed_leaks(report),
        "leakage": report.leakage and split_findings.leakage(report.leakage),
    }
