"""The sample that stands for the training images."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tl_pipeline.data.sampling import FIRST, Drawable, stratified


def images(**sizes: int) -> list[Drawable]:
    return [
        Drawable(f"{label}{number}", label)
        for label, size in sizes.items()
        for number in range(size)
    ]


def tracks(label: str, number: int, frames: int) -> list[Drawable]:
    return [
        Drawable(f"{label}{track}-{frame}", label, f"{label}{track}")
        for track in range(number)
        for frame in range(frames)
    ]


def drawn(found: list[Drawable]) -> set[str]:
    return {image.image_id for image in found}


several = st.dictionaries(st.sampled_from("abcde"), st.integers(1, 60), min_size=1)


@settings(deadline=None, max_examples=60)
@given(several, st.integers(0, 200), st.integers(0, 200), st.randoms())
def test_a_larger_sample_holds_a_smaller_one_in_whatever_order(sizes, one, two, chance):
    there = images(**sizes)
    small, large = sorted((one, two))
    first = stratified(there, small)
    chance.shuffle(there)
    second = stratified(there, large)
    assert len(first) == min(small, len(there))
    assert drawn(first) <= drawn(second)
    assert [i.image_id for i in second] == sorted(drawn(second))


def test_every_class_keeps_its_share():
    found = stratified(images(a=600, b=300, c=100), 100)
    counts = Counter(image.label for image in found)
    assert counts == pytest.approx({"a": 60, "b": 30, "c": 10}, abs=1)


def test_a_rare_class_is_there_with_enough_to_be_learned_and_judged():
    found = Counter(i.label for i in stratified(images(a=5000, b=7, c=2), 100))
    assert (found["b"], found["c"]) == (FIRST, 2)


def test_a_tiny_sample_has_every_class_once_before_any_twice():
    there = images(a=500, b=50, c=5)
    assert {i.label for i in stratified(there, 3)} == {"a", "b", "c"}
    counts = Counter(i.label for i in stratified(there, 6))
    assert counts == {"a": 2, "b": 2, "c": 2}


def test_all_groups_give_one_image_before_any_gives_two():
    there = tracks("a", 8, 30) + tracks("b", 8, 30)
    groups = Counter(image.group for image in stratified(there, 16))
    assert set(groups.values()) == {1}
    assert len(groups) == 16
    more = Counter(image.group for image in stratified(there, 64))
    assert set(more.values()) == {4}


def test_the_draw_does_not_follow_the_names_and_outlives_new_images():
    """The images of a sample are not the first by name; new ones push out few."""
    before = stratified(images(a=1000, b=1000), 200)
    numbers = sorted(int(i.image_id[1:]) for i in before if i.label == "a")
    assert 350 < numbers[len(numbers) // 2] < 650
    after = stratified(images(a=1100, b=1100), 200)
    assert len(drawn(before) & drawn(after)) >= 160
