"""Numbers about predictions: scores, intervals, calibration, comparison, choice.

In: class probabilities and labels as arrays or tables. Out: numbers, and the operating
point of a model.
"""

__all__ = [
    "averaging",
    "calibration",
    "choice",
    "class_scores",
    "cross_fitting",
    "decisions",
    "intervals",
    "metrics",
    "operating_point",
    "scored_rows",
    "scoring",
]
