"""The split of an image is a pure function of its content."""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tl_pipeline.config.datasets import DigitsSpec
from tl_pipeline.config.split_specs import SplitSpec
from tl_pipeline.data import splits
from tl_pipeline.data.identity import Memo
from tl_pipeline.data.scan import scan
from tl_pipeline.data.splits import SPLITS, TEST, TRAIN, VALIDATION
from tl_pipeline.errors import DatasetError
from tl_pipeline.sources import Entry, Source

IDS = [hashlib.sha256(b"%d" % i).hexdigest()[:32] for i in range(20_000)]
HASHED = ("auto", "stable")  # each image by its own hash


class Unassigned(NamedTuple):
    """A row of what a split may depend on; ``declared`` is what the source says."""

    image_id: str
    label: str
    group: str | None = None
    declared: str | None = None


def table(images: Sequence[Unassigned]) -> pa.Table:
    names = ["image_id", "label", "group", "split"]
    columns = list(zip(*images, strict=True)) or [()] * 4
    return pa.table([pa.array(column, pa.string()) for column in columns], names)


def assign(images: Sequence[Unassigned], spec: SplitSpec) -> list[str]:
    return splits.assign(table(images), spec).to_pylist()


ids = st.text("0123456789abcdef", min_size=32, max_size=32)
images = st.lists(
    st.builds(
        Unassigned,
        image_id=ids,
        label=st.sampled_from("abc"),
        group=st.none() | st.sampled_from(["g1", "g2", "g3"]),
        declared=st.none() | st.sampled_from(SPLITS),
    ),
    min_size=1,
    max_size=40,
    unique_by=lambda image: image.image_id,
)
specs = st.builds(
    SplitSpec,
    strategy=st.sampled_from(["auto", "stable", "stratified"]),
    validation=st.floats(0.01, 0.49),
    test=st.floats(0.01, 0.49),
    seed=st.integers(0, 2**31),
)


def plain(count: int = len(IDS), **fields) -> list[Unassigned]:
    return [Unassigned(i, "a", **fields) for i in IDS[:count]]


def shares(spec: SplitSpec, **fields) -> Counter[str]:
    return Counter(assign(plain(**fields), spec))


def near(count: int, share: float) -> bool:
    sigma = math.sqrt(len(IDS) * share * (1 - share))
    return abs(count - len(IDS) * share) <= 4 * sigma


@settings(deadline=None)
@given(images, specs)
def test_every_image_is_in_exactly_one_split(some, spec):
    found = assign(some, spec)
    assert len(found) == len(some)
    assert set(found) <= set(SPLITS)
    assert found == assign(some, spec)


@settings(deadline=None)
@given(images, specs, st.data())
def test_the_order_of_the_images_does_not_matter(some, spec, data):
    shuffled = data.draw(st.permutations(some))
    found = dict(zip([i.image_id for i in some], assign(some, spec), strict=True))
    again = assign(shuffled, spec)
    assert again == [found[i.image_id] for i in shuffled]


@settings(deadline=None)
@given(images, images, specs)
def test_new_images_move_no_old_one(old, new, spec):
    """But for stratified, whose shares are exact, and whose price this is."""
    how = "auto" if spec.strategy == "stratified" else spec.strategy
    spec = spec.model_copy(update={"strategy": how})
    # the splits that a source declares are a fact about the source, old or new
    facts = [Unassigned(f"{s}", "a", declared=s) for s in SPLITS]
    known = {image.image_id for image in old}
    more = [image for image in new if image.image_id not in known]
    before = assign([*facts, *old], spec)
    assert assign([*facts, *old, *more], spec)[: len(before)] == before


@settings(deadline=None)
@given(ids, st.integers(0, 2**31))
def test_a_draw_is_a_number_from_0_to_below_1(image_id, seed):
    assert 0 <= splits.draw(image_id, seed) < 1


class Held(Source):
    """A source of the port: images are one grey pixel row per number."""

    def __init__(self, entries: list[Entry]) -> None:
        self._entries = entries

    def entries(self):
        return iter(self._entries)

    def read(self, uri: str) -> bytes:
        number = int(uri.rpartition("/")[2])
        return b"P5\n2 2\n255\n" + number.to_bytes(4, "big")


def scanned(store, numbers, *, label: str, where: str, spec: SplitSpec):
    entries = [Entry(f"{where}/{n}", label) for n in numbers]
    dataset = DigitsSpec(type="digits", name="held", split=spec)
    found = scan(Held(entries), dataset, Memo(store, "held"))
    assert len(found.manifest) == len(entries)
    return {row["image_id"]: row["split"] for row in found.manifest.to_pylist()}


def test_old_images_keep_their_split_when_others_come_and_all_is_renamed(store):
    spec = SplitSpec()
    before = scanned(store, range(200), label="cat", where="old", spec=spec)
    after = scanned(store, range(150, 900), label="dog", where="new", spec=spec)
    assert set(before.values()) == set(SPLITS)
    both = before.keys() & after.keys()
    assert len(both) == 50
    assert {i: before[i] for i in both} == {i: after[i] for i in both}


