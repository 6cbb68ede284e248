"""What fine-tuning may bring and what it brought: verdicts, differences, sentences."""

from typing import Any, Literal

import pytest

from tests.runs.made import result
from tl_pipeline.runs import finetunings
from tl_pipeline.runs.finetunings import Expectation, FinetunedPair, FinetuningResult
from tl_pipeline.score import Score
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.keys import key_document
from tl_pipeline.store.tables import METRICS, PREDICTIONS

FROZEN, TUNED = "f" * 32, "e" * 32


def expectation(frozen: float, images: int, classes: int, validation: int):
    return Expectation(
        encoder="lenet5",
        frozen=frozen,
        by="by folds",
        images=images,
        classes=classes,
        validation=validation,
    )


@pytest.mark.parametrize(
    ("measured", "verdict", "gain"),
    [
        ((0.788, 5160, 43, 1161), "usually pays", (2.5, 17.6)),  # signs: it did
        ((0.729, 3000, 10, 627), "usually pays", (3.3, 22.5)),  # CIFAR-10: it did
        ((0.914, 245, 2, 62), "may pay", (1.0, 7.1)),  # hymenoptera: a tie
        ((0.989, 1438, 10, 359), "hardly pays", (0.1, 0.9)),  # digits: a tie
        ((0.7, 500, 10, 1000), "may pay", (3.6, 24.9)),  # few images a class
        ((1.0, 5000, 10, 1000), "hardly pays", (0.0, 0.0)),
        ((0.5, 5000, 10, 0), "hardly pays", (6.0, 41.5)),  # nothing to decide by
    ],
)
def test_what_is_expected_follows_from_room_and_validation(
    measured: tuple[float, int, int, int], verdict: str, gain: tuple[float, float]
):
    found = expectation(*measured)
    assert found.verdict == verdict
    assert tuple(round(100 * one, 1) for one in found.gain) == gain


@pytest.mark.parametrize(
    ("measured", "end"),
    [
        (
            (0.788, 5160, 43, 1161),
            "1,161 validation images can tell even the least of ",
        ),
        ((0.914, 245, 2, 62), "62 validation images can tell the most of it from a "),
        ((0.989, 1438, 10, 359), "359 validation images cannot tell that from a tie"),
        ((0.7, 500, 10, 1000), "fewer than 100 images a class were not measured, and "),
    ],
)
def test_the_sentence_says_the_reason(measured: tuple[float, int, int, int], end: str):
    said = expectation(*measured).sentence
    assert end in said
    if measured[0] == 0.989:
        assert said == (
            "lenet5: 1,438 images of 10 classes to learn from; the frozen network is "
            "right in 98.9 % by folds, which leaves room of 1.1 points; fine-tuning "
            "hardly pays: on 4 datasets it took away 12 to 83 % of the errors, here "
            "0.1 to 0.9 points; 359 validation images cannot tell that from a tie"
        )


def evaluation(store: Store, name: str, right: dict[str, list[bool]]) -> Artifact:
    """An evaluation that is right as told, of images that are named by their place."""

    def write(folder: Any) -> None:
        rows = [
            {
                "evaluation": name,
                "split": split,
                "image_id": f"{split}{at:03d}",
                "label": "a",
                "predicted": "a" if one else "b",
                "confidence": 1.0,
                "probabilities": [1.0],
                "group": None,
            }
            for split, answers in right.items()
            for at, one in enumerate(answers)
        ]
        tables.write(PREDICTIONS, tables.from_rows(PREDICTIONS, rows), folder)
        metrics = [
            {
                "evaluation": name,
                "encoder": "lenet5/c5",
                "encoder_key": name,
                "family": "logistic",
                "head": "logistic",
                "chosen": True,
                "split": split,
                "metric": "accuracy",
                "images": len(answers),
                "value": sum(answers) / len(answers),
            }
            for split, answers in right.items()
        ]
        tables.write(METRICS, tables.from_rows(METRICS, metrics), folder)

    control = {"control": name == "control"}
    return store.build(
        "evaluations", key_document("evaluate", 1, control, {"n": name}), write
    )


