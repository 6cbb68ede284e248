"""The files of the pages, and whether one has to be made anew.

What makes a page is imported only where there is one to make: a run that changed
nothing makes none.
"""

import hashlib
import json
from functools import cache
from importlib import resources
from pathlib import Path

from tl_pipeline import progress
from tl_pipeline.config.datasets import DatasetSpec
from tl_pipeline.runs.records import RunRecord
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.files import write_atomically

LATEST = "latest.html"
_BEGINNING = 400  # characters of a page in which its content key stands


def render(store: Store, record: RunRecord, dataset: DatasetSpec) -> str:
    """The page as text.

    Raises:
        DamagedArtifact: the evaluation or the manifest of ``record`` cannot be read.
    """
    from tl_pipeline.report import page  # noqa: PLC0415 - jinja2, scipy, Pillow

    return page.render(store, record, dataset, content_key(record))


def write(store: Store, record: RunRecord, dataset: DatasetSpec) -> None:
    """Write ``reports/<dataset>/<run_id>.html`` and make it ``latest.html`` too.

    Nothing is written where ``latest.html`` shows the same artifacts: see
    ``content_key``. A page that cannot be made is told of in one line, as the run has
    ended well.
    """
    try:
        if content_key(record) not in _beginning(store, record):
            _publish(store, record, render(store, record, dataset))
    except Exception as error:  # noqa: BLE001 - whatever it is, the models are there
        why = f"{type(error).__name__}: {error}"
        progress.notice(f"the report was not written: {why}")


def _publish(store: Store, record: RunRecord, text: str) -> None:
    folder = _folder(store, record)
    folder.mkdir(parents=True, exist_ok=True)
    files = folder / f"{record.run_id}.html", folder / LATEST
    with store.mirror.sending(*files):
        for file in files:
            write_atomically(file, text)


def _folder(store: Store, record: RunRecord) -> Path:
    return store.root / "reports" / record.dataset


def path(store: Store, record: RunRecord) -> Path:
    """Where the report of ``record`` lies: its own page, or the last one."""
    folder = _folder(store, record)
    own = f"{record.run_id}.html"
    there = own in store.mirror.listing(folder) or (folder / own).exists()
    return folder / (own if there else LATEST)


def content_key(record: RunRecord) -> str:
    """A digest of what the page of ``record`` shows.

    That is which artifacts it shows, how their model is registered, and this package:
    not which steps of the run found them made already.
    """
    shown = {
        "code": _code(),
        "manifest": record.manifest,
        "results": [[r.role, r.evaluation, r.encoder, r.head] for r in record.results],
        "finetunings": [one.finetuned for one in record.finetunings],
        "tuning": record.tuning and [record.tuning.question, record.tuning.key],
        "model": [record.registered.version, record.registered.champion],
        "source": record.source,
    }
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:32]


@cache
def _code() -> str:
    sha = hashlib.sha256()
    package = resources.files("tl_pipeline.report")
    for folder in (package, package / "templates"):
        for file in sorted(folder.iterdir(), key=lambda file: file.name):
            if file.name.endswith((".py", ".html", ".css", ".js")):
                sha.update(file.read_bytes())
    return sha.hexdigest()


def _beginning(store: Store, record: RunRecord) -> str:
    """The first characters of the latest page, "" where there is none."""
    page = _folder(store, record) / LATEST
    try:
        if store.mirror.url:  # another machine may have written a newer one
            page.unlink(missing_ok=True)
            store.mirror.fetch([page])
        with page.open(encoding="utf-8") as file:
            return file.read(_BEGINNING)
    except FileNotFoundError:
        return ""
