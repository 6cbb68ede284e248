"""What came of a model's operating point on test images, in numbers and in words."""

from pathlib import Path

from pydantic import BaseModel

from tl_pipeline.data.splits import TEST
from tl_pipeline.errors import DamagedArtifact
from tl_pipeline.score import Score
from tl_pipeline.store import tables
from tl_pipeline.store.tables import METRICS

# The thresholds are of validation rows, which a refitted head has learned.
REFITTED = (
    "calibration and thresholds were learned with the head before the refit; of the "
    "refitted one, which learned from validation too, nothing is promised: test shows "
    "what they come to"
)


class Decisions(BaseModel):
    """The scores of one evaluation on test at the error rate of its operating point.

    A label is in a set from ``least_probability`` on, a prediction is accepted from
    ``least_confidence`` on, or never where that is None.
    ``error_of_accepted`` is None where nothing was accepted, what was ``before``
    calibration where there was none. ``shortage`` tells what is not promised, and why.
    """

    error: float
    method: str
    least_probability: float
    least_confidence: float | None
    accepted: Score
    error_of_accepted: Score | None
    set_size: Score
    set_coverage: Score
    log_loss: Score
    log_loss_before: Score | None
    ece: Score
    ece_before: Score | None
    shortage: str | None

    @property
    def sentence(self) -> str:
        """``at an error rate of 5 %: ...``."""
        wrong = self.error_of_accepted
        kept = f", {_percent(wrong.value)} of them wrong" if wrong else ""
        return (
            f"at an error rate of {100 * self.error:.4g} %: "
            f"{_percent(self.accepted.value)} of test images accepted{kept}; "
            f"prediction sets hold {self.set_size.value:.2f} labels on average, and "
            f"the right one in {_percent(self.set_coverage.value)}"
        )

    @property
    def calibration(self) -> str:
        """``calibration by temperature: log loss 0.41 -> 0.33, ...``."""
        if self.log_loss_before is None or self.ece_before is None:
            return "no calibration"
        loss = f"{self.log_loss_before.value:.3f} -> {self.log_loss.value:.3f}"
        error = f"{_percent(self.ece_before.value)} -> {_percent(self.ece.value)}"
        return (
            f"calibration by {self.method}: log loss {loss}, expected calibration "
            f"error {error}"
        )


def of(folder: Path, *, refitted: bool) -> Decisions | None:
    """Those of the evaluation in ``folder``; None where an older version left none.

    ``refitted``: its head learned from validation too, after the operating point.

    Raises:
        DamagedArtifact: see ``OperatingPoint.read`` and ``tables.read``.
    """
    from tl_pipeline.evaluation.operating_point import OperatingPoint  # noqa: PLC0415
    from tl_pipeline.evaluation.scoring import BEFORE  # noqa: PLC0415 - imports scikit-learn

    point = OperatingPoint.read(folder)
    if point is None:
        return None
    found = {
        row["metric"]: Score(value=row["value"], low=row["low"], high=row["high"])
        for row in tables.read(METRICS, folder).to_pylist()
        if row["chosen"] and row["split"] == TEST
    }
    faults = [fault for fault in (point.shortage, refitted and REFITTED) if fault]
    wanted = ("accepted", "set_size", "set_coverage", "log_loss", "ece")
    if missing := [name for name in wanted if name not in found]:
        raise DamagedArtifact(f"{folder}: no {', '.join(missing)} of test; run again")
    return Decisions(
        error=point.error,
        method=point.calibration.method,
        least_probability=point.least_probability,
        least_confidence=point.least_confidence,
        error_of_accepted=found.get("error_of_accepted"),
        log_loss_before=found.get(f"log_loss{BEFORE}"),
        ece_before=found.get(f"ece{BEFORE}"),
        shortage="; ".join(faults) or None,
        **{name: found[name] for name in wanted},
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
