"""A measured value with its interval, as run records keep it."""

from pydantic import BaseModel


class Score(BaseModel):
    """A value and its 95 % interval."""

    value: float
    low: float | None = None
    high: float | None = None
