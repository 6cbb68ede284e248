"""Trust nothing: 650 damaged files go through ingest and embed."""

import io
import json
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from tl_pipeline.inputs.images import decode, probe
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder

# Three of each mutation, format and label.
DAMAGED, GOOD = 650, 20
Crops = Callable[[str, int], Image.Image]

FORMATS = {
    "jpg": ("JPEG", "RGB", {"quality": 90}),
    "png": ("PNG", "RGB", {}),
    "rgba.png": ("PNG", "RGBA", {}),
    "gif": ("GIF", "P", {}),
    "bmp": ("BMP", "RGB", {}),
    "webp": ("WEBP", "RGB", {"method": 0}),
    "tiff": ("TIFF", "RGB", {}),
    "lzw.tiff": ("TIFF", "L", {"compression": "tiff_lzw"}),
    "ppm": ("PPM", "RGB", {}),
}


def encoded(image: Image.Image, ending: str) -> bytes:
    """The bytes of ``image`` in the format and mode that ``ending`` stands for."""
    kind, mode, options = FORMATS[ending]
    image = image.convert(mode)
    if mode == "RGBA":
        image.putalpha(image.convert("L"))
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def png_chunk(name: bytes, body: bytes) -> bytes:
    crc = struct.pack(">I", zlib.crc32(name + body))
    return struct.pack(">I", len(body)) + name + body + crc


def png_bomb(width: int, height: int, comment: str) -> bytes:
    """A valid black-and-white PNG of kilobytes."""
    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    body = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = {b"IHDR": header, b"tEXt": f"c\0{comment}".encode(), b"IDAT": body}
    chunks[b"IEND"] = b""
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(png_chunk, chunks, chunks.values()))


