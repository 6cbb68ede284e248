"""Labels of the catalogue in place of the source's: ``class_names``, ``relabel``."""

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tl_pipeline.config.datasets import DatasetSpec
from tl_pipeline.errors import DatasetError
from tl_pipeline.sources import Entry

_BY = ("image_id", "uri")  # what names an image in a row, the first that is there
_NAMED = 3  # of many, in a note


class Corrections:
    """What an entry of the catalogue says of labels, and what came of it."""

    def __init__(self, dataset: DatasetSpec) -> None:
        """Read the file of corrected labels, if the entry names one.

        Raises:
            DatasetError: the file cannot be read, or does not say which label is meant.
        """
        self._names = dataset.class_names
        self._file = dataset.relabel
        self._labels = _read(self._file) if self._file else {}
        self._named, self._used = set[str](), set[str]()
        self._changed = 0

    def apply(self, entry: Entry, image_id: str) -> Entry:
        """``entry`` with the label that counts, None where the file has none for it.

        The file goes before the source; names are given to the source's labels.
        """
        label = entry.label
        if label in self._names:
            self._named.add(label)
            label = self._names[label]
        row = next((key for key in (image_id, entry.uri) if key in self._labels), None)
        if row is not None:
            self._used.add(row)
            self._changed += self._labels[row] != label
            label = self._labels[row]
        return entry if label == entry.label else replace(entry, label=label)

    def notes(self) -> Iterator[str]:
        """What was changed, and what of the entry names nothing."""
        if self._file:
            yield f"{self._changed:,} images relabelled by {self._file.name}"
        if unused := [key for key in self._labels if key not in self._used]:
            yield f"{self._file} names images that are not there: {_shown(unused)}"
        if unnamed := [name for name in self._names if name not in self._named]:
            yield f"class_names: no image is labelled {_shown(unnamed)}"


def _read(file: Path) -> dict[str, str | None]:
    """Image id or uri -> label, None for an empty one."""
    found: dict[str, str | None] = {}
    try:
        with file.open(newline="", encoding="utf-8-sig") as text:
            rows = csv.DictReader(text)
            columns = rows.fieldnames or []
            by = next((name for name in _BY if name in columns), None)
            if by is None or "label" not in columns:
                raise DatasetError(
                    f"{file}: 'relabel' needs a header with label and image_id or uri, "
                    f"and here is {', '.join(columns) or 'nothing'}"
                )
            for row in rows:
                key, label = row[by], (row["label"] or "").strip() or None
                if found.setdefault(key, label) != label:
                    raise DatasetError(
                        f"{file}: {key} has two labels, {found[key]} and {label}; "
                        "leave one"
                    )
    except (OSError, UnicodeError, csv.Error) as error:
        raise DatasetError(f"{file}: 'relabel' cannot be read: {error}") from None
    return found


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if names[_NAMED:] else ""
    return f"{', '.join(names[:_NAMED])}{more}"
