"""Which inputs a dataset has, in which split each is, and which are alike.

In: entries of a source. Out: the rows of a manifest, its quarantine and its findings.
"""

__all__ = [
    "identity",
    "labels",
    "near_duplicates",
    "overview",
    "reading",
    "refusals",
    "regroup",
    "sampling",
    "scan",
    "split_counts",
    "split_findings",
    "split_report",
    "splits",
    "unchanged",
]
