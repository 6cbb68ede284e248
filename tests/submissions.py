"""Small runs as the registry sees them: a manifest, evaluations and a model folder."""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from tl_pipeline.config.specs import GateSpec
from tl_pipeline.registry import model_folder
from tl_pipeline.registry.registration import Submission
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.keys import digest, key_document
from tl_pipeline.store.tables import MANIFEST, METRICS, PREDICTIONS

GATE = GateSpec()
CLASSES = ("bad", "good")


def submitted(
    store: Store,
    head: str,
    validation: Mapping[str, bool],
    *,
    train: int = 100,
    dataset: str = "photos",
    classes: Sequence[str] = CLASSES,
    others: Iterable[str] = (),
    grid: str = "",
    bad: Sequence[str] = (),
    point: str = "{}",
    gate: GateSpec = GATE,
    metric: str = "accuracy",
    costs: Mapping[str, Mapping[str, float]] | None = None,
) -> Submission:
    """What a run submits whose best is ``head``.

    ``validation`` tells of which of its images it is right; all images are "good", but
    those in ``bad``.
    ``others`` are heads that are worse. ``grid`` is what the evaluation depends on
    besides, and no prediction does.
    """
    images = [(f"train {n}", "train") for n in range(train)]
    images += [(name, "validation") for name in validation]
    manifest = _manifest(store, dataset, images)
    best = _evaluation(store, dataset, head, validation, classes, grid, bad)
    worse = dict.fromkeys(validation, False)
    rest = [_evaluation(store, dataset, one, worse, classes, grid) for one in others]
    model = _model(store, dataset, head, best, classes, point)
    return Submission(
        dataset=dataset,
        manifest=manifest.key,
        images={"train": train, "validation": len(validation)},
        evaluations=(best.key, *(one.key for one in rest)),
        best=best,
        model=model,
        params={"seed": "0", "search": "s"},
        gate=gate,
        metric=metric,
        costs=costs or {},
    )


def right(count: int, wrong: int = 0, first: int = 0) -> dict[str, bool]:
    """``count`` images from number ``first`` on, the last ``wrong`` of them wrong."""
    return {f"image {first + n}": n < count - wrong for n in range(count)}


def _manifest(
    store: Store, dataset: str, images: Sequence[tuple[str, str]]
) -> Artifact:
    rows = [
        {"image_id": name, "uri": name, "label": "good", "split": split, "bytes": 1}
        for name, split in sorted(images)
    ]
    document = key_document("ingest", 1, {"dataset": dataset}, {"rows": digest(rows)})
    data = tables.from_rows(MANIFEST, rows)
    return store.build("manifests", document, partial(tables.write, MANIFEST, data))


def _evaluation(
    store: Store,
    dataset: str,
    head: str,
    validation: Mapping[str, bool],
    classes: Sequence[str],
    grid: str,
    bad: Sequence[str] = (),
) -> Artifact:
    params = {"encoder": "e", "family": head, "control": False, "grid": grid}
    rows = digest([dataset, sorted(validation.items()), list(classes), list(bad)])
    document = key_document("evaluate", 2, params, {"rows": rows})
    key = digest(document)
    value = sum(validation.values()) / len(validation)
    metrics = [
        {
            "evaluation": key,
            "encoder_key": "k" * 32,
            "encoder": "lenet5/c5",
            "family": head,
            "head": head,
            "chosen": True,
            "split": split,
            "metric": metric,
            "value": value,
            "images": len(validation),
        }
        for split in ("validation", "test")
        for metric in ("accuracy", "log_loss")
    ]
    said = [
        {
            "evaluation": key,
            "image_id": name,
            "split": "validation",
            "label": "bad" if name in bad else "good",
            "predicted": "good" if found != (name in bad) else "bad",
            "confidence": 0.9,
            "probabilities": [0.1, 0.9],
        }
        for name, found in sorted(validation.items())
    ]

    def write(folder: Path) -> str:
        tables.write(METRICS, tables.from_rows(METRICS, metrics), folder)
        tables.write(PREDICTIONS, tables.from_rows(PREDICTIONS, said), folder)
        told = {"head": digest(head), "classes": list(classes)}
        (folder / "chosen.json").write_text(json.dumps(told))
        return key

    return store.build("evaluations", document, write)


def _model(
    store: Store,
    dataset: str,
    head: str,
    evaluation: Artifact,
    classes: Sequence[str],
    point: str,
) -> Artifact:
    score = {"value": 0.5, "low": 0.4, "high": 0.6}
    about = {
        "format": 1,
        "encoder_key": "k" * 32,
        "head": digest(head),
        "head_label": head,
        "dataset": dataset,
        "encoder_label": "lenet5/c5",
        "classes": list(classes),
        "metrics": {split: {"accuracy": score} for split in ("validation", "test")},
        "evaluation": evaluation.key,
    }
    document = key_document(
        "register", 1, {"dataset": dataset}, {"evaluation": evaluation.key}
    )

    def write(folder: Path) -> str:
        (folder / "model.json").write_text(json.dumps(about))
        (folder / "calibration.json").write_text(point)
        model_folder.write_mlmodel(folder)
        return digest(document)

    return store.build("models", document, write)
