"""What a network is to say: the labels, and what a teacher says."""

import math

import numpy as np
import pytest
import torch

from tl_pipeline.finetuning import targets
from tl_pipeline.finetuning.images import Images

T, SHARE = targets.TEMPERATURE, targets.SHARE


def images(**changes: np.ndarray) -> Images:
    """Two images, of the classes 0 and 2 of three."""
    return Images(torch.empty(0), np.array([0, 2]), np.arange(2), **changes)


def softened(logits: list[float], temperature: float) -> list[float]:
    """Probabilities of ``logits`` at a temperature."""
    powers = [math.exp(one / temperature) for one in logits]
    return [one / sum(powers) for one in powers]


def cross_entropy(wanted: list[float], said: list[float]) -> float:
    return -sum(p * math.log(q) for p, q in zip(wanted, said, strict=True))


def test_without_a_teacher_the_loss_is_that_of_smoothed_labels():
    soft = targets.of_images(images(), np.array([1]), 3, 0.3)
    assert soft.flatten().tolist() == pytest.approx([0.1, 0.1, 0.8])
    logits = [0.0, 1.0, 2.0]
    found = targets.loss(torch.tensor([logits]), soft).item()
    assert found == pytest.approx(cross_entropy([0.1, 0.1, 0.8], softened(logits, 1)))


def test_with_a_teacher_it_is_that_of_hinton():
    """(1 - a) H(label, p) + a T^2 H(teacher at T, p at T), times the weight."""
    teacher, student = [2.0, 1.0, 0.0], [0.5, 0.0, -1.0]
    said = np.array([softened(teacher, 1)] * 2, "f4")
    some = images(teacher=said, weights=np.array([3.0, 1.0]))
    soft = targets.of_images(some, np.array([0]), 3, 0.0)
    found = targets.loss(torch.tensor([student]), soft).item()
    labels = cross_entropy([1, 0, 0], softened(student, 1))
    heard = cross_entropy(softened(teacher, T), softened(student, T))
    expected = 3 * ((1 - SHARE) * labels + SHARE * T**2 * heard)
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_teacher_that_is_sure_has_finite_targets():
    """Probabilities of 0 and 1 say what a label says."""
    some = images(teacher=np.array([[1, 0, 0], [0, 0, 1]], "f4"))
    soft = targets.of_images(some, np.array([0, 1]), 3, 0.0)
    assert soft[:, 1].flatten().tolist() == pytest.approx(
        [SHARE * T**2, 0, 0, 0, 0, SHARE * T**2], abs=1e-6
    )


def test_a_part_keeps_what_the_teacher_says_of_it():
    said = np.array([[0.5, 0.5, 0], [0, 0, 1]], "f4")
    part = images(teacher=said).part(np.array([False, True]))
    assert part.teacher is not None
    assert part.teacher.tolist() == [[0, 0, 1]]
