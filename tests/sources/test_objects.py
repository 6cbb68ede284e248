"""Objects cut out of photos by their boxes, in VOC's and COCO's layouts on disk."""

import importlib
import io
import json
import pickle
import random
import resource
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import ExifTags, Image

from tl_pipeline.config.datasets import CocoObjectsSpec, TorchvisionSpec, VocObjectsSpec
from tl_pipeline.data.identity import Memo, image_id
from tl_pipeline.data.scan import scan
from tl_pipeline.errors import DatasetError, InvalidSpec
from tl_pipeline.inputs.images import RefusedImage, as_ppm
from tl_pipeline.sources import Source, crops, open_source
from tl_pipeline.sources.coco_objects import CocoObjects
from tl_pipeline.sources.torchvision_dataset import TorchvisionDataset
from tl_pipeline.sources.voc_objects import VocObjects
from tl_pipeline.store.artifacts import Store

Images = list[tuple[bytes, str]]


class Thing(NamedTuple):
    """An object: its class and its box, left, top, width, height in pixels from 0."""

    label: str
    box: tuple[float, float, float, float]
    hard: bool = False  # VOC's difficult, COCO's iscrowd


class Photo(NamedTuple):
    """A photo with objects, and the size that its annotation tells."""

    name: str
    data: bytes
    things: list[Thing]
    size: tuple[int, int] | None = None


def picture(seed: int, width: int = 40, height: int = 30) -> bytes:
    """A PPM in which every pixel differs from its neighbours."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    return as_ppm(values.astype(np.uint8))


def cut(data: bytes, left: int, top: int, width: int, height: int) -> bytes:
    """What a box of ``picture`` holds, by indexing its pixels."""
    *_, size, _, pixels = data.split(b"\n", 3)
    across, down = map(int, size.split())
    values = np.frombuffer(pixels, np.uint8).reshape(down, across, 3)
    return as_ppm(values[top : top + height, left : left + width])


def some_photos(first: int = 0, n: int = 4) -> list[Photo]:
    """Photos of three objects each, of two classes."""
    return [
        Photo(
            f"{number:06d}",
            picture(number),
            [
                Thing("cat", (number % 5, 2, 12, 10)),
                Thing("dog", (10, 5, 30, 25)),
                Thing("cat", (0, 0, 40, 30)),
            ],
            (40, 30),
        )
        for number in range(first, first + n)
    ]


def put(file: Path, data: bytes | str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data.encode() if isinstance(data, str) else data)
    return file


# VOC's files


def xml_of(photo: Photo) -> str:
    """An annotation as VOC writes it: pixels from 1, both ends inside."""
    root = ET.Element("annotation")
    ET.SubElement(root, "filename").text = f"{photo.name}.jpg"
    if photo.size:
        size = ET.SubElement(root, "size")
        for side, value in zip(("width", "height"), photo.size, strict=True):
            ET.SubElement(size, side).text = str(value)
    for thing in photo.things:
        left, top, width, height = thing.box
        node = ET.SubElement(root, "object")
        ET.SubElement(node, "name").text = thing.label
        ET.SubElement(node, "difficult").text = str(int(thing.hard))
        box = ET.SubElement(node, "bndbox")
        ends = (left + 1, top + 1, left + width, top + height)
        for end, value in zip(("xmin", "ymin", "xmax", "ymax"), ends, strict=True):
            ET.SubElement(box, end).text = str(value)
        part = ET.SubElement(node, "part")  # of a person: not an object of its own
        ET.SubElement(ET.SubElement(part, "bndbox"), "xmin").text = "1"
    return ET.tostring(root, encoding="unicode")


def write_voc(
    root: Path, base: str = "VOCdevkit/VOC2012", **splits: list[Photo]
) -> Path:
    """The layout of torchvision, with VOC's names of splits; where its XML is."""
    for split, photos in splits.items():
        names = "".join(f"{photo.name}\n" for photo in photos)
        put(root / base / "ImageSets" / "Main" / f"{split}.txt", names)
        for photo in photos:
            put(root / base / "JPEGImages" / f"{photo.name}.jpg", photo.data)
            put(root / base / "Annotations" / f"{photo.name}.xml", xml_of(photo))
    return root / base / "Annotations"


def voc(root: Path, **fields: Any) -> VocObjects:
    """The source; nothing is read yet."""
    return VocObjects(VocObjectsSpec(name="x", type="voc_objects", path=root, **fields))


def voc_of(root: Path, photos: list[Photo], **fields: Any) -> VocObjects:
    """The source of these photos to train on, and of one more to test on."""
    write_voc(root, train=photos, val=some_photos(900, 1))
    return voc(root, **fields)


# COCO's files


