"""Near duplicates stand on one side, and official splits keep their images."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl_pipeline.config.split_specs import SplitSpec
from tl_pipeline.data.regroup import EXCLUDED, keep_together
from tl_pipeline.data.splits import SPLITS, assign


def table(
    groups: Sequence[str | None], declared: Sequence[str | None] | None = None
) -> pa.Table:
    size = len(groups)
    return pa.table(
        {
            "image_id": pa.array([f"{i:032x}" for i in range(size)], pa.string()),
            "label": pa.array(["ant", "bee"] * size, pa.string())[:size],
            "group": pa.array(groups, pa.string()),
            "declared": pa.array(declared or [None] * size, pa.string()),
        }
    )


def drawn(images: pa.Table, spec: SplitSpec) -> list[str]:
    return assign(images.rename_columns({"declared": "split"}), spec).to_pylist()


def test_without_clusters_nothing_moves() -> None:
    images = table([None, "a", "a", None] * 30)
    sides = keep_together(images, np.full(120, -1), SplitSpec())
    assert sides.tolist() == drawn(images, SplitSpec())


def test_a_cluster_stands_on_one_side_and_all_splits_get_some() -> None:
    images, clusters = table([None] * 600), np.arange(600) // 3
    sides = keep_together(images, clusters, SplitSpec())
    assert all(len(set(sides[i : i + 3])) == 1 for i in range(0, 600, 3))
    assert set(sides) == set(SPLITS)


def test_a_cluster_joins_the_groups_that_it_touches() -> None:
    groups = [None if i % 4 == 3 else f"track {i // 4}" for i in range(400)]
    clusters = np.full(400, -1)
    clusters[[0, 41, 83]] = 0  # of three tracks, 83 of none
    sides = keep_together(table(groups), clusters, SplitSpec())
    joined = [0, 1, 2, 40, 41, 42, 83]
    assert len(set(sides[joined])) == 1
    others = [i for i in range(400) if i not in joined]
    before = np.array(drawn(table(groups), SplitSpec()))
    assert sides[others].tolist() == before[others].tolist()


def test_groups_count_only_where_the_strategy_draws_them() -> None:
    images = table(["one"] * 200)
    clusters = np.full(200, -1)
    clusters[:2] = 0
    assert len(set(keep_together(images, clusters, SplitSpec()))) == 1
    stable = keep_together(images, clusters, SplitSpec(strategy="stable"))
    assert set(stable) == set(SPLITS)


def test_what_resembles_an_official_test_image_is_on_no_side() -> None:
    declared = ["train"] * 90 + ["test"] * 30
    clusters = np.full(120, -1)
    clusters[[3, 4, 100, 101]] = 0
    clusters[[7, 8]] = 1
    sides = keep_together(table([None] * 120, declared), clusters, SplitSpec())
    assert sides[90:].tolist() == ["test"] * 30
    assert sides[[3, 4]].tolist() == [EXCLUDED] * 2
    assert sides[7] == sides[8] != EXCLUDED
    assert (sides == EXCLUDED).sum() == 2


def test_test_goes_before_validation() -> None:
    declared = ["train", "validation", "test"] * 20
    clusters = np.full(60, -1)
    clusters[[0, 1, 2]] = 0
    clusters[[3, 4]] = 1
    sides = keep_together(table([None] * 60, declared), clusters, SplitSpec())
    assert sides[:5].tolist() == [EXCLUDED, EXCLUDED, "test", EXCLUDED, "validation"]


@pytest.mark.parametrize("strategy", ["auto", "stable", "predefined", "group"])
@given(data=st.data())
def test_clusters_and_groups_stay_whole(data: st.DataObject, strategy: str) -> None:
    size = data.draw(st.integers(3, 40))
    some = st.sampled_from([None, "a", "b", "c", "d"])
    groups = data.draw(st.lists(some, min_size=size, max_size=size))
    groups[0] = "a"
    of = st.lists(st.integers(-1, 5), min_size=size, max_size=size)
    clusters = np.array(data.draw(of))
    told = st.sampled_from([None, "train", "test"])
    declared = data.draw(st.lists(told, min_size=size, max_size=size))
    declared[0] = "train"
    images = table(groups, declared)
    sides = keep_together(images, clusters, SplitSpec(strategy=strategy))
    assert set(sides) <= {*SPLITS, EXCLUDED}
    for cluster in set(clusters) - {-1}:
        assert len(set(sides[clusters == cluster]) - {EXCLUDED}) <= 1
    kept = np.array([d == "test" for d in declared]) & (strategy != "stable")
    assert (sides[kept] == "test").all()
