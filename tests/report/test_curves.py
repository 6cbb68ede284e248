"""A learning curve as a picture: the exact points of a made one."""

from typing import Any

from tl_pipeline.report import curves


def row(epoch: int, split: str, loss: float, accuracy: float) -> dict[str, Any]:
    return {"epoch": epoch, "split": split, "loss": loss, "accuracy": accuracy}


ROWS = [
    row(1, "train", 1.6, 0.45),
    row(1, "validation", 1.0, 0.6),
    row(2, "train", 0.8, 0.7),
    row(2, "validation", 0.5, 0.8),
    row(3, "train", 0.4, 0.85),
    row(3, "validation", 0.6, 0.9),
]


def test_points_lie_where_loss_and_accuracy_are():
    """Loss from 0 to 2 on 150 pixels, accuracy from 40 % to 100 %, epochs on 240."""
    loss, accuracy = curves.panels(ROWS)
    train, validation = loss.lines
    assert (train.split, validation.split) == ("train", "validation")
    assert train.path == "M0.0 30.0L120.0 90.0L240.0 120.0"
    assert validation.path == "M0.0 75.0L120.0 112.5L240.0 105.0"
    assert loss.values == ((150.0, "0"), (75.0, "1"), (0.0, "2"))
    assert loss.epochs == ((0.0, 1), (120.0, 2), (240.0, 3))
    assert loss.kept == 240.0
    assert [line.path for line in accuracy.lines] == [
        "M0.0 137.5L120.0 75.0L240.0 37.5",
        "M0.0 100.0L120.0 50.0L240.0 25.0",
    ]
    assert accuracy.values == ((150.0, "40"), (75.0, "70"), (0.0, "100"))
    assert validation.said[2] == "epoch 3, validation: loss 0.600, right in 90.0 %"


def test_one_epoch_lies_in_the_middle_and_many_have_few_ticks():
    """The last of them always has one."""
    (alone, _) = curves.panels(ROWS[:1])
    assert alone.lines[0].points == ((120.0, 30.0),)
    assert alone.kept == 120.0
    (many, _) = curves.panels([row(n, "train", 0.03, 0.99) for n in range(1, 31)])
    assert [epoch for _, epoch in many.epochs] == [2, 6, 10, 14, 18, 22, 26, 30]
    assert many.values[-1] == (0.0, "0.05")