def compared(
    store: Store, tuned: dict[str, list[bool]], role: Literal["best", "candidate"]
) -> FinetuningResult:
    """``tuned`` beside a frozen network that is right in 60 of 100."""
    frozen = {"folds": [True] * 30 + [False] * 20, "test": [True] * 60 + [False] * 40}
    pair = evaluation(store, "tuned", tuned), evaluation(store, "frozen", frozen)
    other = {"best": "candidate", "candidate": "best"}[role]
    found = [
        result(pair[0].key, role, encoder_key=TUNED),
        result(pair[1].key, other, encoder_key=FROZEN),
        result("c" * 32, "control", encoder_key=FROZEN),
    ]
    expected = expectation(0.6, 1000, 10, 500)
    asked = FinetunedPair("lenet5", "all", FROZEN, TUNED, "a" * 32, expected)
    (one,) = finetunings.results(store, [asked], found, seed=0)
    assert (one.tuned, one.frozen) == (pair[0].key, pair[1].key)
    return one


def test_a_better_network_is_told_with_its_interval(store: Store):
    """30 of 100 images more: of 10,000 draws of Binomial(100, 0.3) the middle 95 %."""
    tuned = {"folds": [True] * 45 + [False] * 5, "test": [True] * 90 + [False] * 10}
    one = compared(store, tuned, "best")
    assert (one.tuned_accuracy, one.frozen_accuracy) == (0.9, 0.6)
    assert one.test.value == pytest.approx(0.3)
    assert (one.test.low, one.test.high) == (
        pytest.approx(0.21, abs=0.011),
        pytest.approx(0.39, abs=0.011),
    )
    low, high = (f"{100 * v:+.1f}" for v in (one.test.low or 0, one.test.high or 0))
    assert one.sentence.startswith(
        "fine-tuning lenet5 (all): right in 90.0 % against 60.0 % of the frozen "
        f"network on the same 100 test images, +30.0 points [{low}, {high}]; expected "
        "was that it usually pays (4.8 to 33.2 points), and it did; registered is the "
        "fine-tuned network: on validation +30.0 points ["
    )
    assert "a tie" not in one.sentence


def test_a_tie_is_told_in_words(store: Store):
    """One more and one less is no difference, and the cheaper is registered."""
    test = [True] * 59 + [False, True] + [False] * 39
    held = [True] * 29 + [False, True] + [False] * 19
    one = compared(store, {"folds": held, "test": test}, "candidate")
    assert one.test.value == 0
    assert one.sentence == (
        "fine-tuning lenet5 (all): right in 60.0 % against 60.0 % of the frozen "
        "network on the same 100 test images, +0.0 points [-3.0, +3.0], a tie; "
        "expected was that it usually pays (4.8 to 33.2 points), but it did not; "
        "registered is the frozen network: on validation +0.0 points [-6.0, +6.0], a "
        "tie, and it is the cheaper"
    )


@pytest.mark.parametrize(
    ("frozen", "low", "said"),
    [
        (
            0.75,
            0.1,
            "usually pays (3.0 to 20.8 points), and it did;",
        ),
        (0.75, -0.1, "(3.0 to 20.8 points), but it did not;"),
        (
            0.999,
            0.1,
            "hardly pays (0.0 to 0.1 points), but it did;",
        ),
        (0.999, -0.1, "(0.0 to 0.1 points), and it did not;"),
    ],
)
def test_the_truth_stands_beside_what_was_expected(
    frozen: float, low: float, said: str
):
    one = FinetuningResult(
        encoder="lenet5",
        how="all",
        finetuned="a" * 32,
        tuned="b" * 32,
        frozen="c" * 32,
        tuned_accuracy=0.8,
        frozen_accuracy=0.7,
        test_images=100,
        test=Score(value=0.1, low=low, high=0.3),
        validation=Score(value=0.1, low=0.05, high=0.2),
        registered="",
        expected=expectation(frozen, 5000, 10, 500),
    )
    assert said in one.sentence
    assert one.sentence.endswith("registered is neither")


def test_the_best_head_that_is_scored_tells_what_to_expect(store: Store):
    """Not a control, not one that is yet to be made; None where none is left."""
    some = {"folds": [True] * 7 + [False] * 3, "test": [True] * 10}
    more = {"folds": [True] * 8 + [False] * 2, "test": [False] * 10}
    every = {"folds": [True] * 10, "test": [True] * 10}
    frozen = [
        evaluation(store, "some", some),
        evaluation(store, "more", more),
        evaluation(store, "control", every),
        Artifact("evaluations", "0" * 32, ""),
    ]
    found = finetunings.expected(store, "lenet5", frozen, 10, 1, 5)
    assert found is not None
    assert (found.frozen, found.by) == (0.8, "by folds")
    assert finetunings.expected(store, "lenet5", frozen[2:], 10, 1, 5) is None
