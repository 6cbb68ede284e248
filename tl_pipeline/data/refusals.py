"""What is said of inputs that were refused."""

import pyarrow as pa

from tl_pipeline.config.datasets import DatasetSpec
from tl_pipeline.errors import DatasetError, TooManyRefused
from tl_pipeline.store import tables
from tl_pipeline.store.embeddings import RETRIED

_NAMED = 5  # of many, in an error
_FEW = 2  # of many, in one line


def check(
    dataset: DatasetSpec, inputs: int, quarantine: pa.Table, labels: pa.ChunkedArray
) -> None:
    """See that enough of the ``inputs`` of ``dataset`` can be used.

    ``quarantine`` has those that were refused, ``labels`` are those of all others. A
    dataset without labels may be empty, as a folder is when nothing new has come.

    Raises:
        TooManyRefused: none can, or more are refused than ``max_quarantined`` allows.
    """
    refused = quarantine.num_rows
    reasons = tables.counts(quarantine["reason"])
    counts = ", ".join(f"{n:,} {reason}" for reason, n in reasons.items())
    first = "\n  ".join(("", *details(quarantine)))
    if not inputs and not dataset.labelled:
        return
    if not len(labels):
        raise TooManyRefused(
            f"{dataset.name}: none of {inputs:,} inputs can be used ({counts}). The "
            f"first of them:{first}"
        )
    if refused > dataset.max_quarantined * inputs:
        unexpected = _unexpected(dataset, labels)
        also = f" It holds {unexpected}." if unexpected else ""
        raise TooManyRefused(
            f"{dataset.name}: {refused:,} of {inputs:,} inputs were refused "
            f"({counts}), more than max_quarantined = {dataset.max_quarantined:g} "
            f"allows.{also} The first of them:{first}"
        )


def check_expected(dataset: DatasetSpec, labels: pa.ChunkedArray) -> None:
    """See that images with these ``labels`` are what ``expect`` says.

    Raises:
        DatasetError: there are more or fewer images or classes.
    """
    if unexpected := _unexpected(dataset, labels):
        raise DatasetError(
            f"{dataset.name} holds {unexpected}. Look at what changed, or correct "
            "'expect' in the dataset entry"
        )


def _unexpected(dataset: DatasetSpec, labels: pa.ChunkedArray) -> str:
    found = {"images": len(labels)}
    if not labels.null_count:
        found["classes"] = len(tables.counts(labels))
    return " and ".join(
        f"{found[name]:,} {name} instead of {number:,}"
        for name, number in dataset.expect
        if number is not None and number != found.get(name, number)
    )


def may_pass(quarantine: pa.Table) -> bool:
    """Whether some of these inputs may be read another time."""
    return any(why in RETRIED for why in tables.counts(quarantine["reason"]))


def summary(quarantine: pa.Table) -> str:
    """``1,203 refused: a.jpg (empty), b.jpg (truncated) ...``; "" if there are none."""
    if not quarantine.num_rows:
        return ""
    rows = tables.values(quarantine[:_FEW], "uri", "reason")
    first = ", ".join(f"{_name(uri)} ({reason})" for uri, reason in rows)
    more = " ..." if quarantine.num_rows > _FEW else ""
    return f"{quarantine.num_rows:,} refused: {first}{more}"


def details(quarantine: pa.Table, most: int = _NAMED) -> list[str]:
    """The first refused inputs, each with its reason."""
    rows = tables.values(quarantine[:most], "uri", "reason", "detail")
    return [
        f"{_name(uri)}: {reason} ({detail.removeprefix(_name(uri)).lstrip(':; ')})"
        for uri, reason, detail in rows
    ]


def _name(uri: str) -> str:
    """``uri`` without the reason that a source has put into it."""
    return uri.partition("#refused=")[0]