def coco_json(photos: list[Photo]) -> dict[str, Any]:
    """COCO's document, its annotations in no order, with outlines."""
    labels = sorted({thing.label for photo in photos for thing in photo.things})
    images, annotations = [], []
    for n, photo in enumerate(photos):
        size = zip(("width", "height"), photo.size or (), strict=False)
        images.append({"id": 7 * n, "file_name": f"{photo.name}.jpg", **dict(size)})
        for thing in photo.things:
            told = {"image_id": 7 * n, "category_id": 3 * labels.index(thing.label)}
            drawn = {"segmentation": [[1.5, 2.5, 3.0, 4.0]], "area": 3.5}
            flags = {"bbox": list(thing.box), "iscrowd": int(thing.hard)}
            number = {"id": len(annotations)}
            annotations.append({**number, **told, **drawn, **flags})
    random.Random(0).shuffle(annotations)
    categories = [{"id": 3 * n, "name": label} for n, label in enumerate(labels)]
    info = {"info": {"year": 2017}, "licenses": [{"id": 1, "name": "CC"}]}
    return {
        **info,
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


def write_coco(root: Path, **splits: list[Photo]) -> dict[str, Path]:
    """COCO's own layout: annotations/instances_train2017.json beside train2017/."""
    for split, photos in splits.items():
        put(
            root / "annotations" / f"instances_{split}.json",
            json.dumps(coco_json(photos)),
        )
        for photo in photos:
            put(root / split / f"{photo.name}.jpg", photo.data)
    return {name: root / "annotations" / f"instances_{name}.json" for name in splits}


def coco(train: Path, **fields: Any) -> CocoObjects:
    """The source; nothing is read yet."""
    return CocoObjects(
        CocoObjectsSpec(name="x", type="coco_objects", train=train, **fields)
    )


def coco_of(root: Path, photos: list[Photo], **fields: Any) -> CocoObjects:
    """The source of these photos."""
    return coco(write_coco(root, train2017=photos)["train2017"], **fields)


def changed(file: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """The JSON file, after ``change`` was at its document."""
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))
    return file


KINDS: dict[str, Callable[..., Source]] = {"voc": voc_of, "coco": coco_of}


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest) -> Callable[..., Source]:
    """Either kind of source, of given photos."""
    return KINDS[request.param]


def quarantined(source: Source, store: Store) -> list[dict[str, Any]]:
    """The rows that a scan refuses."""
    assert isinstance(source, VocObjects | CocoObjects)
    return scan(source, source._spec, Memo(store, "x")).quarantine.to_pylist()


def train_of(source: Source) -> list[Any]:
    return [entry for entry in source.entries() if entry.split in ("train", None)]


# What both promise


def test_an_object_is_the_pixels_of_its_box(
    make: Callable[..., Source], tmp_path: Path
):
    photos = some_photos()
    source = make(tmp_path, photos)
    expected = sorted(
        (thing.label, cut(photo.data, *map(int, thing.box)))
        for photo in photos
        for thing in photo.things
    )
    found = [(entry.label, source.read(entry.uri)) for entry in train_of(source)]
    assert sorted(found) == expected


def test_two_hundred_come_back(
    make: Callable[..., Source], tmp_path: Path, two_hundred: Images
):
    """Photos whose box is all of them have the same ids as in every other source."""
    photos = [
        Photo(f"{n:06d}", data, [Thing(label, (0, 0, 32, 32))], (32, 32))
        for n, (data, label) in enumerate(two_hundred)
    ]
    source = make(tmp_path, photos)
    found = {(image_id(source.read(e.uri)), e.label) for e in train_of(source)}
    assert found == {(image_id(data), label) for data, label in two_hundred}


def test_objects_of_one_photo_are_one_group(
    make: Callable[..., Source], tmp_path: Path, store: Store
):
    source = make(tmp_path, some_photos(n=40))
    groups = Counter(entry.group for entry in train_of(source))
    assert set(groups.values()) == {3}
    assert len(groups) == 40
    rows = scan(source, source._spec, Memo(store, "x")).manifest.to_pylist()  # type: ignore[attr-defined]
    sides: dict[str, set[str]] = {}
    for row in rows:
        sides.setdefault(row["group"], set()).add(row["split"])
    assert {len(found) for found in sides.values()} == {1}
    assert len({row["split"] for row in rows}) == 3


def test_any_thread_and_a_copy_read_what_was_listed(
    make: Callable[..., Source], tmp_path: Path
):
    source = make(tmp_path, some_photos())
    data = {entry.uri: source.read(entry.uri) for entry in source.entries()}
    copy = pickle.loads(pickle.dumps(source))
    shuffled = random.Random(0).sample(list(data) * 9, len(data) * 9)
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(copy.read, shuffled)) == [data[u] for u in shuffled]


