"""Datasets that once gave a wrong answer in silence, or a refusal that did not help.

Each kind is made here by code; where the shared folder of cases is there, its inputs
are tried as well. What is typed is `tl catalog show` and `tl plan`.
"""

import io
import json
import os
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import ExifTags, Image

from tests.command_line import Tl, in_this_process

LABELS = ("cat", "dog")
TABLE = "{type: table, path: t.csv, image_column: file, label_column: label}"


def image(seed: int, size: tuple[int, int] = (40, 32), turned: int = 0) -> bytes:
    """A JPEG that is no other's copy; ``turned`` is its EXIF orientation."""
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    exif, file = Image.Exif(), io.BytesIO()
    if turned:
        exif[ExifTags.Base.Orientation] = turned
    Image.fromarray(pixels).save(file, "JPEG", exif=exif)
    return file.getvalue()


def folder(root: Path, *places: str, each: int = 14) -> None:
    """``each`` images in every one of the folders ``places``."""
    for number, place in enumerate(places):
        (root / place).mkdir(parents=True)
        for n in range(each):
            (root / place / f"{n:03d}.jpg").write_bytes(image(100 * number + n))


def entry(root: Path, name: str, fields: str) -> None:
    text = f"version: 1\ndatasets:\n  {name}: {fields}\n"
    (root / "data_catalog.yaml").write_text(text)


def table(root: Path, cell: str = "im/{}", encoding: str = "utf-8", **odd: str) -> None:
    """28 images in im/ and a table of them; ``odd`` replaces whole lines by number."""
    folder(root, "im", each=28)
    entry(root, "t", TABLE)
    label = "chaté" if encoding != "utf-8" else "cat"
    lines = ["file,label,note"]
    lines += [
        f"{cell.format(f'{n:03d}.jpg')},{label if n < 14 else 'dog'},ok"
        for n in range(28)
    ]
    for number, line in odd.items():
        lines[int(number.removeprefix("line")) - 1] = line
    (root / "t.csv").write_bytes(("\n".join(lines) + "\n").encode(encoding))


def spaced(root: Path) -> None:
    table(root)
    text = (root / "t.csv").read_text().replace("4.jpg,cat", "4.jpg,cat ")
    (root / "t.csv").write_text(text.replace("9.jpg,dog", "9.jpg, dog"))


def tar(root: Path, kind: str, *members: tuple[str, bytes]) -> None:
    entry(root, "t", f"{{type: {kind}, path: s.tar}}")
    with tarfile.open(root / "s.tar", "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def samples(
    *endings: str, stem: str = "{}", seed: int = 0
) -> Iterator[tuple[str, bytes]]:
    for number in range(28):
        key = stem.format(f"{number:03d}")
        for place, ending in enumerate(endings):
            yield f"{key}.{ending}", image(seed + 100 * place + number)
        yield f"{key}.cls", LABELS[number % 2].encode()


def zipped(root: Path, method: int = zipfile.ZIP_DEFLATED, *, locked: bool = False):
    entry(root, "z", "{type: archive, path: photos.zip}")
    with zipfile.ZipFile(root / "photos.zip", "w", method) as archive:
        for number in range(28):
            name = f"{LABELS[number % 2]}/{number:03d}.jpg"
            archive.writestr(name, image(number))
    if locked:
        data = bytearray((root / "photos.zip").read_bytes())
        for mark, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
            start = -1
            while (start := data.find(mark, start + 1)) >= 0:
                data[start + at] |= 1
        (root / "photos.zip").write_bytes(data)


def archive(root: Path, name: str, head: bytes) -> None:
    entry(root, "z", f"{{type: archive, path: {name}}}")
    (root / name).write_bytes(head)


def coco(root: Path, box: list[int], told: tuple[int, int], turned: int = 0) -> None:
    entry(root, "t", "{type: coco_objects, train: ann.json, images: im}")
    (root / "im").mkdir()
    photos, boxes = [], []
    for n in range(20):
        data = image(n, (64, 48), turned)
        (root / "im" / f"p{n:03d}.jpg").write_bytes(data)
        size = dict(zip(("width", "height"), told, strict=True))
        photos.append({"id": n, "file_name": f"p{n:03d}.jpg", **size})
        for category, found in enumerate(([0, 0, 32, 48], box)):
            boxes.append({"image_id": n, "category_id": category, "bbox": found})
    names = [{"id": number, "name": label} for number, label in enumerate(LABELS)]
    document = {"images": photos, "annotations": boxes, "categories": names}
    (root / "ann.json").write_text(json.dumps(document))


