"""Paired tests of candidates, what is a tie, and which of a tie is chosen."""

from itertools import pairwise

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, matthews_corrcoef

from tl_pipeline.evaluation import choice, comparison, metrics
from tl_pipeline.evaluation.choice import Candidate, Comparison, Cost, HeldOutScore
from tl_pipeline.evaluation.scored_rows import Compared
from tl_pipeline.score import Score


def right(won: int, lost: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Two classifiers, each right alone on so many of the rows."""
    number = np.arange(rows)
    return number >= lost, (number < lost) | (number >= lost + won)


@pytest.mark.parametrize("won", [0, 1, 4, 11, 30])
@pytest.mark.parametrize("lost", [0, 1, 7, 25])
def test_mcnemar_is_the_binomial_test_of_images_that_one_has_right(won: int, lost: int):
    first, second = right(won, lost, 100)
    found = comparison.mcnemar(first, second, np.arange(100))
    n, least = won + lost, min(won, lost)
    tail = sum(stats.binom.pmf(k, n, 0.5) for k in range(least + 1))
    assert found == pytest.approx(min(1.0, 2 * tail))
    if n:
        assert found == pytest.approx(stats.binomtest(won, n).pvalue)


def test_images_of_one_group_are_one_piece_of_news():
    """Ten images more in one film are chance; one more in ten films is none."""
    first, second = right(10, 0, 100)
    films = np.repeat(np.arange(10), 10)
    assert comparison.mcnemar(first, second, np.arange(100)) < 0.01
    assert comparison.mcnemar(first, second, films) > 0.3
    spread = np.arange(100) % 10
    assert comparison.mcnemar(first, second, spread) < 0.02


def test_two_equal_classifiers_differ_as_often_as_it_says():
    """Of films of five images, half of which are alike."""
    chance, tries, found = np.random.default_rng(0), 400, 0
    units = np.repeat(np.arange(40), 5)
    for _ in range(tries):
        sides = []
        for _ in range(2):
            of_film, of_image = chance.normal(size=40)[units], chance.normal(size=200)
            sides.append(of_film + of_image < 1)
        found += comparison.mcnemar(*sides, units) < choice.ALPHA
    assert 0.02 <= found / tries <= 0.085


def compared(p: float, value: float = -0.01, name: str = "b") -> Comparison:
    return Comparison(
        evaluation=name,
        against="a",
        metric="accuracy",
        difference=Score(value=value, low=value - 0.02, high=value + 0.02),
        images=100,
        won=1,
        lost=2,
        p=p,
        p_holm=p,
    )


def test_holm_multiplies_the_smallest_by_their_number():
    ps = [0.04, 0.01, 0.03, 0.9]
    found = [one.p_holm for one in comparison.adjusted([compared(p) for p in ps])]
    assert found == pytest.approx([0.09, 0.04, 0.09, 0.9])
    ordered = sorted(zip(ps, found, strict=True))
    assert all(one[1] <= other[1] for one, other in pairwise(ordered))
    assert comparison.adjusted([]) == []


@pytest.mark.parametrize("grouped", [False, True])
def test_a_difference_of_balanced_accuracy_is_that_of_both_on_the_same_draws(
    grouped: bool,
):
    chance = np.random.default_rng(4)
    rows, k = 400, 4
    truth = chance.integers(0, k, rows)
    sides = [
        np.where(chance.random(rows) < rate, truth, chance.integers(0, k, rows))
        for rate in (0.9, 0.7)
    ]
    units = np.arange(rows) // (4 if grouped else 1)
    both = Compared(truth, *sides, units)
    scores = {"balanced_accuracy": balanced_accuracy_score, "mcc": matthews_corrcoef}
    for name, score in scores.items():
        found = metrics.paired_difference(name, both, 0)
        expected = score(truth, sides[0]) - score(truth, sides[1])
        assert found.value == pytest.approx(expected)
        draws = []
        for _ in range(300):
            at = chance.integers(0, rows, rows)
            draws.append(
                score(truth[at], sides[0][at]) - score(truth[at], sides[1][at])
            )
        low, high = np.quantile(draws, [0.025, 0.975])
        assert (found.low, found.high) == pytest.approx((low, high), abs=0.02)


def test_costs_tell_apart_what_accuracy_calls_a_tie():
    """Each is wrong in 20 of 200; the errors of the second cost five times as much."""
    names = ["stop", "yield", "other"]
    truth = np.zeros(200, int)
    first, second = truth.copy(), truth.copy()
    first[:20], second[20:40] = 2, 1
    both = Compared(truth, first, second, np.arange(200), names)
    costs = {"stop": {"yield": 10.0, "default": 2.0}}
    assert comparison.compared("a", "b", both, "accuracy", 0).tied
    found = comparison.compared("a", "b", both, "cost", 0, costs)
    assert found.difference.value == pytest.approx((20 * 10 - 20 * 2) / 200)
    saved = np.r_[np.full(20, -2), np.full(20, 10), np.zeros(160)]
    low, high = stats.norm.interval(0.95, saved.mean(), saved.std(ddof=1) / 200**0.5)
    assert (found.difference.low, found.difference.high) == pytest.approx(
        (low, high), rel=0.01
    )
    assert not found.tied
    assert found.summary == "+0.800 [+0.365, +1.235]"


def candidate(name: str, accuracy: float, ms: float | None, **fields: bool):
    size = None if ms is None else 2048
    score = HeldOutScore(100, accuracy, 0.3, accuracy)
    tuned = fields.pop("finetuned", False)
    return Candidate(name, score, Cost(ms, size, tuned), **fields)


def chosen(candidates, ps, how="cheaper") -> tuple[str, str]:
    at = choice.leading(candidates)
    comparisons = [None if number == at else compared(p) for number, p in enumerate(ps)]
    found = choice.chosen(candidates, comparisons, how, "accuracy", "validation")
    return candidates[found.at].name, found.reason


def test_of_a_tie_the_cheaper_is_chosen_and_that_is_said():
    large, small = candidate("large", 0.95, 12.0), candidate("small", 0.94, 3.0)
    name, reason = chosen([large, small], [0, 0.4])
    assert name == "small"
    assert reason == (
        "by validation, right in 95 of 100 images; small is right in 94, which is a "
        "tie, -1.0 [-3.0, +1.0], and it is cheaper: 3 ms an image, not 12 ms"
    )
    assert chosen([large, small], [0, 0.4], "best")[0] == "large"


def test_what_is_known_to_be_worse_is_not_chosen_however_cheap():
    large, small = candidate("large", 0.95, 12.0), candidate("small", 0.84, 3.0)
    assert chosen([large, small], [0, 0.049])[0] == "large"


def test_what_few_images_cannot_tell_apart_must_be_close_too():
    """One standard error: (0.02 + 0.02) / (2 x 1.96) = 0.0102."""
    several = [candidate("large", 0.95, 12.0), candidate("small", 0.9, 3.0)]
    for behind, name in ((0.0102, "small"), (0.0103, "large")):
        comparisons = [None, compared(0.4, -behind)]
        assert comparisons[1].tied
        found = choice.chosen(several, comparisons, "cheaper", "accuracy", "folds")
        assert several[found.at].name == name


def test_of_equal_cost_the_best_is_chosen_unless_the_run_before_chose_another():
    """Measured times never agree: up to twice as long is equal."""
    a, b = candidate("a", 0.95, 10.0), candidate("b", 0.94, 8.0)
    assert chosen([a, b], [0, 0.4])[0] == "a"
    kept = candidate("b", 0.94, 12.0, kept=True)
    name, reason = chosen([a, kept], [0, 0.4])
    assert name == "b"
    assert reason.endswith("and the run before chose it")
    assert chosen([a, kept], [0, 0.01])[0] == "a"


def test_a_cost_that_nobody_measured_decides_nothing():
    a, b = candidate("a", 0.95, None), candidate("b", 0.94, 1.0)
    assert chosen([a, b], [0, 0.4])[0] == "a"


def test_of_a_tie_the_frozen_network_is_chosen():
    tuned = candidate("tuned", 0.95, 10.0, finetuned=True)
    name, reason = chosen([tuned, candidate("frozen", 0.93, 10.0)], [0, 0.4])
    assert name == "frozen"
    assert reason.endswith("and the frozen network is cheaper")