def test_each_photo_is_decoded_once_in_the_order_of_the_listing(
    make: Callable[..., Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    decoded: list[bytes] = []

    def counted(data: bytes, *how: Any) -> Image.Image:
        decoded.append(data)
        return real(data, *how)

    real = crops.decode
    monkeypatch.setattr(crops, "decode", counted)
    source = make(tmp_path, some_photos())
    for entry in train_of(source):
        source.read(entry.uri)
    assert len(decoded) == len(set(decoded)) == 4


def test_decoded_photos_do_not_pile_up(
    make: Callable[..., Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for room, most in ((10**9, 9), (3 * 3600, 3), (100, 1)):  # a photo has 3600 bytes
        monkeypatch.setattr(crops, "_KEPT", room)
        source = make(tmp_path, some_photos(n=9))
        for entry in train_of(source):
            source.read(entry.uri)
        assert len(source._photos._kept) == most  # type: ignore[attr-defined]


def test_a_photo_that_changes_is_decoded_again(
    make: Callable[..., Source], tmp_path: Path
):
    source = make(tmp_path, some_photos(n=1))
    entry = train_of(source)[0]
    before = source.read(entry.uri)
    put(Path(entry.uri.partition("#")[0]), picture(77) + b"\0")
    (after,) = (e for e in train_of(source) if e.uri == entry.uri)
    assert after.version != entry.version
    assert source.read(entry.uri) == cut(picture(77), 0, 2, 12, 10) != before


def test_a_margin_reaches_as_far_as_the_photo(
    make: Callable[..., Source], tmp_path: Path
):
    things = [Thing("cat", (10, 10, 10, 8)), Thing("dog", (0, 20, 20, 10))]
    photo = Photo("000001", picture(1), things, (40, 30))
    plain = make(tmp_path, [photo])
    source = make(tmp_path, [photo], margin=0.5)
    data = {entry.label: source.read(entry.uri) for entry in train_of(source)}
    assert data == {
        "cat": cut(photo.data, 5, 6, 20, 16),
        "dog": cut(photo.data, 0, 15, 30, 15),
    }
    # The memo goes by uris: another margin must not have the same.
    uris = [{entry.uri for entry in s.entries()} for s in (plain, source)]
    assert uris[0].isdisjoint(uris[1])


def test_a_box_twice_is_two_inputs(
    make: Callable[..., Source], tmp_path: Path, store: Store
):
    same = [Thing("cat", (1, 1, 9, 9)), Thing("cat", (1, 1, 9, 9))]
    other = [Thing("cat", (3, 3, 9, 9)), Thing("dog", (3, 3, 9, 9))]
    source = make(tmp_path, [Photo("000001", picture(1), same + other, (40, 30))])
    uris = {entry.uri for entry in train_of(source)}
    assert len(uris) == 4
    assert len({source.read(uri) for uri in uris if "#box=1,1,9,9" in uri}) == 1
    refused = quarantined(source, store)
    assert [row["reason"] for row in refused] == ["conflicting labels"] * 2


@pytest.mark.parametrize(
    ("box", "size", "reason", "detail"),
    [
        ((30, 2, 11, 5), (40, 30), "wrong box", "not inside 40x30"),
        ((3, 26, 5, 5), (40, 30), "wrong box", "not inside 40x30"),
        ((-1, 2, 5, 5), (40, 30), "wrong box", "not inside 40x30"),
        ((3, -9, 5, 5), None, "wrong box", "not inside 40x30"),
        ((3, 3, 0, 5), (40, 30), "zero-sized", "0x5 pixels"),
        ((3, 3, 5, -2), (40, 30), "zero-sized", "5x-2 pixels"),
        ((3, 3, 5, 5), (80, 60), "wrong box", "80x60 pixels, this has 40x30"),
        ((3e300, 3, 5, 5), (40, 30), "unreadable", "not four numbers"),
    ],
)
def test_a_box_that_does_not_fit_is_refused_alone(
    make: Callable[..., Source],
    tmp_path: Path,
    store: Store,
    box: Any,
    size: Any,
    reason: str,
    detail: str,
):
    good = [Thing("dog", (1, 1, 9, 9))] if size != (80, 60) else []
    photo = Photo("000001", picture(1), [Thing("cat", box), *good], size)
    source = make(tmp_path, [photo, *some_photos(2, 1)])
    assert len(train_of(source)) == 4 + len(good)
    (row,) = quarantined(source, store)
    assert (row["reason"], detail in row["detail"]) == (reason, True)
    assert "000001" in row["uri"]


def test_a_box_over_the_edge_is_clipped_on_request(
    make: Callable[..., Source], tmp_path: Path, store: Store
):
    things = [
        Thing("cat", box) for box in ((30, 2, 11, 5), (-2, -3, 5, 5), (40, 2, 5, 5))
    ]
    data = picture(1)
    photos = [Photo("000001", data, things), Photo("000002", picture(2), [])]
    refused = quarantined(make(tmp_path / "a", photos), store)
    cure = "'boxes: clip' takes what is inside"
    details = [row["detail"] for row in refused]
    assert [cure in detail for detail in sorted(details)] == [True, True, False]
    assert "not inside 40x30, by 1 px" in " ".join(details)
    clipping = make(tmp_path / "b", photos, boxes="clip")
    found = train_of(clipping)
    assert [entry.version.endswith(":clip") for entry in found] == [True] * 3
    found.sort(key=lambda entry: int(entry.uri.split("#box=")[1].split(",")[0]))
    pixels = [clipping.read(entry.uri) for entry in found[:2]]
    assert pixels == [cut(data, 0, 0, 3, 2), cut(data, 30, 2, 10, 5)]
    with pytest.raises(RefusedImage, match=r"not inside 40x30, by 5 px$"):
        clipping.read(found[2].uri)


def test_photos_turned_by_exif_are_told(
    make: Callable[..., Source], tmp_path: Path, store: Store
):
    """Stored 40x30, upright 30x40: what each box is for cannot be known."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    file = io.BytesIO()
    Image.open(io.BytesIO(picture(1))).save(file, "JPEG", exif=exif)
    things = [Thing("cat", (0, 0, 20, 20)), Thing("dog", (25, 5, 10, 10))]
    upright = Photo("000001", file.getvalue(), things, (30, 40))
    as_stored = Photo("000002", file.getvalue() + b" ", things, (40, 30))
    source = make(tmp_path, [upright, as_stored])
    why = "EXIF orientation 6 turns the photo, which is stored as 40x30"
    refused = quarantined(source, store)
    assert len(refused) == 3
    assert all(why in row["detail"] for row in refused)
    (note,) = source.notes()
    assert note.startswith("2 photos are turned by EXIF, such as ")


def test_a_photo_without_a_told_size_is_cut_as_it_is(
    make: Callable[..., Source], tmp_path: Path
):
    for size in (None, (0, 0)):  # labelling tools write 0
        photo = Photo("000001", picture(1), [Thing("cat", (3, 4, 5, 6))], size)
        source = make(tmp_path, [photo])
        (entry,) = train_of(source)
        assert entry.uri.endswith("000001.jpg#box=3,4,5,6")
        assert source.read(entry.uri) == cut(photo.data, 3, 4, 5, 6)


@pytest.mark.parametrize("damage", ["gone", "text", "bomb", "pipe"])
def test_a_damaged_photo_refuses_only_its_objects(
    make: Callable[..., Source], tmp_path: Path, store: Store, damage: str
):
    import os

    source = make(tmp_path, some_photos())
    file = Path(train_of(source)[0].uri.partition("#")[0])
    file.unlink()
    if damage == "pipe":
        os.mkfifo(file)
    elif damage != "gone":
        bomb = b"P6\n60000 60000\n255\n"
        file.write_bytes(bomb if damage == "bomb" else b"no image")
    refused = quarantined(source, store)
    assert [row["uri"].partition("#")[0] for row in refused] == [str(file)] * 3
    reasons = {"text": "not an image", "bomb": "too many pixels"}
    assert {row["reason"] for row in refused} == {reasons.get(damage, "unreadable")}


@pytest.mark.parametrize("name", ["../../../secret", "/{folder}/secret", "a/../../b"])
def test_a_photo_outside_the_folder_is_refused(
    make: Callable[..., Source], tmp_path: Path, store: Store, name: str
):
    secret = Photo("secret", picture(5), [Thing("cat", (0, 0, 9, 9))])
    put(tmp_path / "secret.jpg", secret.data)
    name = name.format(folder=str(tmp_path)[1:])
    source = make(tmp_path / "root", [secret._replace(name=name), *some_photos(1)])
    refused = quarantined(source, store)
    assert [row["reason"] for row in refused] == ["unreadable"]
    with pytest.raises(OSError, match=r"leaves|leads out of the folder"):
        source.read(refused[0]["uri"])


def test_a_uri_cannot_climb_out_of_the_folder(
    make: Callable[..., Source], tmp_path: Path
):
    source = make(tmp_path, some_photos())
    folder = Path(train_of(source)[0].uri.partition("#")[0]).parent
    put(folder.parent / "secret.jpg", picture(5))
    with pytest.raises(PermissionError, match="leaves"):
        source.read(f"{folder}/../secret.jpg#box=0,0,9,9")


@pytest.mark.parametrize("tail", ["", "#box=1,2,3", "#box=1,2,3,4,5", "#box=a,b,c,d"])
def test_what_is_no_box_is_an_os_error(
    make: Callable[..., Source], tmp_path: Path, tail: str
):
    source = make(tmp_path, some_photos())
    photo = train_of(source)[0].uri.partition("#")[0]
    with pytest.raises(OSError, match="no such object"):
        source.read(photo + tail)


def test_a_fresh_process_cuts_by_the_uri_alone_and_without_torch(
    make: Callable[..., Source], tmp_path: Path
):
    source = make(tmp_path, some_photos())
    uri = train_of(source)[0].uri
    code = (
        "import pickle, sys\n"
        "source, uri = pickle.load(sys.stdin.buffer)\n"
        "assert list(source.entries())\n"
        "sys.stdout.buffer.write(source.read(uri))\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps((source, uri)),
        capture_output=True,
        check=True,
    )
    assert done.stdout == source.read(uri)


# VOC


def loader(root: Path, **fields: Any) -> Any:
    """The class of torchvision for the same files."""
    made = importlib.import_module("torchvision.datasets").VOCDetection
    return made(str(root), **fields)


@pytest.mark.parametrize("year", range(2007, 2013))
def test_voc_is_where_torchvision_puts_it(tmp_path: Path, year: int):
    module = importlib.import_module("torchvision.datasets.voc")
    base = module.DATASET_YEAR_DICT[str(year)]["base_dir"]
    write_voc(
        tmp_path,
        base,
        train=some_photos(0, 3),
        val=some_photos(10, 2),
        test=some_photos(20, 4),
    )
    found = list(voc(tmp_path, year=year).entries())
    ours = {"train": "train", "validation": "val", "test": "test"}
    if year != 2007:
        ours = {"train": "train", "test": "val"}
    assert {entry.split for entry in found} == set(ours)
    for split, official in ours.items():
        theirs = loader(tmp_path, year=str(year), image_set=official)
        photos = [e.uri.partition("#")[0] for e in found if e.split == split]
        assert list(dict.fromkeys(photos)) == sorted(theirs.images)


def test_boxes_are_those_that_torchvision_reads(tmp_path: Path):
    write_voc(tmp_path, train=some_photos(), val=some_photos(10))
    source, expected = voc(tmp_path), []
    for image, target in loader(tmp_path, image_set="train"):
        for thing in target["annotation"]["object"]:
            box = {end: int(text) for end, text in thing["bndbox"].items()}
            first = (box["xmin"] - 1, box["ymin"] - 1)
            crop = image.crop((*first, box["xmax"], box["ymax"]))
            expected.append((thing["name"], as_ppm(np.asarray(crop))))
    found = [(entry.label, source.read(entry.uri)) for entry in train_of(source)]
    assert found == expected


def test_fractions_of_voc_are_cut_off(tmp_path: Path):
    """As in VOC2012/Annotations/2011_003353.xml and its like: 45.70000076293945."""
    photo = Photo("000001", picture(1), [Thing("cat", (2.7, 3.2, 5.1, 6.1))], (40, 30))
    (entry,) = train_of(voc_of(tmp_path, [photo]))
    assert "#box=2,3,5,6&" in entry.uri


def test_difficult_objects_are_left_out_unless_asked_for(tmp_path: Path):
    things = [Thing("cat", (1, 1, 9, 9)), Thing("dog", (2, 2, 9, 9), hard=True)]
    source = voc_of(tmp_path, [Photo("000001", picture(1), things)])
    assert [e.label for e in train_of(source)] == ["cat"]
    asked = train_of(voc(tmp_path, difficult=True))
    assert [e.label for e in asked] == ["cat", "dog"]


LAUGHS = "".join(
    f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' if n else '<!ENTITY l0 "ha">'
    for n in range(12)
)
HOSTILE = {
    "laughs": f"<!DOCTYPE annotation [{LAUGHS}]><annotation><object><name>&l11;",
    "blowup": f'<!DOCTYPE a [<!ENTITY x "{"x" * 50_000}">]><a>{"&x;" * 50_000}',
    "file": '<!DOCTYPE a [<!ENTITY x SYSTEM "file://{secret}">]><annotation><object>'
    "<name>&x;</name></object></annotation>",
    "parameter": '<!DOCTYPE a [<!ENTITY % x SYSTEM "file://{secret}"> %x;]><a/>',
    "external": '<!DOCTYPE a SYSTEM "file://{secret}"><annotation/>',
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_entities_are_never_expanded(tmp_path: Path, store: Store, kind: str):
    secret = put(tmp_path / "secret.txt", "the secret")
    source = voc_of(tmp_path, some_photos())
    text = HOSTILE[kind].replace("{secret}", str(secret))
    file = put(tmp_path / "VOCdevkit/VOC2012/Annotations/000001.xml", text)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (row,) = quarantined(source, store)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
    assert row["uri"].startswith(f"{file}#refused=")
    assert "document type" in row["detail"]
    assert "the secret" not in str(row)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no element found"),
        ("<annotation><object>", "no element found: line 1"),
        ("<annotation>\n<b></annotation>", "mismatched tag: line 2"),
        ('<?xml version="1.0" encoding="nonsense"?><a/>', "encoding"),
        ("<a>\0</a>", "not well-formed"),
        ("<a>" + " " * (1 << 24) + "</a>", "more than 16777216 bytes"),
        (None, "no such annotation"),
    ],
)
def test_a_damaged_annotation_names_its_file(
    tmp_path: Path, store: Store, text: str | None, said: str
):
    source = voc_of(tmp_path, some_photos())
    file = put(tmp_path / "VOCdevkit/VOC2012/Annotations/000001.xml", text or "")
    if text is None:
        file.unlink()
    (row,) = quarantined(source, store)
    assert row["uri"].startswith(f"{file}#refused=")
    assert row["reason"] == "unreadable"
    assert said in row["detail"]
    assert len(scan(source, source._spec, Memo(store, "x")).manifest) == 12


def test_a_deep_annotation_crashes_nothing(tmp_path: Path, store: Store):
    source = voc_of(tmp_path, some_photos())
    file = tmp_path / "VOCdevkit/VOC2012/Annotations/000001.xml"
    put(file, "<a>" * 200_000 + "</a>" * 200_000)
    assert quarantined(source, store) == []
    assert len(list(source.entries())) == 12


@pytest.mark.parametrize("change", ["<bndbox>", "<xmin>", "<name>"])
def test_an_object_without_what_it_needs_is_refused_alone(
    tmp_path: Path, store: Store, change: str
):
    source = voc_of(tmp_path, some_photos(0, 1))
    file = tmp_path / "VOCdevkit/VOC2012/Annotations/000000.xml"
    other = change.replace("<", "<no")
    close, closed = change.replace("<", "</"), other.replace("<", "</")
    text = file.read_text().replace(change, other, 1).replace(close, closed, 1)
    put(file, text)
    (row,) = quarantined(source, store)
    assert row["reason"] == ("no label" if change == "<name>" else "unreadable")
    assert change == "<name>" or "object 0 of" in row["detail"]


def test_a_photo_in_two_lists_is_a_leak(tmp_path: Path):
    write_voc(tmp_path, train=some_photos(0, 3), val=some_photos(2, 3))
    with pytest.raises(DatasetError, match=r"'000002' in train\.txt.*in val\.txt"):
        list(voc(tmp_path).entries())


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_missing_list_says_the_cure(tmp_path: Path, split: str):
    base = "VOCdevkit/VOC2007"
    splits = {"train": some_photos(0), "val": some_photos(10), "test": some_photos(20)}
    write_voc(tmp_path, base, **splits)
    (tmp_path / base / f"ImageSets/Main/{split}.txt").unlink()
    with pytest.raises(DatasetError, match=rf"VOC2007 \({split}\).*download: true"):
        list(voc(tmp_path, year=2007).entries())


def test_photos_without_objects_are_an_empty_dataset(tmp_path: Path):
    empty = [[Photo(f"{n:06d}", picture(n), [])] for n in range(2)]
    write_voc(tmp_path, train=empty[0], val=empty[1])
    with pytest.raises(DatasetError, match="none of 2 photos has an object"):
        list(voc(tmp_path).entries())


def test_a_download_goes_through_torchvision_and_its_md5(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    module = importlib.import_module("torchvision.datasets.voc")
    asked: list[tuple[str, str]] = []

    def fetch(_: str, root: str, *, filename: str, md5: str) -> None:
        asked.append((filename, md5))
        base = "VOCdevkit/VOC2007"
        if "test" in filename:
            write_voc(Path(root), base, test=some_photos(20))
        else:
            write_voc(Path(root), base, train=some_photos(), val=some_photos(10))

    monkeypatch.setattr(module, "download_and_extract_archive", fetch)
    source = voc(tmp_path, year=2007, download=True)
    assert len(list(source.entries())) == 36
    known = [module.DATASET_YEAR_DICT[key] for key in ("2007", "2007-test")]
    assert asked == [(row["filename"], row["md5"]) for row in known]
    list(source.entries())
    assert len(asked) == 2  # what is there is not downloaded again
    assert not source._spec.offline().download


def test_a_failed_download_says_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from urllib.error import URLError

    def fail(*_: object, **__: object) -> None:
        raise URLError("Name or service not known")

    module = importlib.import_module("torchvision.datasets.voc")
    monkeypatch.setattr(module, "download_and_extract_archive", fail)
    with pytest.raises(DatasetError, match=r"VOC2012 \(train\).*service.*failed"):
        list(voc(tmp_path, download=True).entries())


# COCO


def test_the_folders_of_coco_are_found(tmp_path: Path):
    files = write_coco(
        tmp_path, train2017=some_photos(0, 3), val2017=some_photos(10, 2)
    )
    source = coco(files["train2017"], validation=files["val2017"])
    splits = Counter(entry.split for entry in source.entries())
    assert splits == {"train": 9, "validation": 6}
    third = write_coco(tmp_path, more=some_photos(20, 1))["more"]
    three = coco(files["train2017"], validation=files["val2017"], test=third)
    splits = Counter(entry.split for entry in three.entries())
    assert splits == {"train": 9, "validation": 6, "test": 3}
    alone = coco(files["train2017"])
    assert {entry.split for entry in alone.entries()} == {None}


def test_photos_may_lie_beside_the_file_or_in_a_named_folder(tmp_path: Path):
    """As Roboflow and CVAT export them."""
    photos = some_photos()
    document = json.dumps(coco_json(photos))
    beside = put(tmp_path / "train" / "_annotations.coco.json", document)
    apart = put(tmp_path / "annotations" / "instances_default.json", document)
    for photo in photos:
        put(tmp_path / "train" / f"{photo.name}.jpg", photo.data)
    sources = [coco(beside), coco(apart, images=tmp_path / "train")]
    listings = [[(e.uri, e.label, e.group) for e in s.entries()] for s in sources]
    assert listings[0] == listings[1]
    assert sources[0].read(listings[0][0][0])
    with pytest.raises(DatasetError, match=r"not in .*/default; say where in 'images'"):
        list(coco(apart).entries())


@pytest.mark.parametrize(
    "box", [(1.4, 2.6, 9.2, 8.8), (0.5, 1.5, 9.0, 9.0), (29.6, 19.5, 10.44, 10.9)]
)
def test_fractions_of_coco_are_rounded_as_pil_rounds(tmp_path: Path, box: Any):
    photo = Photo("000001", picture(1), [Thing("cat", box)], (40, 30))
    source = coco_of(tmp_path, [photo])
    (entry,) = source.entries()
    left, top, width, height = box
    with Image.open(tmp_path / "train2017" / "000001.jpg") as image:
        crop = image.crop((left, top, left + width, top + height))
    assert source.read(entry.uri) == as_ppm(np.asarray(crop))


def test_a_crowd_is_left_out_unless_asked_for(tmp_path: Path):
    things = [Thing("cat", (1, 1, 9, 9)), Thing("dog", (2, 2, 9, 9), hard=True)]
    source = coco_of(tmp_path, [Photo("000001", picture(1), things)])
    assert [e.label for e in source.entries()] == ["cat"]
    asked = coco(tmp_path / "annotations/instances_train2017.json", crowd=True)
    assert sorted(str(e.label) for e in asked.entries()) == ["cat", "dog"]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("bbox", [1, 2, 3], "[1, 2, 3]"),
        ("bbox", None, "None"),
        ("bbox", [1, 2, float("nan"), 4], "not four numbers"),
        ("bbox", ["1", 2, 3, 4], "not four numbers"),
        ("bbox", [True, 2, 3, 4], "not four numbers"),
        ("category_id", 99, "no category has the id 99"),
        ("category_id", [1], "no category has the id [1]"),
        ("image_id", 99, "no image has the id 99"),
        ("image_id", None, "no image has the id None"),
    ],
)
def test_a_faulty_annotation_is_refused_alone(
    tmp_path: Path, store: Store, field: str, value: Any, said: str
):
    source = coco_of(tmp_path, some_photos())
    file = tmp_path / "annotations/instances_train2017.json"
    changed(file, lambda document: document["annotations"][5].update({field: value}))
    (row,) = quarantined(source, store)
    assert row["uri"].startswith(f"{file}#refused=")
    assert (row["reason"], said in row["detail"]) == ("unreadable", True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"images": [', "JSONDecodeError"),
        ("[" * 100_000, "RecursionError"),
        ('{"images": [' + "9" * 5000 + "]}", "ValueError"),
        ("[]", "TypeError"),
        ('{"images": [], "categories": []}', "KeyError: 'annotations'"),
        ('{"images": [{"id": 1}], "categories": [], "annotations": []}', "'name'"),
        ('{"images": [{"file_name": "a"}], "categories": []}', "KeyError: 'id'"),
        (b"\xff\xfe", "UnicodeDecodeError"),
        (
            '{"images": [], "categories": [], "annotations": [{"image_id": [1]}]}',
            "unhashable",
        ),
        ('{"images": [], "categories": [], "annotations": [{"id": 1}]}', "image"),
        (
            '{"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}]}',
            "two of 'images' have one id",
        ),
        ('{"images": [], "categories": [], "annotations": []}', "'annotations' is emp"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, text: bytes | str, said: str):
    source = coco_of(tmp_path, some_photos())
    file = put(tmp_path / "annotations/instances_train2017.json", text)
    with pytest.raises(DatasetError) as raised:
        list(source.entries())
    assert str(file) in str(raised.value)
    assert said in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(DatasetError, match=r"gone\.json cannot be read"):
        list(coco(tmp_path / "gone.json").entries())


def test_a_photo_in_two_files_is_a_leak(tmp_path: Path):
    documents = [json.dumps(coco_json(some_photos(n, 2))) for n in (0, 1)]
    one, two = (put(tmp_path / f"{n}.json", text) for n, text in enumerate(documents))
    with pytest.raises(
        DatasetError, match=r"000001\.jpg is listed in .*0\.json.*1\.js"
    ):
        list(coco(one, test=two).entries())


def test_two_categories_of_one_name_stay_two(tmp_path: Path):
    source = coco_of(tmp_path, some_photos())
    file = tmp_path / "annotations/instances_train2017.json"

    def rename(document: dict[str, Any]) -> None:
        for category in document["categories"]:
            category["name"] = "bat\ud800"

    changed(file, rename)
    labels = {entry.label for entry in source.entries()}
    assert labels == {r"bat\ud800 (0)", r"bat\ud800 (3)"}


def test_a_name_that_is_no_text_is_refused(tmp_path: Path, store: Store):
    source = coco_of(tmp_path, some_photos())
    file = tmp_path / "annotations/instances_train2017.json"

    def rename(document: dict[str, Any]) -> None:
        document["images"][0]["file_name"] = "\ud800.jpg"
        document["images"][1]["file_name"] = "a\0b.jpg"
        document["images"][2]["file_name"] = {"a": 1}

    changed(file, rename)
    refused = quarantined(source, store)
    assert Counter(row["reason"] for row in refused) == {"unreadable": 9}


def test_outlines_are_dropped_while_parsing(tmp_path: Path):
    """The outlines of 200,000 points would take 12 MB as floats of Python."""
    import tracemalloc

    source = coco_of(tmp_path, some_photos(n=2))
    file = tmp_path / "annotations/instances_train2017.json"

    def draw(document: dict[str, Any]) -> None:
        for annotation in document["annotations"] * 10:
            outline = [n / 7 for n in range(3_000)]
            document["annotations"].append({**annotation, "segmentation": [outline]})

    changed(file, draw)
    tracemalloc.start()
    assert len(list(source.entries())) == 66
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2.5 * file.stat().st_size + 1e6


# How one gets here


@pytest.mark.parametrize(
    ("name", "kind"), [("VOCDetection", "voc_objects"), ("COCO", "coco_objects")]
)
def test_asking_torchvision_for_objects_names_the_right_type(
    tmp_path: Path, name: str, kind: str
):
    spec = TorchvisionSpec(name="x", type="torchvision", dataset=name, path=tmp_path)
    with pytest.raises(InvalidSpec, match=f"type: {kind}"):
        TorchvisionDataset(spec)


def test_a_catalogue_opens_both(tmp_path: Path):
    from tl_pipeline.config import catalog

    write_voc(tmp_path / "voc", train=some_photos(), val=some_photos(10))
    write_coco(tmp_path / "coco", train2017=some_photos(), val2017=some_photos(10))
    file = put(
        tmp_path / "data_catalog.yaml",
        "version: 1\n"
        "datasets:\n"
        "  voc: {type: voc_objects, path: voc, year: 2012, margin: 0.1}\n"
        "  coco:\n"
        "    type: coco_objects\n"
        "    train: coco/annotations/instances_train2017.json\n"
        "    test: coco/annotations/instances_val2017.json\n",
    )
    for spec in catalog.load(file).values():
        source = open_source(spec)
        found = Counter(entry.split for entry in source.entries())
        assert found == {"train": 12, "test": 12}


def test_a_refused_crop_is_not_an_os_error(tmp_path: Path):
    """So that its reason, and not "unreadable", stands in the quarantine."""
    source = voc_of(tmp_path, some_photos())
    photo = train_of(source)[0].uri.partition("#")[0]
    with pytest.raises(RefusedImage, match="wrong box"):
        source.read(f"{photo}#box=0,0,41,30")
