"""One self-contained HTML page a run: no script, no request leaves the file."""

from collections import Counter
from importlib import resources
from pathlib import Path

import jinja2

from tl_pipeline import tables
from tl_pipeline.artifacts import Artifact, Store, write_atomically
from tl_pipeline.runs import RunRecord
from tl_pipeline.tables import MANIFEST, PREDICTIONS

# A larger confusion matrix is not readable as a table; the worst pairs are listed.
_MATRIX_CLASSES = 20
_WORST_PAIRS = 12


def write(store: Store, record: RunRecord) -> Path:
    """Write ``reports/<dataset>/<run_id>.html`` and make it ``latest.html`` too."""
    file = path(store, record)
    file.parent.mkdir(parents=True, exist_ok=True)
    text = render(store, record)
    write_atomically(file, text)
    write_atomically(file.with_name("latest.html"), text)
    return file


def path(store: Store, record: RunRecord) -> Path:
    """Where the report of ``record`` lies."""
    return store.root / "reports" / record.dataset / f"{record.run_id}.html"


def render(store: Store, record: RunRecord) -> str:
    """The page as text."""
    evaluation = Artifact("evaluations", record.best.evaluation, "")
    rows = tables.read(PREDICTIONS, store.path(evaluation)).to_pylist()
    pairs = Counter(
        (row["label"], row["predicted"]) for row in rows if row["split"] == "test"
    )
    classes = sorted({name for pair in pairs for name in pair})
    manifest = Artifact("manifests", record.manifest, "")
    images = tables.read(MANIFEST, store.path(manifest), ["label", "split"])
    counts = Counter(
        zip(images["label"].to_pylist(), images["split"].to_pylist(), strict=True)
    )
    worst = [(*pair, n) for pair, n in pairs.most_common() if pair[0] != pair[1]]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(
        (resources.files(__name__) / "report.html").read_text()
    )
    return template.render(
        run=record,
        best=record.best,
        classes=classes if len(classes) <= _MATRIX_CLASSES else [],
        pairs=pairs,
        rows_of={name: sum(pairs[name, p] for p in classes) for name in classes},
        worst=worst[:_WORST_PAIRS],
        counts=counts,
        labels=sorted({label for label, _ in counts}),
        splits=("train", "validation", "test"),
        lowest=min(r.test.low or 0 for r in record.results),
    )