@pytest.mark.parametrize(
    ("validation", "test"), [(0.2, 0.2), (0.05, 0.3), (0.1, 0.85), (0.001, 0.5)]
)
@pytest.mark.parametrize("strategy", HASHED)
def test_shares_are_near_what_is_asked(validation: float, test: float, strategy: str):
    spec = SplitSpec(strategy=strategy, validation=validation, test=test)
    found = shares(spec)
    assert near(found[VALIDATION], validation)
    assert near(found[TEST], test)
    assert near(found[TRAIN], 1 - validation - test)


@pytest.mark.parametrize("strategy", ["auto", "predefined"])
@pytest.mark.parametrize(
    ("declared", "drawn"),
    [
        ((TRAIN, VALIDATION, TEST), set()),
        ((TRAIN, TEST), {VALIDATION}),
        ((TRAIN, VALIDATION), {TEST}),
        ((TRAIN,), {VALIDATION, TEST}),
    ],
)
def test_declared_splits_are_kept_and_missing_ones_drawn_from_train(
    strategy, declared, drawn
):
    some = [
        Unassigned(i, "a", declared=declared[n % len(declared)])
        for n, i in enumerate(IDS[:3000])
    ]
    found = assign(some, SplitSpec(strategy=strategy))
    for image, side in zip(some, found, strict=True):
        if image.declared != TRAIN:
            assert side == image.declared
    from_train = {s for i, s in zip(some, found, strict=True) if i.declared == TRAIN}
    assert from_train == {TRAIN} | drawn


@pytest.mark.parametrize("strategy", ["predefined", "group"])
def test_what_the_source_does_not_say_cannot_be_demanded(strategy):
    with pytest.raises(DatasetError, match=f"strategy is '{strategy}' but the source"):
        assign(plain(3), SplitSpec(strategy=strategy))


def test_stable_ignores_declarations_and_groups():
    told = [
        Unassigned(i, "a", group=f"{n % 9}", declared=SPLITS[n % 3])
        for n, i in enumerate(IDS[:500])
    ]
    spec = SplitSpec(strategy="stable")
    assert assign(told, spec) == assign(plain(500), spec)


def test_stable_is_what_auto_draws_without_declarations():
    drawn = [assign(plain(500), SplitSpec(strategy=how)) for how in HASHED]
    assert drawn[0] == drawn[1]


@settings(deadline=None)
@given(images, st.sampled_from(["auto", "group"]), st.integers(0, 99))
def test_a_group_stands_on_one_side(some, strategy, seed):
    """Of what is drawn; a declared side is the source's to answer for."""
    some = [Unassigned(i.image_id, i.label, i.group or "none") for i in some]
    found = assign(some, SplitSpec(strategy=strategy, seed=seed))
    sides = {(i.group, side) for i, side in zip(some, found, strict=True)}
    assert len(sides) == len({i.group for i in some})


def test_groups_are_drawn_within_a_declared_train_only():
    tracks = [
        Unassigned(i, "a", group=f"track {n // 30}", declared=TRAIN)
        for n, i in enumerate(IDS[:6000])
    ]
    tests = [Unassigned(i, "a", declared=TEST) for i in IDS[6000:7000]]
    found = assign([*tracks, *tests], SplitSpec(strategy="group"))
    assert set(found[6000:]) == {TEST}
    assert Counter(found[:6000])[VALIDATION] == pytest.approx(1200, abs=600)
    assert TEST not in found[:6000]


@pytest.mark.parametrize("members", [1, 2, 3, 5, 10, 100, 1001])
def test_stratified_keeps_the_shares_in_every_class(members: int):
    some = [Unassigned(i, "ab"[n % 2], None) for n, i in enumerate(IDS[: 2 * members])]
    found = assign(some, SplitSpec(strategy="stratified", validation=0.1, test=0.3))
    for label in "ab":
        sides = Counter(s for i, s in zip(some, found, strict=True) if i.label == label)
        assert sides[TRAIN] >= 1
        assert sides[TEST] == min(max(round(0.3 * members), 1), members - 1)
        spare = members - 1 - sides[TEST]
        assert sides[VALIDATION] == min(max(round(0.1 * members), 1), spare)


@pytest.mark.parametrize("strategy", [*HASHED, "stratified"])
def test_another_seed_gives_another_split(strategy):
    drawn = [
        assign(plain(500), SplitSpec(strategy=strategy, seed=seed)) for seed in (0, 1)
    ]
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("small", [0.05, 0.1])
def test_a_larger_test_share_keeps_the_smaller_one(small: float):
    """No image leaves the test set when the share grows: none was learned from."""
    fewer, more = (
        {
            i
            for i, s in zip(IDS, assign(plain(), SplitSpec(test=t)), strict=True)
            if s == TEST
        }
        for t in (small, 0.3)
    )
    assert fewer < more
