"""Inputs of images that once gave a wrong answer: right now, or refused with the cure.

Each kind is made here by code; where the shared folder of cases is there, its inputs
are tried as well.
"""

import io
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.conftest import REPOSITORY
from tl_pipeline.config import catalog
from tl_pipeline.config.datasets import ImageFolderSpec
from tl_pipeline.config.specs import RunSpec
from tl_pipeline.data.identity import Memo
from tl_pipeline.data.scan import scan
from tl_pipeline.inputs.images import RefusedImage, decode
from tl_pipeline.pipeline import wiring
from tl_pipeline.registry import index, prediction
from tl_pipeline.runs.records import RunRecord
from tl_pipeline.sources import open_source
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder

CHANCE = np.random.default_rng(0)
BRAND = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


def ramp(levels: int) -> np.ndarray:
    """A ramp with some noise, of 32x40 pixels, from 0 to ``levels`` - 1."""
    share = np.linspace(0, 0.95, 40) + CHANCE.uniform(0, 0.05, (32, 40))
    share[0, 0], share[-1, -1] = 0, 1
    return np.rint(share * (levels - 1)).astype(np.uint16)


def encoded(values: np.ndarray, kind: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(values).save(out, kind)
    return out.getvalue()


def tiff(values: np.ndarray, **options: Any) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, values, **options)
    return out.getvalue()


def colours() -> np.ndarray:
    return CHANCE.integers(0, 256, (32, 40, 3), np.uint8)


def with_text(data: bytes) -> bytes:
    """A PNG with 2 MB of text, compressed."""
    body = b"prompt\0\0" + zlib.compress(b"node " * 400_000)
    crc = struct.pack(">I", zlib.crc32(b"zTXt" + body))
    return data[:33] + struct.pack(">I", len(body)) + b"zTXt" + body + crc + data[33:]


# By the name of the case: its folder, the ending of its files, and one of them.
MADE: dict[str, tuple[str, str, Callable[[], bytes]]] = {
    "img-12-bit-in-16": ("photos", "png", lambda: encoded(ramp(4096), "PNG")),
    "img-heic": ("photos", "HEIC", lambda: BRAND + CHANCE.bytes(500)),
    "img-jpeg-no-eoi": ("photos", "jpg", lambda: encoded(colours(), "JPEG")[:-2]),
    "img-png-large-metadata": (
        "photos",
        "png",
        lambda: with_text(encoded(colours(), "PNG")),
    ),
    "img-tiff-13-bands": (
        "EuroSATallBands",
        "tif",
        lambda: tiff(
            np.dstack([ramp(3000)] * 13),
            photometric="minisblack",
            planarconfig="contig",
        ),
    ),
    "img-tiff-min-is-white": (
        "photos",
        "tif",
        lambda: tiff(ramp(65536), photometric="miniswhite"),
    ),
}


