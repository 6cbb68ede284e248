"""The page of one run, from templates: written, or as text."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from tl_pipeline.data import split_findings
from tl_pipeline.data.split_report import FEW, SplitReport
from tl_pipeline.encoders import labels
from tl_pipeline.report import cost_picture
from tl_pipeline.report.curves import Panel, panels
from tl_pipeline.runs.records import RunRecord, Tuning
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.files import write_atomically
from tl_pipeline.store.tables import CURVE, PREDICTIONS

# A larger confusion matrix is not readable as a table; the worst pairs are listed.
_MATRIX_CLASSES = 20
_WORST_PAIRS = 12
# Of more classes only the largest and the smallest are listed.
_LISTED_CLASSES = 40
_EXTREME_CLASSES = 12
_BINS = 10
_TEMPLATES = jinja2.Environment(
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    loader=jinja2.FunctionLoader(
        lambda name: (resources.files("tl_pipeline.report") / name).read_text()
    ),
)


class Bin(NamedTuple):
    """Predictions of about one confidence: how many, their mean, how often right."""

    rows: int
    confidence: float
    accuracy: float


def write(store: Store, record: RunRecord) -> Path:
    """Write ``reports/<dataset>/<run_id>.html`` and make it ``latest.html`` too."""
    file = path(store, record)
    file.parent.mkdir(parents=True, exist_ok=True)
    text, latest = render(store, record), file.with_name("latest.html")
    with store.mirror.sending(file, latest):
        write_atomically(file, text)
        write_atomically(latest, text)
    return file


def path(store: Store, record: RunRecord) -> Path:
    """Where the report of ``record`` lies."""
    return store.root / "reports" / record.dataset / f"{record.run_id}.html"


def render(store: Store, record: RunRecord) -> str:
    """The page as text."""
    evaluation = Artifact("evaluations", record.best.evaluation, "")
    rows = tables.read(PREDICTIONS, store.path(evaluation)).to_pylist()
    rows = [row for row in rows if row["split"] == "test"]
    pairs = Counter((row["label"], row["predicted"]) for row in rows)
    classes = sorted({name for pair in pairs for name in pair})
    worst = [(*pair, n) for pair, n in pairs.most_common() if pair[0] != pair[1]]
    return _TEMPLATES.get_template("report.html").render(
        run=record,
        best=record.best,
        short=labels.short(result.encoder for result in record.results),
        classes=classes if len(classes) <= _MATRIX_CLASSES else [],
        pairs=pairs,
        rows_of={name: sum(pairs[name, p] for p in classes) for name in classes},
        worst=worst[:_WORST_PAIRS],
        curves=_curves(store, record),
        decisions=record.decisions,
        reliability=reliability(rows),
        split=record.split_report,
        **(_split(record.split_report) if record.split_report else {}),
        tuning=record.tuning,
        **(_tuning(record.tuning) if record.tuning else {}),
    )


def _curves(store: Store, record: RunRecord) -> dict[str, tuple[Panel, Panel]]:
    """The learning curve of each fine-tuning, by the key of its artifact."""
    keys = [one.finetuned for one in record.finetunings]
    folders = {key: store.path(Artifact("finetuned", key, key)) for key in keys}
    return {
        key: panels(tables.read(CURVE, folder).to_pylist())
        for key, folder in folders.items()
    }


def reliability(rows: Iterable[Mapping[str, Any]]) -> list[Bin]:
    """The bins of a reliability diagram (Niculescu-Mizil & Caruana 2005) of ``rows``.

    Ten of equal width by confidence, those without rows left out.
    """
    bins: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        bins[min(int(row["confidence"] * _BINS), _BINS - 1)].append(row)
    return [
        Bin(
            rows=len(inside),
            confidence=sum(row["confidence"] for row in inside) / len(inside),
            accuracy=sum(row["label"] == row["predicted"] for row in inside)
            / len(inside),
        )
        for _, inside in sorted(bins.items())
    ]


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


def _split(report: SplitReport) -> dict[str, Any]:
    """What ``splits.html`` shows of ``report`` beside the report itself."""
    found = {
        "few": FEW,
        "tiny_classes": split_findings.tiny_classes(report),
        "open_leaks": split_findings.open_leaks(report),
        "closed_leaks": split_findings.closed_leaks(report),
        "leakage": report.leakage and split_findings.leakage(report.leakage),
        "largest_class": max(map(sum, report.classes.values())),
    }
    if len(report.classes) <= _LISTED_CLASSES:
        return {**found, "shown": list(report.classes), "cut": None}
    by_size = sorted(report.classes, key=lambda label: -sum(report.classes[label]))
    hidden = by_size[_EXTREME_CLASSES:-_EXTREME_CLASSES]
    return {
        **found,
        "shown": by_size[:_EXTREME_CLASSES] + by_size[-_EXTREME_CLASSES:],
        "cut": _EXTREME_CLASSES,
        "hidden_sizes": [sum(report.classes[hidden[place]]) for place in (-1, 0)],
    }