def listed_labels(root: Path) -> None:
    entry(root, "t", "{type: table, path: t.parquet}")
    rows = {"image": [image(n) for n in range(28)], "label": [["cat", "dog"]] * 28}
    pq.write_table(pa.table(rows), root / "t.parquet")


def pets(root: Path, *more: str, names: tuple[str, str] = ("train", "test")) -> None:
    folder(root / "pets", *(f"{name}/{label}" for name in names for label in LABELS))
    for name in more:
        (root / "pets" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "pets" / name).write_bytes(b"x")


def emptied(root: Path) -> None:
    pets(root)
    (root / "pets" / "unlabeled").mkdir()


# By the name of the case: how to make it.
MADE: dict[str, Callable[[Path], object]] = {
    "archive-7z": lambda at: archive(at, "photos.7z", b"7z\xbc\xaf\x27\x1c\0\4"),
    "archive-html": lambda at: archive(at, "photos.zip", b"<!DOCTYPE html><html>"),
    "coco-exif6-upright-size": lambda at: coco(at, [32, 0, 32, 48], (48, 64), 6),
    "coco-over-edge-1px": lambda at: coco(at, [32, 0, 33, 48], (64, 48)),
    "csv-basename-only": lambda at: table(at, "{}"),
    "csv-cp1252": lambda at: table(at, encoding="cp1252"),
    "csv-label-trailing-space": spaced,
    "csv-stray-quote-in-note": lambda at: table(
        at, line12='im/010.jpg,cat,"dim', line22='im/020.jpg,dog,"dim'
    ),
    "csv-unclosed-quote": lambda at: table(at, line7='im/005.jpg,"cat,ok'),
    "csv-utf16": lambda at: table(at, encoding="utf-16"),
    "csv-windows-paths": lambda at: table(at, "im\\{}"),
    "csv-wrong-case": lambda at: table(at, "IM/{}"),
    "folder-nfc-nfd": lambda at: folder(
        at / "photos", "caf\u00e9", "cafe\u0301", "the"
    ),
    "folder-symlink-mutual": lambda at: folder(at / "photos", *LABELS),
    "pq-list-label": listed_labels,
    "split-names-capital": lambda at: pets(at, names=("Train", "Test")),
    "split-names-dev": lambda at: pets(at, names=("train", "dev")),
    "split-names-empty-extra": emptied,
    "split-names-extra-folder": lambda at: pets(at, "models/note.txt"),
    "split-names-macosx": lambda at: pets(at, "__MACOSX/train/cat/._000.jpg"),
    "split-names-nightly-flip": pets,
    "tar-duplicate-names": lambda at: tar(
        at,
        "archive",
        *((f"{LABELS[n % 2]}/{n:03d}.jpg", image(n)) for n in range(28)),
        ("cat/000.jpg", image(99)),
    ),
    "wds-dots-tail": lambda at: tar(
        at, "webdataset", *samples("jpg"), *samples("jpg", stem="IMG_v2.0_{}", seed=500)
    ),
    "wds-two-images": lambda at: tar(
        at, "webdataset", *samples("left.jpg", "right.jpg")
    ),
    "zip-bzip2": lambda at: zipped(at, zipfile.ZIP_BZIP2),
    "zip-encrypted-all": lambda at: zipped(at, locked=True),
}
# Cases of a folder, by the name of the folder; the others name an entry.
FOLDERS = {"folder": "photos", "split": "pets"}
ENTRIES = {"archive": "z", "zip": "z"}


