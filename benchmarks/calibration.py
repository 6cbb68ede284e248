"""What calibration does to probabilities, and what label sets and acceptance come to.

``.venv/bin/python benchmarks/calibration.py [STORE]`` trains six heads on four datasets
without calibration, then calibrates the stored predictions on validation and scores
test: our maps (one for all classes) and, for comparison, one isotonic map of each class
against the rest, as scikit-learn makes them. Everything but digits needs the folder of
shared data, at $TL_SHARED or ../shared. A store that is named is kept.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from results import machine, record
from sklearn.isotonic import IsotonicRegression

from tl_pipeline.config.specs import RunSpec
from tl_pipeline.evaluation import operating_point
from tl_pipeline.evaluation.calibration import METHODS, cross_fitted
from tl_pipeline.evaluation.metrics import probability_scores
from tl_pipeline.pipeline import wiring
from tl_pipeline.pipeline.labels import groups_of, units
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.tables import PREDICTIONS

HERE = Path(__file__).parent
SHARED = Path(os.environ.get("TL_SHARED", HERE.parent.parent / "shared"))
WEIGHTS = SHARED / "weights/squeezenet1_0-imagenet-deepcompression.pth"
ERROR = 0.05
HEADS = ("linear", "knn", "naive_bayes", "random_forest", "linear_svm", "mlp")
CATALOG = f"""
version: 1
datasets:
  digits: {{type: digits}}
  hymenoptera: {{type: image_folder, path: {SHARED / "data/hymenoptera"}}}
  cifar: {{type: image_folder, path: {SHARED / "data/cifar10-subset"}}}
  gtsrb:
    type: torchvision
    dataset: GTSRB
    path: {SHARED / "data/gtsrb-root"}
    split: {{strategy: group}}
"""
TITLE = "Calibration, label sets and acceptance at an error rate of 5 %"
PER_CLASS = "isotonic per class"


def per_class(p: np.ndarray, targets: np.ndarray, new: np.ndarray) -> np.ndarray:
    """One isotonic map of each class against the rest, brought to sum 1."""
    maps = [
        IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(
            p[:, k], targets == k
        )
        for k in range(p.shape[1])
    ]
    found = np.stack([m.predict(new[:, k]) for k, m in enumerate(maps)], axis=1)
    total = found.sum(axis=1, keepdims=True)
    even = np.full_like(found, 1 / p.shape[1])
    return np.divide(found, total, out=even, where=total > 0)


def lines(rows: list[dict], classes: list[str], groups: dict[str, str]) -> list[str]:
    """A row of the table for every method, from predictions without calibration."""
    split = {
        name: [row for row in rows if row["split"] == name]
        for name in ("validation", "test")
    }
    p, new = (
        np.array([row["probabilities"] for row in of], np.float32)
        for of in split.values()
    )
    place = {name: k for k, name in enumerate(classes)}
    targets, right = (
        np.array([place.get(row["label"], -1) for row in of]) for of in split.values()
    )
    belongs = units([row["image_id"] for row in split["validation"]], groups)
    labels = np.array([row["label"] for row in split["test"]])
    found = []
    for method in (*METHODS, PER_CLASS):
        if method == PER_CLASS:
            calibrated, decided = per_class(p, targets, new), "| | |"
        else:
            crossed = cross_fitted(method, p, targets, belongs)
            point = operating_point.fit(method, p, crossed, targets, belongs, ERROR)
            calibrated = point.calibration.apply(new)
            sets, kept = point.sets(calibrated), point.accepted(calibrated)
            wrong = (calibrated.argmax(axis=1) != right)[kept]
            held = operating_point.held(sets, right)
            error = f"{100 * wrong.mean():.1f} %" if kept.any() else ""
            decided = (
                f"{100 * held.mean():.1f} % / {sets.sum(axis=1).mean():.2f} | "
                f"{100 * kept.mean():.1f} % | {error} |"
            )
        loss, _, ece = probability_scores(labels, classes, calibrated)
        accuracy = (calibrated.argmax(axis=1) == right).mean()
        found.append(
            f"{method} | {100 * accuracy:.1f} % | {loss.value:.3f} | "
            f"{100 * ece.value:.1f} % | {decided}"
        )
    return found


def main(root: Path) -> None:
    """Run, calibrate what was predicted, and record the table."""
    store = Store.open(root)
    store.create()
    file = root / "data_catalog.yaml"
    file.write_text(CATALOG)
    there = WEIGHTS.exists()
    table = []
    for dataset in ("digits", *(("hymenoptera", "cifar", "gtsrb") if there else ())):
        backbone = {"backbone": "squeezenet1_0", "weights": str(WEIGHTS)}
        spec = RunSpec.model_validate(
            {
                "dataset": dataset,
                "backbones": ["lenet5" if dataset == "digits" else backbone],
                "heads": list(HEADS),
                "controls": False,
                "calibration": "none",
            }
        )
        done = wiring.run(wiring.prepare(spec, store, catalog_file=file))
        groups = groups_of(store, Artifact("manifests", done.manifest, ""))
        for result in sorted(done.results, key=lambda result: result.head):
            folder = store.path(Artifact("evaluations", result.evaluation, ""))
            rows = tables.read(PREDICTIONS, folder).to_pylist()
            classes = json.loads((folder / "chosen.json").read_text())["classes"]
            table += [
                f"| {dataset} | {result.head} | {line}"
                for line in lines(rows, classes, groups)
            ]
    missing = "" if there else "No shared data: digits only. "
    head = "| dataset | head | calibration | accuracy | log loss | ECE | sets: coverage"
    record(
        TITLE,
        f"On test, learned from validation. {missing}{machine(('scikit-learn',))}.\n\n"
        f"{head} / size | accepted | wrong of them |\n"
        "|---|---|---|---|---|---|---|---|---|\n" + "\n".join(table),
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