def declaring(data: bytes, ending: str, width: int, height: int) -> bytes:
    """``data`` with another size in its header, and no other pixels."""
    patched = bytearray(data)
    match ending.rpartition(".")[2]:
        case "png":
            patched[8:33] = png_chunk(
                b"IHDR", struct.pack(">II", width, height) + data[24:29]
            )
        case "jpg":
            frame = data.index(b"\xff\xc0")
            patched[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
        case "gif":
            frame = data.index(b",", 13 + 3 * 2 ** ((data[10] & 7) + 1))
            patched[6:10] = struct.pack("<HH", width, height)
            patched[frame + 5 : frame + 9] = struct.pack("<HH", width, height)
        case "bmp":
            patched[18:26] = struct.pack("<ii", width, height)
        case "webp":
            patched[26:30] = struct.pack("<HH", min(width, 0x3FFF), min(height, 0x3FFF))
        case "tiff":
            (start,) = struct.unpack_from("<I", data, 4)
            (count,) = struct.unpack_from("<H", data, start)
            for place in range(start + 2, start + 2 + 12 * count, 12):
                (tag,) = struct.unpack_from("<H", data, place)
                if tag in (256, 257):
                    size = width if tag == 256 else height
                    struct.pack_into("<HII", patched, place + 2, 4, 1, size)
        case "ppm":
            return re.sub(rb"\d+ \d+", b"%d %d" % (width, height), data, count=1)
    return bytes(patched)


@dataclass
class Victim:
    """An intact file, another one of the same format, and a seeded generator."""

    data: bytes
    other: bytes
    ending: str
    chance: np.random.Generator

    def place(self, data: bytes | None = None) -> int:
        """Somewhere inside, half of the time within the first 64 bytes."""
        length = len(data or self.data)
        return int(self.chance.integers(1, min(64, length) if self.coin() else length))

    def coin(self) -> bool:
        return bool(self.chance.random() < 0.5)


def flipped(v: Victim) -> bytes:
    data = bytearray(v.data)
    for _ in range(int(v.chance.integers(1, 12))):
        data[v.place()] ^= int(v.chance.integers(1, 256))
    return bytes(data)


def zeros_inserted(v: Victim) -> bytes:
    at = v.place()
    return v.data[:at] + bytes(int(v.chance.integers(1, 400))) + v.data[at:]


def huge(v: Victim) -> bytes:
    """Over the limit of pixels; or a strip, a few megapixels that are not there."""
    width, height = (int(2 ** v.chance.uniform(14, 16)) for _ in "wh")
    if v.coin():
        height = int(2 ** v.chance.uniform(1, 6))
    return declaring(v.data, v.ending, width, height)


MUTATIONS: dict[str, Callable[[Victim], bytes]] = {
    "truncated": lambda v: v.data[: v.place()],
    "late-cut": lambda v: v.data[: -int(v.chance.integers(1, 64))],
    "flipped": flipped,
    "flipped-twice": lambda v: flipped(Victim(flipped(v), b"", v.ending, v.chance)),
    "renamed": lambda v: v.data,
    "spliced": lambda v: v.data[: v.place()] + v.other[v.place(v.other) :],
    "concatenated": lambda v: v.data + v.other,
    "tail-first": lambda v: v.data[v.place() :] + v.data,
    "zeros-inserted": zeros_inserted,
    "huge": huge,
    "empty": lambda _: b"",
    "text": lambda v: f"<html>{v.chance.random()} Not Found</html>\n".encode(),
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, crops: Crops) -> Path:
    """``root/class/*`` with damaged files and 20 good ones, the same each time.

    Names are ``<number>-<mutation>.<ending>``.
    """
    root = tmp_path_factory.mktemp("mutations")
    for label in ("china", "flower"):
        (root / label).mkdir()
    endings, names = list(FORMATS), list(MUTATIONS)
    bombs = 2
    for number in range(DAMAGED - bombs + GOOD):
        label = ("china", "flower")[number % 2]
        ending = endings[number // 2 % len(endings)]
        mutation = names[number // 2 // len(endings) % len(names)]
        data, other = (encoded(crops(label, n), ending) for n in (number, number + 1))
        if number >= DAMAGED - bombs:
            mutation = "good"
        else:
            chance = np.random.default_rng(number)
            data = MUTATIONS[mutation](Victim(data, other, ending, chance))
        shown = "jpg" if mutation in ("renamed", "text") else ending
        (root / label / f"{number:04d}-{mutation}.{shown}").write_bytes(data)
    for number in range(bombs):
        bomb = png_bomb(20_000, 20_000, str(number))
        (root / "china" / f"{number:04d}-bomb.png").write_bytes(bomb)
    return root


RUN = """
import json, resource, sys
from pathlib import Path
from tl_pipeline.embedding import engine
from tl_pipeline.encoders import resolution
from tl_pipeline.store.artifacts import Store
from tl_pipeline.config.datasets import ImageFolderSpec
from tl_pipeline.runs.planning import Workspace
from tl_pipeline.config.specs import EncoderSpec
from tl_pipeline.pipeline.stages.embed import Embed
from tl_pipeline.pipeline.stages.ingest import Ingest

def megabytes():
    if not Path("/proc/self/status").exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    # On Linux what getrusage tells a child begins with the size of its parent.
    (line,) = [x for x in open("/proc/self/status") if x.startswith("VmHWM")]
    return int(line.split()[1]) / 1024

store = Store.open(Path(sys.argv[2]))
store.create()
encoder = resolution.resolve(EncoderSpec(backbone="lenet5"), store)
dataset = ImageFolderSpec(name="damaged", path=Path(sys.argv[1]), max_quarantined=1)
at, imported = Workspace(store), megabytes()
manifest = Ingest(at, dataset).run().output
Embed(at, dataset, manifest, (encoder,)).run()
print(json.dumps([manifest.key, encoder.key, imported, megabytes()]))
"""


@dataclass
class Found:
    """What a run in a process of its own left behind; memory in MiB."""

    manifest: dict[str, str]  # uri -> id
    sizes: dict[str, tuple[int, int]]
    quarantine: list[dict[str, str]]
    duplicates: list[str]
    embedded: set[str]
    refused: dict[str, tuple[str, str]]
    imported: float
    peak: float


@pytest.fixture(scope="module")
def found(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Found:
    root = tmp_path_factory.mktemp("store") / "store"
    run = [sys.executable, "-c", RUN, str(photos), str(root)]
    said = subprocess.run(run, stdout=subprocess.PIPE, check=True, timeout=240).stdout
    manifest, encoder, imported, peak = json.loads(said.splitlines()[-1])
    store = Store.open(root)
    artifact = store.find("manifests", manifest)
    assert artifact is not None
    rows, quarantine, duplicates = (
        tables.read(table, store.path(artifact)).to_pylist()
        for table in (tables.MANIFEST, tables.QUARANTINE, tables.DUPLICATES)
    )
    embeddings = EmbeddingFolder(store, encoder)
    return Found(
        {row["uri"]: row["image_id"] for row in rows},
        {row["uri"]: (row["width"], row["height"]) for row in rows},
        quarantine,
        [row["uri"] for row in duplicates],
        embeddings.embedded(),
        embeddings.refused(),
        imported,
        peak,
    )


def test_every_file_ends_in_exactly_one_place(photos: Path, found: Found):
    files = [str(file) for file in photos.rglob("*.*")]
    quarantined = [row["uri"] for row in found.quarantine]
    assert len(files) == DAMAGED + GOOD
    assert sorted([*found.manifest, *quarantined, *found.duplicates]) == sorted(files)


def test_every_listed_image_is_embedded_or_refused(found: Found):
    assert found.embedded.isdisjoint(found.refused)
    assert found.embedded | found.refused.keys() == set(found.manifest.values())


def test_every_refusal_says_what_is_wrong_with_the_file(found: Found):
    """Of files with one fault it is that one; each has a detail beside it."""
    reasons: dict[str, set[str]] = {}
    for row in found.quarantine:
        mutation = Path(row["uri"]).name.split(".")[0].partition("-")[2]
        reasons.setdefault(mutation, set()).add(row["reason"])
    assert reasons["empty"] == {"empty"}
    assert reasons["text"] == {"not an image"}
    assert reasons["bomb"] == {"too many pixels"}
    assert "too many pixels" in reasons["huge"]
    assert not {"good", "renamed"} & reasons.keys()
    details = [row["detail"] for row in found.quarantine]
    details += [detail for _, detail in found.refused.values()]
    assert [detail for detail in details if len(detail) < 5] == []


def test_what_must_be_accepted_is_and_what_must_not_is_not(found: Found):
    places = {
        Path(uri).stem: image in found.embedded for uri, image in found.manifest.items()
    }
    names = [
        re.sub(r"[0-9]+-([a-z-]+).*", r"\1", stem) for stem, ok in places.items() if ok
    ]
    assert names.count("good") == GOOD
    assert names.count("renamed") > 40
    assert not {"empty", "text", "bomb"}.intersection(names)


def alone(data: bytes) -> Image.Image:
    """What PIL alone makes of ``data``, by the words of ``images.decode``."""
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16"):
        values = np.asarray(upright).astype(float) / 65535
        upright = Image.fromarray(np.rint(values * 255).astype(np.uint8))
    assert upright.mode[0] not in "IF"
    if upright.has_transparency_data:
        white = Image.new("RGBA", upright.size, "white")
        white.alpha_composite(upright.convert("RGBA"))
        upright = white
    return upright.convert("RGB")


# pytest turns warnings into errors, also those that images.py ignores.
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_what_was_embedded_is_what_pil_alone_sees(found: Found):
    for uri, image in found.manifest.items():
        if image in found.embedded:
            data = Path(uri).read_bytes()
            decoded = decode(data)
            assert np.array_equal(np.asarray(decoded), np.asarray(alone(data))), uri
            assert decoded.size == found.sizes[uri], uri


def test_memory_stays_within_half_a_gigabyte_of_the_libraries(found: Found):
    assert found.imported < found.peak < found.imported + 512


LARGEST = """
import resource, sys
from pathlib import Path
from tl_pipeline.inputs.images import decode, probe

def megabytes():
    if not Path("/proc/self/status").exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    # On Linux what getrusage tells a child begins with the size of its parent.
    (line,) = [x for x in open("/proc/self/status") if x.startswith("VmHWM")]
    return int(line.split()[1]) / 1024

data, before = sys.stdin.buffer.read(), megabytes()
decode(data)
print(megabytes() - before)
"""


def test_a_small_file_that_declares_150_megapixels_is_decoded_in_place(crops: Crops):
    """The decoder makes up what is missing; PIL holds a pixel of RGB in four bytes."""
    data = declaring(encoded(crops("china", 0), "jpg"), "jpg", 15_000, 10_000)
    said = subprocess.check_output([sys.executable, "-c", LARGEST], input=data)
    assert float(said) < 1.5 * 4 * 150e6 / 2**20


@pytest.mark.parametrize("ending", ["png", "webp"])
def test_damaged_exif_says_nothing_and_costs_nothing(crops: Crops, ending: str):
    """The pixels are whole: the image is taken as it is stored, as viewers do."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = io.BytesIO()
    crops("china", 0).save(data, FORMATS[ending][0], exif=exif)
    damaged = bytearray(data.getvalue())
    at = damaged.index(b"MM\0*")
    damaged[at + 2] ^= 0xFF
    if ending == "png":
        (length,) = struct.unpack_from(">I", damaged, at - 8)
        body = bytes(damaged[at : at + length])
        damaged[at - 8 : at + length + 4] = png_chunk(b"eXIf", body)
    stored = Image.open(io.BytesIO(data.getvalue())).convert("RGB")
    assert probe(bytes(damaged)) == stored.size
    assert np.array_equal(decode(bytes(damaged)), stored)
