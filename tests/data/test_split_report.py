"""What a run says about its split: counts, changes, leaks, tiny classes."""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tl_pipeline import query, report
from tl_pipeline.cli import console
from tl_pipeline.config import catalog
from tl_pipeline.config.specs import EncoderSpec, HeadSpec, RunSpec
from tl_pipeline.data import split_findings
from tl_pipeline.data.split_counts import COLUMNS, describe
from tl_pipeline.data.split_report import (
    DuplicateFiles,
    Leakage,
    NearDuplicateFindings,
    SplitReport,
)
from tl_pipeline.data.splits import SPLITS, TEST, TRAIN, VALIDATION
from tl_pipeline.pipeline import wiring
from tl_pipeline.runs import records
from tl_pipeline.runs.records import RunRecord
from tl_pipeline.score import Score
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.tables import DUPLICATES

Row = tuple[str, str, str, str | None]  # as COLUMNS
NO_COPIES = DUPLICATES.schema.empty_table()


def manifest(rows: Iterable[Row]) -> pa.Table:
    schema = pa.schema([(name, pa.string()) for name in COLUMNS])
    return pa.Table.from_pylist(
        [dict(zip(COLUMNS, row, strict=True)) for row in rows], schema
    )


def copies(*rows: tuple[str, str | None, str | None]) -> pa.Table:
    """Duplicates of (image id, declared split, that of the file that was kept)."""
    names = ("image_id", "declared_split", "kept_declared_split")
    return pa.Table.from_pylist(
        [
            {"uri": f"{n}", "kept_uri": "kept", **dict(zip(names, row, strict=True))}
            for n, row in enumerate(rows)
        ],
        DUPLICATES.schema,
    )


def said(rows: Iterable[Row], before: Iterable[Row] | None = None) -> SplitReport:
    old = None if before is None else manifest(before)
    return describe(manifest(rows), NO_COPIES, old)


def of_counts(classes: dict[str, tuple[int, int, int]]) -> SplitReport:
    """The report of a manifest with these images of each class in each split."""
    number = itertools.count()
    return said(
        (f"{next(number)}", label, split, None)
        for label, counts in classes.items()
        for split, count in zip(SPLITS, counts, strict=True)
        for _ in range(count)
    )


SOME = [
    ("1", "cat", TRAIN, "a"),
    ("2", "cat", TRAIN, "a"),
    ("3", "dog", TRAIN, "b"),
    ("4", "dog", TRAIN, None),
    ("5", "cat", VALIDATION, "c"),
    ("6", "cat", VALIDATION, "c"),
    ("7", "cat", TEST, None),
    ("8", "dog", TEST, None),
]


def test_counts_shares_and_groups():
    found = said(SOME)
    assert {s: size.images for s, size in found.splits.items()} == {
        TRAIN: 4,
        VALIDATION: 2,
        TEST: 2,
    }
    assert [size.share for size in found.splits.values()] == [0.5, 0.25, 0.25]
    assert [size.groups for size in found.splits.values()] == [2, 1, None]
    assert found.classes == {"cat": (2, 2, 1), "dog": (2, 0, 1)}
    assert list(found.shares()) == [
        ("cat", TRAIN, 2, 0.5),
        ("cat", VALIDATION, 2, 1.0),
        ("cat", TEST, 1, 0.5),
        ("dog", TRAIN, 2, 0.5),
        ("dog", VALIDATION, 0, 0.0),
        ("dog", TEST, 1, 0.5),
    ]
    assert [size.distance for size in found.splits.values()] == [None, 0.5, 0.0]
    assert found.since is None


rows = st.dictionaries(
    st.integers(0, 30).map(str),
    st.tuples(
        st.sampled_from("abc"),
        st.sampled_from(SPLITS),
        st.none() | st.sampled_from("ghi"),
    ),
    min_size=1,
)


@settings(deadline=None)
@given(rows, rows)
def test_what_arrow_counts_is_what_a_loop_counts(old: dict, new: dict):
    """Counts, groups on two sides, and every kind of change."""
    found = said(
        ((i, *row) for i, row in new.items()), ((i, *row) for i, row in old.items())
    )
    counts = Counter((label, split) for label, split, _ in new.values())
    assert found.classes == {
        label: tuple(counts[label, split] for split in SPLITS)
        for label in sorted({label for label, _ in counts})
    }
    sides = {s: {g for _, split, g in new.values() if split == s and g} for s in SPLITS}
    assert found.groups_across == {
        f"{one}/{other}": len(sides[one] & sides[other])
        for one, other in itertools.combinations(SPLITS, 2)
        if sides[one] & sides[other]
    }
    both = old.keys() & new.keys()
    assert found.since is not None
    for split, change in found.since.items():
        here = {i for i, row in new.items() if row[1] == split}
        assert change.entered == len(here - old.keys())
        assert change.left == sum(
            row[1] == split for i, row in old.items() if i not in new
        )
        assert change.came_from == Counter(
            old[i][1] for i in here & both if old[i][1] != split
        )
        assert change.relabelled == sum(old[i][0] != new[i][0] for i in here & both)


