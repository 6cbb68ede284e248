"""A measured value with its interval, as run records keep it."""

from pydantic import BaseModel

_NORMAL = 1.96  # standard errors on either side of a value, of a 95 % interval


class Score(BaseModel):
    """A value and its 95 % interval."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def share(self) -> str:
        """The value as a share of all: ``97.2 %``."""
        return f"{self.value:.1%}".replace("%", " %")

    @property
    def percent(self) -> str:
        """The same with its interval, if it has one: ``97.2 % [95.1, 98.4]``."""
        if self.low is None or self.high is None:
            return self.share
        return f"{self.share} [{100 * self.low:.1f}, {100 * self.high:.1f}]"

    @property
    def standard_error(self) -> float:
        """That of a normal error whose interval is as wide; 0 without an interval."""
        if self.low is None or self.high is None:
            return 0.0
        return (self.high - self.low) / (2 * _NORMAL)

    @property
    def close(self) -> bool:
        """Whether a difference is above 0, or below it by one standard error at most.

        The one-standard-error rule: Breiman et al. 1984, "Classification and Regression
        Trees", 3.4.3. With few images much that is worse cannot be told apart.
        """
        return -self.value <= self.standard_error