@pytest.fixture(params=["made", "shared"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Path]:
    """``case(name)``: the folder of its images, made here or shared."""

    def find(name: str) -> Path:
        folder, ending, one = MADE[name]
        if request.param == "shared":
            shared: Path = request.getfixturevalue("shared")
            found = (shared / "cases" / name / folder).resolve()
            if not found.is_dir():
                pytest.skip("no shared cases")
            return found
        for label in ("cat", "dog"):
            (tmp_path / folder / label).mkdir(parents=True)
            for number in range(3):
                (tmp_path / folder / label / f"{number}.{ending}").write_bytes(one())
        return tmp_path / folder

    return find


def files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def refused(folder: Path, **options: Any) -> dict[Path, str]:
    """What ingest refuses of ``folder``, and why."""
    spec = ImageFolderSpec(name="photos", path=folder, **options)
    memo = Memo(Store.open(folder.with_name("nowhere")), "photos")
    found = scan(open_source(spec), spec, memo).quarantine.to_pylist()
    return {Path(row["uri"]): f"{row['reason']}: {row['detail']}" for row in found}


def entry(**options: Any) -> ImageFolderSpec:
    return ImageFolderSpec(name="photos", path=Path(), **options)


def test_12_bits_in_16_are_refused_and_read_over_the_range_that_is_named(
    case: Callable[[str], Path],
):
    folder = case("img-12-bit-in-16")
    why = refused(folder)
    assert sorted(why) == files(folder)
    assert all("range: [BLACK, WHITE], such as [0, 4095]" in w for w in why.values())
    assert refused(folder, range=(0, 4095)) == {}
    for file in files(folder):
        shown = np.asarray(decode(file.read_bytes(), entry(range=(0, 4095)).pixels))
        stored = np.asarray(Image.open(file)).astype(float)
        assert np.array_equal(shown[..., 0], np.rint(stored * 255 / 4095))
        assert len(np.unique(shown)) > 17


def test_heic_is_named_with_the_cure(case: Callable[[str], Path]):
    folder = case("img-heic")
    why = refused(folder)
    assert sorted(why) == [f for f in files(folder) if f.suffix == ".HEIC"]
    (said,) = set(why.values())
    assert said == (
        "unsupported format: it is a HEIC photo; convert it to JPEG or PNG "
        "(heif-convert)"
    )


def test_a_jpeg_without_its_end_is_refused_or_read_as_the_entry_says(
    case: Callable[[str], Path],
):
    reasons = []
    for file in files(case("img-jpeg-no-eoi")):
        data = file.read_bytes()
        whole = Image.open(io.BytesIO(data + b"\xff\xd9")).convert("RGB")
        try:  # of some all pixels are there
            assert np.array_equal(np.asarray(decode(data)), np.asarray(whole))
        except RefusedImage as refusal:
            reasons.append(str(refusal))
        shown = decode(data, entry(truncated="accept").pixels)
        assert np.array_equal(np.asarray(shown), np.asarray(whole))
    assert len(reasons) >= 6
    assert all(
        why.endswith("say truncated: accept in the entry of the dataset")
        for why in reasons
    )


def test_a_png_with_megabytes_of_metadata_is_read(case: Callable[[str], Path]):
    folder = case("img-png-large-metadata")
    assert refused(folder) == {}
    for file in files(folder):
        data = file.read_bytes()
        assert np.array_equal(np.asarray(decode(data)), imagecodecs.png_decode(data))


def test_13_bands_are_refused_and_read_as_the_entry_says(
    case: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
):
    folder = case("img-tiff-13-bands")
    why = refused(folder)
    assert sorted(why) == files(folder)
    for said in why.values():
        assert said.startswith("unknown bands: 13 bands of 16 bits")
        assert said.endswith("channels: [3, 2, 1], and range: [BLACK, WHITE]")
    options: dict[str, Any] = {"channels": (4, 3, 2), "range": (0, 3100)}
    assert refused(folder, **options) == {}
    for file in files(folder):
        bands = tifffile.imread(file)[..., [3, 2, 1]].astype(float)
        shown = np.asarray(decode(file.read_bytes(), entry(**options).pixels))
        assert np.array_equal(shown, np.rint(bands * 255 / 3100))
    assert capfd.readouterr().err == ""


def test_min_is_white(case: Callable[[str], Path]):
    folder = case("img-tiff-min-is-white")
    assert refused(folder) == {}
    for file in files(folder):
        stored = tifffile.imread(file).astype(float)
        shown = np.asarray(decode(file.read_bytes()))
        assert np.array_equal(shown[..., 0], np.rint((65535 - stored) * 255 / 65535))


def run(folder: Path, store: Store, **options: Any) -> RunRecord:
    lines = "".join(f"    {name}: {value}\n" for name, value in options.items())
    file = folder.with_suffix(".yaml")
    file.write_text(
        "version: 1\ndatasets:\n  photos:\n    type: image_folder\n"
        f"    path: {folder}\n    near_duplicates: ignore\n{lines}"
    )
    spec = RunSpec(dataset="photos", heads=["logistic:C=1"], controls=False)
    return wiring.run(wiring.prepare(spec, store, catalog_file=file))


def test_what_an_entry_says_of_pixels_is_in_the_key_and_goes_with_the_model(
    tmp_path: Path,
):
    """12 bits read by a range, and the same pictures saved with 8: equal vectors."""
    deep, plain = tmp_path / "deep", tmp_path / "plain"
    for number in range(40):
        values = ramp(4096)[:, :: (1, -1)[number % 2]]
        label = ("left", "right")[number % 2]
        for folder, kept in (
            (deep, values),
            (plain, np.rint(values / 4095 * 255).astype(np.uint8)),
        ):
            (folder / label).mkdir(parents=True, exist_ok=True)
            data = encoded(np.ascontiguousarray(kept), "PNG")
            (folder / label / f"{number:02d}.png").write_bytes(data)
    stores = [Store.open(tmp_path / name) for name in ("a", "b")]
    ours = run(deep, stores[0], range="[0, 4095]")
    theirs = run(plain, stores[1])
    assert ours.images == theirs.images == 40
    key, other = (
        next(step.keys["encoder"] for step in one.steps if step.stage == "embed")
        for one in (ours, theirs)
    )
    assert key != other
    assert "range=0/4095" in ours.best.encoder
    vectors = [
        EmbeddingFolder(store, encoder).load(EmbeddingFolder(store, encoder).embedded())
        for store, encoder in zip(stores, (key, other), strict=True)
    ]
    found, right = (np.sort(one.vectors.sum(axis=1)) for one in vectors)
    np.testing.assert_allclose(found, right, rtol=1e-5)
    model = index.load_model(stores[0], "photos")
    said = prediction.predict(model, files(deep))
    assert [one.refused for one in said] == [None] * 40
    assert [one.label for one in said] == [file.parent.name for file in files(deep)]


def test_the_digits_of_the_demo_are_split_evenly(tmp_path: Path):
    """One draw by hashes put the random-init baseline above the champion."""
    spec = catalog.find("digits", REPOSITORY / "data_catalog.yaml")
    found = scan(open_source(spec), spec, Memo(Store.open(tmp_path), "digits"))
    sizes = Counter(
        zip(
            *(found.manifest[name].to_pylist() for name in ("label", "split")),
            strict=True,
        )
    )
    totals = Counter(found.manifest["label"].to_pylist())
    assert len(totals) == 10
    for label, total in totals.items():
        assert sizes[label, "test"] == sizes[label, "validation"] == round(total / 5)