def test_images_before_and_what_happened_make_images_now():
    now = [*SOME[1:], ("9", "cat", TEST, None)]
    now[0] = ("2", "dog", TEST, "a")  # moved and relabelled at once
    since = said(now, SOME).since
    assert since is not None
    before = {s: sum(row[2] == s for row in SOME) for s in SPLITS}
    away = Counter({o: n for c in since.values() for o, n in c.came_from.items()})
    for split, change in since.items():
        came = change.entered + sum(change.came_from.values())
        gone = change.left + away[split]
        assert before[split] + came - gone == sum(row[2] == split for row in now)
    assert since[TEST].came_from == {TRAIN: 1}
    assert since[TEST].relabelled == 1


def test_distance_of_a_random_draw_is_what_chance_gives():
    """Against 400 real draws; and a distance that is not chance stands out."""
    shares = np.array([0.5, 0.3, 0.1, 0.06, 0.03, 0.01])
    chance = np.random.default_rng(0)
    drawn = []
    for _ in range(400):
        counts = np.array([chance.multinomial(n, shares) for n in (300, 100, 100)])
        train, here = counts[0] / 300, counts[1] / 100
        drawn.append(np.abs(train - here).sum() / 2)
    found = of_counts(
        {f"{n}": (round(300 * s), round(100 * s), 1) for n, s in enumerate(shares)}
    ).splits[VALIDATION]
    assert found.distance == pytest.approx(0, abs=1e-12)
    assert found.by_chance == pytest.approx(np.mean(drawn), rel=0.1)
    skewed = of_counts({"a": (150, 90, 1), "b": (150, 10, 1)}).splits[VALIDATION]
    assert skewed.distance == pytest.approx(0.4)
    assert skewed.by_chance is not None
    assert skewed.by_chance < 0.06


def test_tiny_classes_are_named_with_what_follows():
    found = of_counts(
        {"ok": (3, 1, 1), "few": (2, 1, 1), "unseen": (0, 1, 0), "blind": (9, 0, 0)}
    )
    lacks = {lack.what: lack for lack in split_findings.tiny_classes(found)}
    assert {what: lack.labels for what, lack in lacks.items()} == {
        "no train image": ["unseen"],
        "no validation image": ["blind"],
        "no test image": ["blind", "unseen"],
        "fewer than 3 training images": ["few"],
    }
    assert "counts as an error" in lacks["no train image"].consequence
    assert split_findings.summary(found) == (
        "train 14, validation 3, test 2; 1 class has no train image; 1 class has no "
        "validation image; 2 classes have no test image; 1 class has fewer than 3 "
        "training images"
    )


def test_many_tiny_classes_are_not_all_named():
    found = of_counts({f"{n:02}": (3, 1, 0) for n in range(11)} | {"x": (3, 1, 1)})
    (lack,) = split_findings.tiny_classes(found)
    assert lack.named == "00, 01, 02, 03, 04, 05, 06, 07 and 3 more"


def test_changes_are_said_in_one_line():
    now = [*SOME[1:], ("9", "cat", TEST, None), ("10", "cat", TRAIN, None)]
    now[0] = ("2", "dog", TEST, "a")
    assert split_findings.changes(said(now, SOME)) == [
        "+1 train",
        "+1 test",
        "-1 train",
        "1 train -> test",
        "1 relabelled",
    ]
    assert "unchanged since the last run" in split_findings.summary(said(SOME, SOME))
    assert "last run" not in split_findings.summary(said(SOME))