class Case:
    """A case, its place, and what is typed there."""

    def __init__(self, place: Path, tl: Tl, dataset: str) -> None:
        self.place, self.tl, self.dataset = place, tl, dataset

    def shown(self) -> dict:
        """What `tl catalog show --json` prints."""
        done = self.tl("catalog", "show", self.dataset, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def refused(self, code: int) -> str:
        """What show and plan refuse in the same words, with this exit code."""
        plan = ("plan", self.dataset, "--backbone", "lenet5", "--no-controls")
        both: list[subprocess.CompletedProcess[str]] = [
            self.tl("catalog", "show", self.dataset),
            self.tl(*plan),
        ]
        assert [done.returncode for done in both] == [code, code]
        assert both[0].stderr == both[1].stderr
        assert "Traceback" not in both[0].stderr
        return both[0].stderr

    def says(self, **fields: str) -> None:
        """Give the entry more fields."""
        file = self.place / "data_catalog.yaml"
        more = "".join(f", {name}: {value}" for name, value in fields.items())
        file.write_text(file.read_text().replace("}", f"{more}}}"))


@pytest.fixture(params=["made", "shared"])
def case(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Case]:
    """``case(name)``: a case that is made here, or a copy of the shared one."""

    def find(name: str) -> Case:
        place = tmp_path / name
        kind = name.partition("-")[0]
        dataset = FOLDERS.get(kind, ENTRIES.get(kind, "t"))
        if request.param == "shared":
            shared: Path = request.getfixturevalue("shared")
            if not (shared / "cases" / name).is_dir():
                pytest.skip("no shared cases")
            shutil.copytree(
                shared / "cases" / name, place, copy_function=shutil.copyfile
            )
            for found in (place, *place.rglob("*")):
                found.chmod(0o755)
            if not (place / "data_catalog.yaml").exists():
                (dataset,) = {f.name for f in place.iterdir() if f.is_dir()}
        else:
            place.mkdir()
            MADE[name](place)
        return Case(place, in_this_process(place, monkeypatch), dataset)

    return find


def counts(shown: dict) -> dict[str, int]:
    """Class -> its images."""
    return {row["class"]: row["all"] for row in shown["classes"]}


# Archives


@pytest.mark.parametrize(
    ("name", "said"),
    [("archive-7z", "it is a 7z archive"), ("archive-html", "it is an HTML page")],
)
def test_an_archive_of_another_kind_is_named_with_those_that_are_read(
    case: Callable[[str], Case], name: str, said: str
):
    message = case(name).refused(2)
    assert said in message
    assert "read are zip files, and tar plain or compressed by gzip" in message


def test_an_encrypted_zip_is_said_to_be_one(case: Callable[[str], Case]):
    message = case("zip-encrypted-all").refused(3)
    assert "none of 28 inputs can be used (28 unreadable). The first of" in message
    assert message.count("photos.zip#") == 5
    assert message.count("encrypted; unpack it with its password") == 5
    assert "root/class" not in message


def test_a_zip_of_bzip2_is_read(case: Callable[[str], Case]):
    assert counts(case("zip-bzip2").shown()) == {"cat": 14, "dog": 14}


def test_the_last_member_of_a_name_counts(case: Callable[[str], Case]):
    shown = case("tar-duplicate-names").shown()
    assert counts(shown) == {"cat": 14, "dog": 14}
    assert shown["notes"] == [
        "1 members are replaced by later ones of their name: 'cat/000.jpg'"
    ]


# Shards


def test_names_with_dots_are_samples_of_their_own(case: Callable[[str], Case]):
    found = case("wds-dots-tail")
    shown = found.shown()
    with tarfile.open(found.place / "s.tar") as archive:
        images = sum(name.endswith(".jpg") for name in archive.getnames())
    assert shown["images"] == images
    assert shown["refused"] == 0


def test_which_of_two_images_is_meant_must_be_said(case: Callable[[str], Case]):
    found = case("wds-two-images")
    message = found.refused(3)
    assert "the sample has left.jpg, right.jpg, cls, none of which 'image'" in message
    assert "'image: [left.jpg]'" in message
    found.says(image="[left.jpg, right.jpg]")
    shown = found.shown()
    assert shown["images"] == 28
    (note,) = shown["notes"]
    assert note.endswith("left out are 28 right.jpg ('image' decides)")


# Boxes


def test_a_box_a_pixel_over_the_edge_names_the_option_that_clips(
    case: Callable[[str], Case],
):
    found = case("coco-over-edge-1px")
    plan = found.tl("plan", "t", "--backbone", "lenet5", "--no-controls")
    assert plan.returncode == 3
    assert "not inside 64x48, by 1 px; 'boxes: clip' takes what is in" in plan.stderr
    found.says(boxes="clip")
    assert found.shown()["images"] == 40


def test_boxes_on_a_photo_turned_by_exif_name_its_orientation(
    case: Callable[[str], Case],
):
    found = case("coco-exif6-upright-size")
    plan = found.tl("plan", "t", "--backbone", "lenet5", "--no-controls")
    assert plan.returncode == 3
    assert "EXIF orientation 6 turns the photo, which is stored as 64x48" in plan.stderr


# Tables


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("csv-basename-only", "/im holds it: set 'root'"),
        ("csv-wrong-case", "which differs in case only"),
    ],
)
def test_paths_that_lead_nowhere_name_the_likely_cure(
    case: Callable[[str], Case], name: str, said: str
):
    found = case(name)
    message = found.refused(3)
    assert message.count("no such file") == message.count(said) == 5
    assert f"{found.place}/" in message
    assert "root/class" not in message


