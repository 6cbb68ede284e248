"""How often 95 % intervals hold the truth, where rows come in groups.

``.venv/bin/python benchmarks/coverage.py [--tries 2000]`` draws data sets of films
whose frames are right or wrong alike, at intra-class correlations from none to strong,
and records in RESULTS.md the share of intervals that hold the true value: beside each
that of the interval which takes all rows for independent. Equal lengths and lengths
that differ widely (a geometric law) take turns, so each figure is of both.
"""

import argparse
from collections.abc import Callable

import numpy as np
from results import machine, record
from scipy import stats

from tl_pipeline.evaluation import intervals, metrics
from tl_pipeline.evaluation.predicted_rows import PredictedRows
from tl_pipeline.score import Score

CORRELATIONS = (0.0, 0.1, 0.3, 0.7)
FILMS = (
    (5, 60),
    (10, 30),
    (20, 20),
    (60, 20),
    (300, 5),
)  # how many, and frames of each
CLASSES = 5
TITLE = "Coverage of 95 % intervals where images come in groups"

# The interval by groups, the one as if there were none, and the truth.
Found = tuple[Score, Score, float]
# Of a generator, the film of each frame, and the correlation.
_Case = Callable[[np.random.Generator, np.ndarray, float], Found]


def films(
    chance: np.random.Generator, number: int, each: int, trial: int
) -> np.ndarray:
    """The film of each frame."""
    sizes = np.full(number, each) if trial % 2 else chance.geometric(1 / each, number)
    return np.repeat(np.arange(number), sizes)


def latent(
    chance: np.random.Generator, units: np.ndarray, correlation: float, shared: float
) -> np.ndarray:
    """Normal numbers (2, n) of two heads; films and frames share a part ``shared``."""
    count = units.max() + 1
    both = chance.normal(size=count) * shared**0.5
    own = chance.normal(size=(2, count)) * (1 - shared) ** 0.5
    frame = chance.normal(size=len(units)) * 0.5**0.5
    noise = chance.normal(size=(2, len(units))) * 0.5**0.5
    return correlation**0.5 * (both + own)[:, units] + (1 - correlation) ** 0.5 * (
        frame + noise
    )


def accuracy(rate: float) -> _Case:
    """Of a head that is right in the share ``rate``."""

    def case(
        chance: np.random.Generator, units: np.ndarray, correlation: float
    ) -> Found:
        right = latent(chance, units, correlation, 0.6)[0] < stats.norm.ppf(rate)
        alone = intervals.share(right, np.arange(len(units)))
        return intervals.share(right, units), alone, rate

    return case


def gain(chance: np.random.Generator, units: np.ndarray, correlation: float) -> Found:
    """Of two heads that are right in 90 and 80 of 100."""
    first, second = latent(chance, units, correlation, 0.6) < np.array(
        [[stats.norm.ppf(0.9)], [stats.norm.ppf(0.8)]]
    )
    alone = np.arange(len(units))
    return (
        intervals.paired_difference(first, second, units, 0),
        intervals.paired_difference(first, second, alone, 0),
        0.1,
    )


def _loss(level: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, -(2 + 2 * level))


LOSS = float(_loss(np.random.default_rng(0).normal(size=2_000_000)).mean())


def log_loss(
    chance: np.random.Generator, units: np.ndarray, correlation: float
) -> Found:
    """Of probabilities that are sure in most films and wrong in few."""
    values = _loss(latent(chance, units, correlation, 0.6)[0])
    alone = intervals.mean(values, np.arange(len(units)))
    return intervals.mean(values, units), alone, LOSS


RATES = np.linspace(0.6, 0.95, CLASSES)