def test_duplicates_across_declared_splits_are_closed_leaks():
    found = describe(
        manifest(SOME),
        copies(
            ("7", TRAIN, TEST),
            ("7", TRAIN, TEST),
            ("8", TEST, TEST),
            ("1", None, None),
            ("5", TRAIN, TRAIN),  # declared train, drawn for validation
        ),
    )
    across = DuplicateFiles(split=TEST, declared=TRAIN, kept_declared=TEST, files=2)
    assert found.duplicates == [
        across,
        DuplicateFiles(split=TEST, declared=TEST, kept_declared=TEST, files=1),
        DuplicateFiles(split=TRAIN, declared=None, kept_declared=None, files=1),
        DuplicateFiles(split=VALIDATION, declared=TRAIN, kept_declared=TRAIN, files=1),
    ]
    assert split_findings.closed_leaks(found) == [
        "2 files declared train left out, because the same image is in test",
    ]
    assert split_findings.open_leaks(found) == []


def test_a_group_on_two_sides_is_an_open_leak():
    found = said([*SOME, ("9", "cat", TEST, "a"), ("10", "cat", TEST, "b")])
    assert split_findings.open_leaks(found) == ["2 groups on both sides of train/test"]


NEAR = NearDuplicateFindings(
    encoder="squeezenet1_0/fire9",
    ratio=0.55,
    pairs=41,
    images=36,
    clusters=17,
    largest=4,
    across={"train/test": 3, "validation/test": 1},
)
LEAKAGE = Leakage(
    head="logistic(C=0.01)",
    encoder="squeezenet1_0/fire9",
    by_image=Score(value=0.993, low=0.99, high=0.996),
    by_group=Score(value=0.652, low=0.63, high=0.67),
    test=Score(value=0.618, low=0.60, high=0.64),
)
HARMLESS = LEAKAGE.model_copy(
    update={"by_image": Score(value=0.649, low=0.62, high=0.68)}
)


FOUND = (
    "36 near duplicates in 17 clusters, 41 pairs, 3 across train/test and 1 across "
    "validation/test"
)


KEPT = (
    "; kept together: 5 images changed sides, 2 of them excluded for resembling an "
    "official split"
)


@pytest.mark.parametrize(
    ("changes", "leaks", "closed"),
    [
        ({}, [FOUND], []),
        (
            {"moved": 5, "excluded": 2},
            [],
            [FOUND + KEPT],
        ),
        ({"across": {}}, [], []),
        ({"pairs": 0, "across": {}, "moved": 0}, [], []),
    ],
)
def test_near_duplicates_are_open_or_closed(
    changes: dict[str, object], leaks: list[str], closed: list[str]
):
    near = NEAR.model_copy(update=changes)
    found = said(SOME).model_copy(update={"near_duplicates": near})
    assert split_findings.open_leaks(found) == leaks
    assert split_findings.closed_leaks(found) == closed


def test_leakage_is_said_in_points():
    assert split_findings.leakage(LEAKAGE) == (
        "split image by image, validation would have said 99.3 %, 34 points more than "
        "by group (65.2 %); test says 61.8 %"
    )
    assert "64.9 %, 0.3 points less than" in split_findings.leakage(HARMLESS)
    assert LEAKAGE.certain
    assert not HARMLESS.certain


def once(folder: Path, store: Store) -> RunRecord:
    spec = RunSpec(
        dataset=str(folder),
        backbones=(EncoderSpec(backbone="lenet5"),),
        heads=(HeadSpec.parse("logistic:C=1"),),
        controls=False,
    )
    return wiring.run(wiring.prepare(spec, store))


def test_a_run_tells_what_changed_since_the_one_before(
    folder: Path,
    store: Store,
    crops: Callable[[str, int], Image.Image],
):
    first = once(folder, store).split_report
    assert first is not None
    assert first.since is None
    for number in range(100, 120):
        crops("china", number).save(folder / "china" / f"{number}.png")
    (folder / "flower" / "000.jpg").unlink()
    record = once(folder, store)
    second = record.split_report
    assert second is not None
    assert second.since is not None
    assert sum(change.entered for change in second.since.values()) == 20
    assert sum(change.left for change in second.since.values()) == 1
    assert sum(size.images for size in second.splits.values()) == record.images == 79
    assert records.latest(store, "photos") == record

    rows = query.ask(
        store, "SELECT * EXCLUDE dataset FROM splits ORDER BY run_id"
    ).to_pylist()
    assert len(rows) == 6
    assert [row["entered"] for row in rows[:3]] == [None] * 3
    for row in rows[3:]:
        size, change = second.splits[row["split"]], second.since[row["split"]]
        assert row == {
            "run_id": record.run_id,
            "split": row["split"],
            "images": size.images,
            "groups": None,
            "share": size.share,
            "distance_from_train": size.distance,
            "entered": change.entered,
            "removed": change.left,
            "moved_in": 0,
            "relabelled": 0,
        }
    (agrees,) = query.ask(
        store,
        "SELECT bool_and(c.images = i.images) AS counts, count(*) AS rows, "
        "sum(c.share) AS shares FROM class_counts AS c JOIN (SELECT dataset, label, "
        "split, count(*) AS images FROM images GROUP BY ALL) AS i "
        "USING (dataset, label, split)",
    ).to_pylist()
    assert agrees == {"counts": True, "rows": 6, "shares": pytest.approx(3)}


