"""The scan in columns finds what a plain loop over rows finds, in bounded memory."""

import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tl_pipeline.config.datasets import DatasetSpec, DigitsSpec, ImageFolderSpec
from tl_pipeline.config.split_specs import SplitSpec
from tl_pipeline.data import identity, splits
from tl_pipeline.data import scan as scanning
from tl_pipeline.data.identity import Memo, image_id
from tl_pipeline.data.scan import Scan, scan
from tl_pipeline.data.splits import SPLITS, TEST, TRAIN, VALIDATION
from tl_pipeline.inputs.images import RefusedImage, probe
from tl_pipeline.sources import Entry, Source
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.keys import digest

Row = dict[str, Any]


class Given(Source):
    """A source of entries whose uri ends in the number of the image behind it."""

    def __init__(self, entries: list[Entry]) -> None:
        self._entries = entries
        self.reads: list[str] = []

    def entries(self) -> Iterator[Entry]:
        return iter(self._entries)

    def read(self, uri: str) -> bytes:
        self.reads.append(uri)
        number = int(uri.rpartition("/")[2])
        if number == 0:
            raise OSError("gone")
        if number == 1:
            return b""
        if number == 2:
            return b"text"
        return b"P5\n%d 2\n255\n" % number + bytes(2 * number)


def spec(**split: Any) -> DigitsSpec:
    return DigitsSpec(type="digits", name="given", split=SplitSpec(**split))


def with_test(entries: list[Entry], how: SplitSpec) -> list[Entry]:
    """Validation is the test split where no test is declared."""
    declared = {entry.split for entry in entries}
    if TEST in declared or how.strategy == "stable":
        return entries
    held = {VALIDATION: TEST}
    return [replace(e, split=held.get(e.split, e.split)) for e in entries]


def plain(source: Given, how: SplitSpec) -> dict[str, list[Row]]:
    """The scan written down as a loop over dictionaries, the splits image by image."""
    accepted: dict[str, list[Row]] = defaultdict(list)
    quarantine: list[Row] = []

    def refuse(entry: Entry, reason: str, detail: str, image: str | None) -> None:
        row = {"uri": entry.uri, "reason": reason, "detail": detail, "image_id": image}
        quarantine.append({**row, "first_seen": None})

    for entry in with_test(list(source.entries()), how):
        try:
            data = source.read(entry.uri)
            width, height = probe(data)
        except OSError as error:
            refuse(entry, "unreadable", str(error), None)
        except RefusedImage as refusal:
            refuse(entry, refusal.reason, refusal.detail, None)
        else:
            if not entry.label:
                refuse(entry, "no label", "the source tells no class for it", None)
                continue
            found = {"width": width, "height": height, "bytes": len(data)}
            image = image_id(data)
            accepted[image].append({**found, "image_id": image, "entry": entry})
    kept, duplicates = [], []
    for image, copies in accepted.items():
        labels = sorted({str(copy["entry"].label) for copy in copies})
        if len(labels) > 1:
            for copy in copies:
                said = f"the same image is labelled {', '.join(labels)}; "
                said += scanning._ONE_LABEL
                refuse(copy["entry"], "conflicting labels", said, image)
            continue
        order = [TEST, VALIDATION, TRAIN, None]
        ranks = [min(order.index(copy["entry"].split), 2) for copy in copies]
        best = min(range(len(copies)), key=lambda i: (ranks[i], copies[i]["entry"].uri))
        kept.append(copies[best])
        duplicates += [
            {
                "uri": copy["entry"].uri,
                "image_id": image,
                "kept_uri": copies[best]["entry"].uri,
                "declared_split": copy["entry"].split,
                "kept_declared_split": copies[best]["entry"].split,
            }
            for copy in copies
            if copy is not copies[best]
        ]
    manifest = [
        {
            **{name: row[name] for name in ("image_id", "width", "height", "bytes")},
            "split": side(row, kept, how),
            **{name: getattr(row["entry"], name) for name in ("uri", "label")},
            **{name: getattr(row["entry"], name) for name in ("group", "weight")},
            "declared": row["entry"].split,
        }
        for row in kept
    ]
    return {
        "manifest": sorted(manifest, key=lambda row: row["image_id"]),
        "quarantine": sorted(quarantine, key=lambda row: row["uri"]),
        "duplicates": sorted(duplicates, key=lambda row: row["uri"]),
    }


