"""What the page shows of predictions: errors, the matrix, confidence."""

import numpy as np
import pytest

from tl_pipeline.report import confusion, gallery
from tl_pipeline.report.reliability import reliability
from tl_pipeline.report.tested import PredictedTest
from tl_pipeline.report.thumbnails import Thumbnail


def predictions(*rows: tuple[str, str, float]) -> PredictedTest:
    """(label, predicted, confidence) of images a, b, c, ..."""
    labels, predicted, confidence = zip(*rows, strict=True)
    ids = [f"{number:04d}" for number in range(len(rows))]
    names = (np.array(names, object) for names in (ids, labels, predicted))
    return PredictedTest(*names, np.array(confidence, np.float32))


def test_errors_are_hung_by_confidence_beside_their_neighbours():
    from tl_pipeline.report.embedded import Neighbour

    said = predictions(
        ("ant", "ant", 0.99),
        ("ant", "bee", 0.6),
        ("bee", "ant", 0.9),
        ("bee", "fly", 0.6),
    )
    rows = gallery.chosen(said)
    assert rows.tolist() == [2, 1, 3]
    made = {name: Thumbnail(name, f"{name}.jpg", "bee", "train") for name in "xy"}
    made |= {name: Thumbnail(name, "", "", "test") for name in said.image_ids}
    near = {"0002": Neighbour("y", 0.5), "0003": Neighbour("x", 0.25)}
    hung = gallery.hang(said, rows, near, made)
    assert hung.total == 3
    first, second, third = hung.errors
    assert (first.label, first.predicted, first.cell) == ("bee", "ant", (1, 0))
    assert first.neighbour is made["y"]
    assert first.cosine == 0.5
    assert second.neighbour is None
    assert third.cell == (1, 2)


def test_frequent_pairs_have_pictures_though_others_are_more_confident():
    sure = [("a", "b", 0.9)] * 40
    said = predictions(*sure, *[("c", "d", 0.3)] * 5, ("e", "f", 0.2))
    rows = gallery.chosen(said)
    assert rows[:24].tolist() == list(range(24))
    # three of each pair at most, beyond the most confident
    assert rows[24:].tolist() == [40, 41, 42, 45]


def test_cells_are_counts_and_confused_classes_stand_side_by_side():
    said = predictions(
        *[("a", "a", 0.9)] * 5,
        *[("a", "z", 0.9)] * 3,
        *[("z", "a", 0.9)] * 2,
        *[("z", "z", 0.9)] * 2,
        *[("m", "n", 0.9)] * 1,
        *[("n", "n", 0.9)] * 4,
        *[("k", "k", 0.9)] * 7,
    )
    found = confusion.matrix(said)
    assert sorted(found.names) == ["a", "k", "m", "n", "z"]
    at = {name: place for place, name in enumerate(found.names)}
    assert abs(at["a"] - at["z"]) == abs(at["m"] - at["n"]) == 1
    assert at["k"] == 4  # no error
    cells = {
        (found.names[c.row], found.names[c.column]): (c.images, c.share)
        for c in found.cells
    }
    assert cells == {
        ("a", "a"): (5, 5 / 8),
        ("a", "z"): (3, 3 / 8),
        ("z", "a"): (2, 0.5),
        ("z", "z"): (2, 0.5),
        ("m", "n"): (1, 1.0),
        ("n", "n"): (4, 1.0),
        ("k", "k"): (7, 1.0),
    }
    assert [(p.label, p.predicted, p.images) for p in confusion.worst_pairs(said)] == [
        ("a", "z", 3),
        ("z", "a", 2),
        ("m", "n", 1),
    ]


def test_of_thousands_of_classes_the_worst_have_lines_and_all_images_are_counted():
    names = [f"{number:05d}" for number in range(5000)]
    wrong = [(names[n], names[n + 1], 0.5) for n in range(0, 240, 2)]
    said = predictions(*((name, name, 0.9) for name in names), *wrong)
    found = confusion.matrix(said)
    assert len(found.lines) == 101
    assert found.lines[-1] == confusion.OTHERS
    assert found.names[-1] == "all other classes"
    assert set(found.names[:-1]) <= set(names[:240])
    assert sum(cell.images for cell in found.cells) == 5120
    (rest,) = (c for c in found.cells if c.row == c.column == 100)
    assert rest.images == 5120 - 100 - 50
    assert not found.named


def test_no_error_is_no_pair_and_a_diagonal():
    said = predictions(("a", "a", 0.9), ("b", "b", 0.8))
    assert confusion.worst_pairs(said) == []
    assert confusion.matrix(said).names == ["a", "b"]
    assert not len(gallery.chosen(said))


def test_bins_have_the_mean_confidence_and_how_often_it_is_right():
    said = reliability(
        np.array([0.95, 1.0, 0.91, 0.55, 0.51], np.float32),
        np.array([True, True, False, False, True]),
    )
    assert [one.rows for one in said] == [2, 3]
    assert [one.accuracy for one in said] == [0.5, pytest.approx(2 / 3)]
    assert [one.confidence for one in said] == [
        pytest.approx(0.53),
        pytest.approx(2.86 / 3),
    ]