def test_without_the_last_manifest_nothing_is_said_of_changes(
    folder: Path, store: Store
):
    first = once(folder, store)
    (store.root / "manifests" / first.manifest / "manifest.parquet").unlink()
    (folder / "flower" / "000.jpg").unlink()
    found = once(folder, store).split_report
    assert found is not None
    assert found.since is None


def test_a_record_of_an_older_version_still_loads_and_is_shown(
    folder: Path, store: Store, capsys: pytest.CaptureFixture[str]
):
    record = once(folder, store)
    (file,) = (store.root / "runs" / "photos").glob("*.json")
    old = json.loads(file.read_text())
    del old["split_report"]
    file.write_text(json.dumps(old))
    loaded = records.latest(store, "photos")
    assert loaded == record.model_copy(update={"split_report": None})
    query.build(store)
    assert query.ask(store, "FROM splits").num_rows == 0
    assert query.ask(store, "FROM class_counts").num_rows == 0
    assert "<h2>Splits" not in report.render(store, loaded, catalog.find(str(folder)))
    console.summarise(loaded, {})
    assert "split:" not in capsys.readouterr().out


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, crops: Callable[[str, int], Image.Image]
) -> tuple[Store, RunRecord]:
    """One finished run, for the tests that only show it."""
    root = tmp_path_factory.mktemp("finished")
    for label, number in itertools.product(("china", "flower"), range(30)):
        (root / "photos" / label).mkdir(parents=True, exist_ok=True)
        crops(label, number).save(root / "photos" / label / f"{number}.png")
    store = Store.open(root / "store")
    return store, once(root / "photos", store)


def shown(record: RunRecord, **changes: object) -> RunRecord:
    """``record`` with another split report, of ``changes``."""
    assert record.split_report is not None
    return record.model_copy(
        update={"split_report": record.split_report.model_copy(update=changes)}
    )


def test_console_says_it_in_a_line_each(
    finished: tuple[Store, RunRecord], capsys: pytest.CaptureFixture[str]
):
    _, record = finished
    record = shown(record, near_duplicates=None)
    console.summarise(record, {})
    plain = capsys.readouterr().out.splitlines()
    findings = {
        "groups_across": {"train/test": 3},
        "near_duplicates": NEAR,
        "leakage": LEAKAGE,
        "duplicates": [
            DuplicateFiles(split=TEST, declared=TRAIN, kept_declared=TEST, files=31)
        ],
    }
    console.summarise(shown(record, **findings), {})
    full = capsys.readouterr().out.splitlines()
    (line,) = [line for line in plain if line.startswith("split: train ")]
    assert line in full
    assert len(full) - len(plain) == 3
    place = full.index(line)
    assert full[place + 1].startswith("leaks: 3 groups on both sides of train/test; 36")
    assert full[place + 2].startswith("leaks closed: 31 files declared train left out")
    assert full[place + 3].startswith("split image by image, validation would have")


def page(finished: tuple[Store, RunRecord], **changes: object) -> str:
    store, record = finished
    photos = catalog.find(str(store.root.parent / "photos"))
    return report.render(store, shown(record, **changes), photos)


def test_page_shows_leaks_as_warnings(finished: tuple[Store, RunRecord]):
    text = page(finished, near_duplicates=None)
    assert "No leak found" in text
    assert "Near duplicates were not looked for" in text
    assert "Leak" not in text
    text = page(finished, near_duplicates=NEAR, leakage=LEAKAGE)
    assert '<div class="box warn"><b>Leakage.</b> With logistic(C=0.01) on ' in text
    assert "34 points more than by group (65.2 %); test says 61.8 %." in text
    assert '<div class="box warn"><b>Leak.</b> 36 near duplicates' in text
    assert "No leak found" not in text
    assert "not looked for" not in text
    text = page(finished, leakage=HARMLESS)
    assert '<div class="box"><b>No certain leakage.</b>' in text