def side(row: Row, kept: list[Row], how: SplitSpec) -> str:
    entry = row["entry"]
    if how.strategy == "stratified":
        same = [r for r in kept if r["entry"].label == entry.label]
        same.sort(key=lambda r: splits.draw(r["image_id"], how.seed))
        spare = len(same) - 1
        test = min(max(round(how.test * len(same)), 1), spare)
        rest = min(max(round(how.validation * len(same)), 1), spare - test)
        place = same.index(row)
        return [TEST, VALIDATION, TRAIN][(place >= test) + (place >= test + rest)]
    declared = {r["entry"].split for r in kept} - {None}
    if how.strategy == "stable":
        declared = set()
    if entry.split in declared - {TRAIN}:
        return entry.split
    grouped = how.strategy == "auto" and entry.group is not None
    name = f"group {entry.group}" if grouped else row["image_id"]
    share = splits.draw(name, how.seed)
    test = 0 if TEST in declared else how.test
    if share < test:
        return TEST
    validation = 0 if VALIDATION in declared else how.validation
    return VALIDATION if share < test + validation else TRAIN


def rows(found: Scan) -> dict[str, list[Row]]:
    names = ("manifest", "quarantine", "duplicates")
    return {name: getattr(found, name).to_pylist() for name in names}


@st.composite
def sources(draw: st.DrawFn) -> list[Entry]:
    """Few images, so that copies, also under other labels and splits, are common."""
    count = draw(st.integers(0, 30))
    return [
        Entry(
            uri=f"{draw(st.sampled_from('äb'))}/{place}/{draw(st.integers(0, 14))}",
            label=draw(st.sampled_from(["a", "a", "a", "b", "ü", "", None])),
            version=draw(st.sampled_from(["1", "2", None])),
            split=draw(st.none() | st.sampled_from(SPLITS)),
            group=draw(st.none() | st.sampled_from(["g1", "g2"])),
            weight=draw(st.none() | st.sampled_from([0.0, 0.5, 1.0])),
        )
        for place in range(count)
    ]


specs = st.builds(
    SplitSpec,
    strategy=st.sampled_from(["auto", "stable", "stratified"]),
    seed=st.integers(0, 9),
)


@settings(deadline=None, database=None)
@given(sources(), specs, st.sampled_from([1, 3, 256]))
def test_columns_hold_what_a_loop_over_rows_finds(entries, how, size):
    """At first, and by the memo; with columns cut into pieces of any size."""
    dataset, expected = spec(**how.model_dump()), plain(Given(entries), how)
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.multiple(scanning, _BATCH=size, _SLICE=size),
        patch.multiple(tables, _STEP=size),
        patch.multiple(tables, _STEP=size),
        patch.multiple(identity, _STEP=size),
    ):
        store = Store.open(folder)
        store.create()
        for known in (set(), {e.uri for e in entries if e.version}):
            source = Given(entries)
            found = scan(source, dataset, Memo(store, "given"))
            assert rows(found) == expected
            images = {u for u in known if int(u.rpartition("/")[2]) > 2}
            assert images.isdisjoint(source.reads)
            assert found.inputs == len(entries)
        names = ("image_id", "label", "split", "group", "weight")
        lists = [[row[name] for row in expected["manifest"]] for name in names]
        assert tables.fingerprint(found.manifest, *names) == digest(lists)


@settings(deadline=None, database=None, max_examples=50)
@given(sources(), st.integers(1, 3))
def test_clashing_hashes_cost_reads_and_no_more(entries, different):
    """Hashes of uris as bad as can be: the facts are those of the right uri."""

    def bad(uris):
        return np.array([len(uri) % different for uri in uris], np.int64)

    expected = plain(Given(entries), SplitSpec())
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(identity, "_hashed", bad),
    ):
        store = Store.open(folder)
        store.create()
        for _ in range(3):
            found = scan(Given(entries), spec(), Memo(store, "given"))
            assert rows(found) == expected


def scanned(store: Store, how: DatasetSpec, *entries: Entry) -> Scan:
    return scan(Given(list(entries)), how, Memo(store, "x"))


