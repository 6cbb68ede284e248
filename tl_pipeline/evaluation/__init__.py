"""Numbers about predictions: scores, intervals, calibration, comparison, choice.

In: class probabilities and labels as arrays or tables. Out: numbers, and the operating
point of a model.
"""

__all__ = [
    "averaging",
    "calibration",
    "choice",
    "class_scores",
    "comparison",
    "costs",
    "cross_fitting",
    "decisions",
    "drift",
    "intervals",
    "metrics",
    "one_vs_rest",
    "operating_point",
    "predicted_rows",
    "scored_rows",
    "scoring",
]
