"""What a run would do and what a finished run says of itself.

In: keys and evaluations. Out: steps with reasons, and the record that query, report
and the next plan read.
"""

__all__ = [
    "controls",
    "differences",
    "finetunings",
    "origins",
    "planning",
    "records",
    "results",
    "shortcuts",
    "summary",
]
