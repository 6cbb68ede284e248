"""The split of an image is a pure function of its content."""

import hashlib
import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tl_pipeline import splits
from tl_pipeline.errors import DatasetError
from tl_pipeline.identity import Memo
from tl_pipeline.scan import scan
from tl_pipeline.sources import Entry
from tl_pipeline.specs import DigitsSpec, SplitSpec
from tl_pipeline.splits import SPLITS, TEST, TRAIN, VALIDATION

NONE: frozenset[str] = frozenset()
IDS = [hashlib.sha256(b"%d" % i).hexdigest()[:32] for i in range(20_000)]

ids = st.text("0123456789abcdef", min_size=32, max_size=32)
strategies = st.sampled_from(["auto", "stable"])
specs = st.builds(
    SplitSpec,
    strategy=strategies,
    validation=st.floats(0.01, 0.49),
    test=st.floats(0.01, 0.49),
    seed=st.integers(0, 2**31),
)
declared = st.none() | st.sampled_from(SPLITS)
present = st.frozensets(st.sampled_from(SPLITS))


def shares(spec: SplitSpec, declared: str | None = None, present=NONE) -> Counter[str]:
    return Counter(splits.assign(i, declared, present, spec) for i in IDS)


def near(count: int, share: float) -> bool:
    sigma = math.sqrt(len(IDS) * share * (1 - share))
    return abs(count - len(IDS) * share) <= 4 * sigma


@settings(deadline=None)
@given(ids, declared, present, specs)
def test_every_image_is_in_exactly_one_split(image_id, own, others, spec):
    known = others | ({own} if own else set())
    found = splits.assign(image_id, own, known, spec)
    assert found in SPLITS
    assert found == splits.assign(image_id, own, known, spec)


@settings(deadline=None)
@given(ids, st.integers(0, 2**31))
def test_a_draw_is_a_number_from_0_to_below_1(image_id, seed):
    assert 0 <= splits.draw(image_id, seed) < 1


class Held:
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
    return {row["image_id"]: row["split"] for row in found.manifest}


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
@pytest.mark.parametrize("strategy", ["auto", "stable"])
def test_shares_are_near_what_is_asked(validation: float, test: float, strategy: str):
    spec = SplitSpec(strategy=strategy, validation=validation, test=test)
    found = shares(spec)
    assert near(found[VALIDATION], validation)
    assert near(found[TEST], test)
    assert near(found[TRAIN], 1 - validation - test)


@settings(deadline=None)
@given(ids, st.sampled_from([VALIDATION, TEST]), present, specs)
def test_declared_validation_and_test_are_kept(image_id, own, others, spec):
    spec = spec.model_copy(update={"strategy": "auto"})
    assert splits.assign(image_id, own, others | {own}, spec) == own


@pytest.mark.parametrize("strategy", ["auto", "predefined"])
def test_declared_train_is_kept_where_all_three_are_declared(strategy):
    found = shares(SplitSpec(strategy=strategy), TRAIN, frozenset(SPLITS))
    assert set(found) == {TRAIN}


@pytest.mark.parametrize("strategy", ["auto", "predefined"])
@pytest.mark.parametrize(
    ("present", "drawn"),
    [({TRAIN, TEST}, VALIDATION), ({TRAIN, VALIDATION}, TEST)],
    ids=["no validation", "no test"],
)
def test_only_the_missing_split_is_drawn_from_train(strategy, present, drawn):
    found = shares(SplitSpec(strategy=strategy), TRAIN, frozenset(present))
    assert set(found) == {TRAIN, drawn}
    assert near(found[drawn], 0.2)


def test_both_are_drawn_where_only_train_is_declared():
    found = shares(SplitSpec(), TRAIN, frozenset({TRAIN}))
    assert near(found[VALIDATION], 0.2)
    assert near(found[TEST], 0.2)


def test_predefined_without_declarations_is_refused():
    with pytest.raises(DatasetError, match="declares no splits"):
        splits.assign(IDS[0], None, NONE, SplitSpec(strategy="predefined"))


@settings(deadline=None)
@given(ids, declared, present, specs)
def test_stable_ignores_declarations(image_id, own, others, spec):
    spec = spec.model_copy(update={"strategy": "stable"})
    found = splits.assign(image_id, own, others, spec)
    assert found == splits.assign(image_id, None, NONE, spec)


def test_stable_is_what_auto_draws_without_declarations():
    drawn = [
        [splits.assign(i, None, NONE, SplitSpec(strategy=how)) for i in IDS[:500]]
        for how in ("auto", "stable")
    ]
    assert drawn[0] == drawn[1]


def test_another_seed_gives_another_split():
    drawn = [
        [splits.assign(i, None, NONE, SplitSpec(seed=seed)) for i in IDS[:500]]
        for seed in (0, 1)
    ]
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("small", [0.05, 0.1])
def test_a_larger_test_share_keeps_the_smaller_one(small: float):
    """No image leaves the test set when the share grows: none was learned from."""
    fewer = {
        i for i in IDS if splits.assign(i, None, NONE, SplitSpec(test=small)) == TEST
    }
    more = {i for i in IDS if splits.assign(i, None, NONE, SplitSpec(test=0.3)) == TEST}
    assert fewer < more