def balanced(
    chance: np.random.Generator, units: np.ndarray, correlation: float
) -> Found:
    """Balanced accuracy of five classes that are right in 60 to 95 of 100."""
    truth = chance.integers(CLASSES, size=len(units))
    right = latent(chance, units, correlation, 0.6)[0] < stats.norm.ppf(RATES[truth])
    other = (truth + chance.integers(1, CLASSES, size=len(units))) % CLASSES
    proba = np.eye(CLASSES)[np.where(right, truth, other)]
    names = [str(k) for k in range(CLASSES)]
    labels = truth.astype(str)
    found = [
        metrics.scores(PredictedRows(labels, names, proba, of), 0)["balanced_accuracy"]
        for of in (units, np.arange(len(units)))
    ]
    return found[0], found[1], float(RATES.mean())


DRAWS, OF_DRAWS = 10, 0.1


def few_shot(
    chance: np.random.Generator, units: np.ndarray, correlation: float
) -> Found:
    """Heads of ten draws on the same frames; beside it Student's over draws alone."""
    frames = latent(chance, units, correlation, 1.0)[0]
    noise = chance.normal(size=(DRAWS, len(units))) * 0.5
    level = frames + noise + OF_DRAWS * chance.normal(size=(DRAWS, 1))
    right = level < 1
    means = right.mean(axis=1)
    half = stats.t.ppf(0.975, DRAWS - 1) * means.std(ddof=1) / DRAWS**0.5
    centre = float(means.mean())
    alone = Score(value=centre, low=centre - half, high=centre + half)
    truth = float(stats.norm.cdf(1 / (1 + 0.25 + OF_DRAWS**2) ** 0.5))
    return intervals.share_of_draws(right, units), alone, truth


CASES: dict[str, tuple[_Case, float]] = {  # and what share of the tries each takes
    "accuracy 0.7": (accuracy(0.7), 1),
    "accuracy 0.9": (accuracy(0.9), 1),
    "gain, 0.9 against 0.8": (gain, 0.5),
    "log loss": (log_loss, 1),
    "balanced accuracy": (balanced, 0.25),
    "few-shot, ten draws": (few_shot, 0.5),
}


def held(found: Score, truth: float) -> bool:
    """Whether the interval holds the truth."""
    assert found.low is not None
    assert found.high is not None
    return found.low <= truth <= found.high


def covered(
    case: _Case, number: int, each: int, correlation: float, tries: int
) -> tuple[float, float]:
    """The share of intervals that hold the truth: by groups, and as if without."""
    chance, hits = np.random.default_rng(0), np.zeros(2)
    for trial in range(tries):
        units = films(chance, number, each, trial)
        grouped, alone, truth = case(chance, units, correlation)
        hits += held(grouped, truth), held(alone, truth)
    return hits[0] / tries, hits[1] / tries


def main() -> None:
    """Draw, count, and record the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--tries", type=int, default=2000)
    tries = arguments.parse_args().tries
    lines = []
    for name, (case, share) in CASES.items():
        for number, each in FILMS:
            cells = [
                covered(case, number, each, correlation, int(tries * share))
                for correlation in CORRELATIONS
            ]
            shown = " | ".join(f"{100 * a:.1f} ({100 * b:.0f})" for a, b in cells)
            lines.append(f"| {name} | {number} x {each} | {shown} |")
            print(lines[-1], flush=True)
    heads = " | ".join(f"{correlation:g}" for correlation in CORRELATIONS)
    record(
        TITLE,
        f"`python benchmarks/coverage.py --tries {tries}`; {machine(('scipy',))}.\n\n"
        "The share of intervals that hold the truth, in %; in brackets that of the "
        "interval which takes all rows for independent (of few-shot: Student's over "
        "draws alone). Columns are intra-class correlations, of the numbers whose sign "
        "tells whether a frame is right; half of the data sets have films of equal "
        "length, half of lengths by a geometric law. "
        f"{tries:,} data sets a figure; of gain and few-shot half as many, of balanced "
        "accuracy a quarter.\n\n"
        f"| | films x frames | {heads} |\n|---|---|{'---|' * len(CORRELATIONS)}\n"
        + "\n".join(lines),
    )


if __name__ == "__main__":
    main()