def test_paths_of_windows_are_read(case: Callable[[str], Case]):
    assert case("csv-windows-paths").shown()["images"] == 28


def test_another_encoding_is_named_and_read(case: Callable[[str], Case]):
    found = case("csv-cp1252")
    message = found.refused(2)
    assert "t.csv:2: not in UTF-8 (byte 0xe9)" in message
    assert "'encoding: cp1252'" in message
    assert "Rename" not in message
    found.says(encoding="cp1252")
    assert "chaté" in counts(found.shown())


def test_utf16_is_read(case: Callable[[str], Case]):
    assert case("csv-utf16").shown()["images"] == 28


def test_spaces_around_labels_make_no_classes(case: Callable[[str], Case]):
    shown = case("csv-label-trailing-space").shown()
    assert counts(shown) == {"cat": 14, "dog": 14}
    assert "labels had spaces around them" in shown["notes"][0]


@pytest.mark.parametrize(
    ("name", "line"), [("csv-stray-quote-in-note", 12), ("csv-unclosed-quote", 7)]
)
def test_a_quote_that_would_swallow_rows_is_named_by_line(
    case: Callable[[str], Case], name: str, line: int
):
    assert f"t.csv:{line}: a quote that opens in this row" in case(name).refused(2)


def test_several_labels_of_an_image_are_said_to_be_so(case: Callable[[str], Case]):
    message = case("pq-list-label").refused(2)
    assert "column 'label' holds a list of labels for each image" in message
    assert "Rename" not in message


# Folders


def test_two_unicode_forms_of_a_name_are_one_class(case: Callable[[str], Case]):
    shown = case("folder-nfc-nfd").shown()
    assert sorted(counts(shown).values()) == [14, 28]
    assert "another Unicode form" in shown["notes"][0]


def test_links_in_a_ring_list_each_file_once(case: Callable[[str], Case]):
    found = case("folder-symlink-mutual")
    for one, other in (("cat", "dog"), ("dog", "cat")):
        (found.place / "photos" / one / "link").symlink_to(f"../{other}")
    shown = found.shown()
    assert counts(shown) == {"cat": 14, "dog": 14}
    assert shown["refused"] == 0


@pytest.mark.parametrize(
    "name",
    [
        "split-names-capital",
        "split-names-dev",
        "split-names-empty-extra",
        "split-names-macosx",
    ],
)
def test_folders_of_splits_are_splits(case: Callable[[str], Case], name: str):
    found = case(name)
    if name == "split-names-empty-extra":  # copies may lose an empty folder
        (found.place / "pets" / "unlabeled").mkdir(exist_ok=True)
    root = found.place / found.dataset
    shown = found.shown()
    assert set(counts(shown)) <= {"cat", "dog", "0", "1", "2", "10"}
    (held,) = (p for p in root.iterdir() if p.name.lower() in ("test", "dev"))
    files = [file for file in held.rglob("*") if file.is_file()]
    assert sum(row["test"] for row in shown["classes"]) == len(files)


def test_a_folder_beside_splits_is_named_with_the_field_that_decides(
    case: Callable[[str], Case],
):
    found = case("split-names-extra-folder")
    message = found.refused(2)
    assert "'test', 'train' look like splits, but 'models' beside them" in message
    assert "'splits: {train: train, test: test}' for splits" in message
    assert "'splits: {}' for classes" in message
    fields = "{type: image_folder, path: pets, splits: {train: train, test: test}}"
    entry(found.place, "pets", fields)
    assert set(counts(found.shown())) == {"cat", "dog"}


def test_an_empty_folder_that_comes_overnight_changes_nothing(
    case: Callable[[str], Case],
):
    found = case("split-names-nightly-flip")
    before = found.shown()
    (found.place / "pets" / "backup").mkdir()
    assert found.shown() == before


# Pipes


def test_a_reader_that_stops_reading_ends_it_without_a_word(tmp_path: Path):
    """As `tl catalog schema | head -1` does."""
    import sys

    from tests.conftest import REPOSITORY

    command = [sys.executable, "-m", "tl_pipeline.cli", "catalog", "schema"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as typed:
        assert typed.stdout
        assert typed.stderr
        typed.stdout.close()
        assert typed.stderr.read() == ""
        assert typed.wait() == 141