@pytest.mark.parametrize("last", ["b/0/19", "b/0/0"], ids=["read", "unreadable"])
@pytest.mark.parametrize(
    ("splits", "how", "expected"),
    [
        ([TRAIN, VALIDATION], spec(), TEST),
        ([TRAIN, VALIDATION], spec(strategy="predefined"), TEST),
        ([TRAIN, VALIDATION, TEST], spec(), VALIDATION),
        (
            [TRAIN, VALIDATION],
            ImageFolderSpec(name="x", path=Path("x"), splits={"train": "a"}),
            VALIDATION,
        ),
    ],
)
def test_validation_alone_is_the_test_split_unless_the_entry_names_it(
    store: Store, splits: list[str], how: DatasetSpec, expected: str, last: str
):
    """Whatever the kind of source. A declared test that cannot be read stays one."""
    uris = ["a/0/7", "a/0/8", last]
    entries = [Entry(u, "a", None, s) for u, s in zip(uris, splits, strict=False)]
    found = scanned(store, how, *entries)
    rows = {row["uri"]: row for row in found.manifest.to_pylist()}
    assert (rows["a/0/8"]["split"], rows["a/0/8"]["declared"]) == (expected, expected)
    note = "no test split is declared: the declared validation is the test split"
    assert (note in found.notes) == (expected == TEST)


def test_labels_are_evened_out_and_what_looks_alike_is_told(store: Store):
    labels = ["cat", "cat ", "\tcat\n", "caf\u00e9", "cafe\u0301", "Cat", " ", "nan"]
    labels += ["0", "0.0", "00", "fire truck", "Fire_Truck", "C", "C++"]
    entries = [Entry(f"x/{n}/{n + 3}", label) for n, label in enumerate(labels)]
    found = scanned(store, spec(), *entries)
    classes = set(found.manifest["label"].to_pylist())
    assert classes == {"cat", "caf\u00e9", "Cat", *labels[7:]}
    assert found.quarantine["reason"].to_pylist() == ["no label"]
    mended, alike, missing = found.notes
    assert mended.startswith("4 labels had spaces around them or another Unicode form")
    assert alike == (
        "classes that look alike: '0', '0.0', '00'; 'Cat', 'cat'; "
        "'Fire_Truck', 'fire truck'"
    )
    assert missing == "classes that may be missing labels: 'nan'"


def test_a_file_whose_version_changed_is_read_again(store: Store):
    before = [Entry(f"a/{n}/{n}", "a", "1") for n in range(3, 600)]
    scan(Given(before), spec(), Memo(store, "given"))
    now = [*before[:-1], Entry(before[-1].uri, "a", "2"), Entry("a/new/700", "a", "1")]
    again = Given(now)
    scan(again, spec(), Memo(store, "given"))
    assert again.reads == [before[-1].uri, "a/new/700"]
    again = Given(now)
    scan(again, spec(), Memo(store, "given"))
    assert again.reads == []


MANY = """
import json, sys
from pathlib import Path
from tl_pipeline.store.artifacts import Store
from tl_pipeline.config.datasets import DigitsSpec
from tl_pipeline.runs.planning import Workspace
from tl_pipeline.sources import Entry, Source
from tl_pipeline.pipeline.stages import ingest

HEAD = bytes.fromhex("ffd8ffc0000b080020002001011100")  # a grey JPEG of 32x32

class Many(Source):
    def __init__(self, rows):
        self.rows = rows
    def entries(self):
        for n in range(self.rows):
            uri = f"/data/photos/class-{n % 43:02d}/photo-{n:09d}.jpg"
            yield Entry(uri, f"class {n % 43:02d}", f"2048:17{n:017d}")
    def read(self, uri):
        return HEAD + uri[-13:].encode()

def peak():
    (line,) = [x for x in open("/proc/self/status") if x.startswith("VmHWM")]
    return int(line.split()[1]) * 1024

def ingested(rows, store):
    ingest.open_source = lambda spec: Many(rows)
    dataset = DigitsSpec(type="digits", name="many")
    step = ingest.Ingest(Workspace(store), dataset).run().step
    return step.units, step.cached

store = Store.open(sys.argv[2])
store.create()
ingested(1000, Store.open(sys.argv[2] + "-small"))
floor = peak()
units, cached = ingested(int(sys.argv[1]), store)
print(json.dumps([units, cached, peak() - floor]))
"""


@pytest.mark.exhaustive  # columns are those of a loop: below
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells it")
def test_memory_grows_by_less_than_a_kilobyte_per_image(tmp_path: Path):
    """In a process of its own, first without and then with a memo.

    A loop over dictionaries takes 1,900 bytes an image, and 2,200 with its memo.
    """
    images = 100_000
    run = [sys.executable, "-c", MANY, str(images), str(tmp_path / "store")]
    for again in (False, True):
        said = json.loads(subprocess.check_output(run, timeout=200))
        assert said[:2] == [images, again]
        assert said[2] < 1024 * images
