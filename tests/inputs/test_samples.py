"""More than 8 bits, bands without a name, pages: right, or refused with the cure.

Every file is made here from shares of white, 0 to 1, so that the right 8-bit values are
known: none is near black by mistake, none wraps around.
"""

import io
import struct
import zlib
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile

from tl_pipeline.config.dataset_entry import PixelSpec
from tl_pipeline.inputs.images import AS_IS, RefusedImage, decode, probe

SIDE = 16
# A ramp over all of the range, and two that differ from it under every mix-up.
RAMP = (np.arange(SIDE * SIDE) / (SIDE * SIDE - 1)).reshape(SIDE, SIDE)
COLOUR = np.dstack([RAMP, RAMP[::-1], RAMP.T])


def eight(share: np.ndarray) -> np.ndarray:
    """What 8-bit RGB is right for shares of white: uint8 (height, width, 3)."""
    grey = np.rint(share * 255).astype(np.uint8)
    return grey if grey.ndim == 3 else np.repeat(grey[..., None], 3, axis=2)


def integers(share: np.ndarray, bits: int, black: int = 0) -> np.ndarray:
    """Shares of white as whole numbers of so many bits, ``black`` the least."""
    kind = (
        f"i{-(-bits // 8)}"
        if black < 0
        else f"u{max(1, 1 << (bits - 1).bit_length() >> 3)}"
    )
    return (np.rint(share * (2.0**bits - 1)) + black).astype(kind)


def shown(data: bytes, how: PixelSpec = AS_IS) -> np.ndarray:
    """The decoded pixels, of which the probe tells the size."""
    image = decode(data, how)
    assert image.mode == "RGB"
    assert probe(data, how) == image.size
    return np.asarray(image)


def refused(data: bytes, how: PixelSpec = AS_IS) -> str:
    """Why ``data`` is refused, by probe and decode alike."""
    with pytest.raises(RefusedImage) as early:
        probe(data, how)
    with pytest.raises(RefusedImage) as late:
        decode(data, how)
    assert str(early.value) == str(late.value)
    return str(late.value)


def near(found: np.ndarray, right: np.ndarray, most: int = 0) -> None:
    """All values are right, to within ``most``."""
    assert found.shape == right.shape
    assert np.abs(found.astype(int) - right).max() <= most


def tiff(values: np.ndarray, **options: Any) -> bytes:
    """A TIFF of ``values``."""
    out = io.BytesIO()
    tifffile.imwrite(out, values, metadata=None, **options)
    return out.getvalue()


def said(low: float, high: float, kind: str = "H") -> list[tuple[Any, ...]]:
    """SMinSampleValue and SMaxSampleValue."""
    return [(340, kind, 1, low, True), (341, kind, 1, high, True)]


GREY, RGB = {"photometric": "minisblack"}, {"photometric": "rgb"}
PLANES = {"photometric": "rgb", "planarconfig": "separate"}
WHITE, STRAIGHT = {"photometric": "miniswhite"}, {"extrasamples": ["unassalpha"]}
TO_4095 = PixelSpec(range=(0, 4095))
HALF = np.full((SIDE, SIDE), 0.5)
# Samples by what they are: values, options of the writer, entry, and what is right.
SAMPLES: dict[str, tuple[np.ndarray, dict[str, Any], PixelSpec, np.ndarray]] = {
    "uint16": (integers(RAMP, 16), GREY, AS_IS, eight(RAMP)),
    "uint16 MinIsWhite": (integers(1 - RAMP, 16), WHITE, AS_IS, eight(RAMP)),
    "uint32": (integers(RAMP, 32), GREY, AS_IS, eight(RAMP)),
    "uint32 MinIsWhite": (integers(1 - RAMP, 32), WHITE, AS_IS, eight(RAMP)),
    "float32": (RAMP.astype("f4"), GREY, AS_IS, eight(RAMP)),
    "float64": (RAMP, GREY, AS_IS, eight(RAMP)),
    "float32 MinIsWhite": ((1 - RAMP).astype("f4"), WHITE, AS_IS, eight(RAMP)),
    "uint16 RGB": (integers(COLOUR, 16), RGB, AS_IS, eight(COLOUR)),
    "uint16 RGB in planes": (
        integers(COLOUR, 16).transpose(2, 0, 1),
        PLANES,
        AS_IS,
        eight(COLOUR),
    ),
    "float32 RGB": (COLOUR.astype("f4"), RGB, AS_IS, eight(COLOUR)),
    "12 in 16 bits": (integers(RAMP, 12), GREY, TO_4095, eight(RAMP)),
    "12 in 16 bits RGB": (integers(COLOUR, 12), RGB, TO_4095, eight(COLOUR)),
    "12 in 16 bits MinIsWhite": (integers(1 - RAMP, 12), WHITE, TO_4095, eight(RAMP)),
    "12 in 16 bits, said": (
        integers(RAMP, 12),
        {**GREY, "extratags": said(0, 4095)},
        AS_IS,
        eight(RAMP),
    ),
    "12 in 16 bits, said as MaxSampleValue": (
        integers(RAMP, 12),
        {**GREY, "extratags": [(281, "H", 1, 4095, True)]},
        AS_IS,
        eight(RAMP),
    ),
    "int8": (
        integers(RAMP, 8, -128),
        GREY,
        PixelSpec(range=(-128, 127)),
        eight(RAMP),
    ),
    "int16": (
        (RAMP * 4000 - 1000).round().astype("i2"),
        GREY,
        PixelSpec(range=(-1000, 3000)),
        eight((RAMP * 4000).round() / 4000),
    ),
    "int16, said": (
        (RAMP * 4000 - 1000).round().astype("i2"),
        {**GREY, "extratags": said(-1000, 3000, "h")},
        AS_IS,
        eight((RAMP * 4000).round() / 4000),
    ),
    "int32": (
        integers(RAMP, 32, -(2**31)),
        GREY,
        PixelSpec(range=(-(2**31), 2**31 - 1)),
        eight(RAMP),
    ),
    "float heights": (
        (RAMP * 3000 + 1000).astype("f4"),
        GREY,
        PixelSpec(range=(1000, 4000)),
        eight(RAMP),
    ),
    "float heights, said": (
        (RAMP * 3000 + 1000).astype("f4"),
        {**GREY, "extratags": said(1000.0, 4000.0, "f")},
        AS_IS,
        eight(RAMP),
    ),
    "grey and alpha": (
        integers(np.dstack([RAMP, HALF]), 16),
        {**GREY, **STRAIGHT, "planarconfig": "contig"},
        AS_IS,
        eight(1 - (1 - RAMP) / 2),
    ),
    "RGB and alpha": (
        integers(np.dstack([COLOUR, HALF]), 16),
        {**RGB, **STRAIGHT},
        AS_IS,
        eight(1 - (1 - COLOUR) / 2),
    ),
    "RGB times alpha": (
        integers(np.dstack([COLOUR / 2, HALF]), 16),
        {**RGB, "extrasamples": ["assocalpha"]},
        AS_IS,
        eight(1 - (1 - COLOUR) / 2),
    ),
    "CMYK": (
        integers(np.dstack([1 - COLOUR, np.zeros((SIDE, SIDE))]), 16),
        {"photometric": "separated"},
        AS_IS,
        eight(COLOUR),
    ),
    "13 bands of 16 bits": (
        integers(np.dstack([RAMP] * 10 + [COLOUR]), 12),
        {**GREY, "planarconfig": "contig"},
        PixelSpec(channels=(11, 12, 13), range=(0, 4095)),
        eight(COLOUR),
    ),
    "5 bands of 8 bits in planes": (
        integers(np.dstack([COLOUR, RAMP, RAMP]), 8).transpose(2, 0, 1),
        {**GREY, "planarconfig": "separate"},
        PixelSpec(channels=(3, 2, 1)),
        eight(COLOUR[..., ::-1]),
    ),
    "one of 2 bands": (
        integers(np.dstack([RAMP.T, RAMP]), 8),
        {**GREY, "planarconfig": "contig"},
        PixelSpec(channels=(2,)),
        eight(RAMP),
    ),
    "RGB and infrared": (
        integers(np.dstack([COLOUR, RAMP]), 16),
        {**RGB, "extrasamples": ["unspecified"]},
        AS_IS,
        eight(COLOUR),
    ),
}
FILES: dict[str, dict[str, Any]] = {
    "strips": {"rowsperstrip": 5},
    "big-endian": {"byteorder": ">"},
    "LZW": {"compression": "lzw"},
    "deflated tiles": {"compression": "zlib", "tile": (16, 16)},
    "zstd, BigTIFF": {"compression": "zstd", "bigtiff": True},
}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("kind", SAMPLES)
def test_tiffs_give_the_values_that_are_meant(kind: str, file: str):
    values, options, how, right = SAMPLES[kind]
    data = tiff(values, **options, **FILES[file])
    near(shown(data, how), right, 1 if "alpha" in kind else 0)


@pytest.mark.parametrize("bits", [9, 10, 12, 14])
@pytest.mark.parametrize("inverted", [False, True])
def test_a_depth_that_a_tiff_tells_is_its_range(bits: int, inverted: bool):
    values = integers(1 - RAMP if inverted else RAMP, bits)
    options = {
        "bitspersample": bits,
        "photometric": ["minisblack", "miniswhite"][inverted],
    }
    levels = np.rint(RAMP * (2**bits - 1)) / (2**bits - 1)
    if inverted:
        levels = 1 - np.rint((1 - RAMP) * (2**bits - 1)) / (2**bits - 1)
    near(shown(tiff(values, **options)), eight(levels))


UNKNOWN = {
    "12 in 16 bits": (integers(RAMP, 12), GREY, "0 to 4095", "[0, 4095]"),
    "12 in 16 bits RGB": (integers(COLOUR, 12), RGB, "0 to 4095", "[0, 4095]"),
    "a depth map": (integers(RAMP, 13), GREY, "0 to 8191", "[0, 16383]"),
    "24 in 32 bits": (
        integers(RAMP, 24).astype("u4"),
        GREY,
        "0 to 16777215",
        "[0, 16777215]",
    ),
    "int8": (integers(RAMP, 8, -128), GREY, "-128 to 127", "[-128, 127]"),
    "int16": (
        (RAMP * 4000 - 1000).astype("i2"),
        GREY,
        "-1000 to 3000",
        "[-1000, 3000]",
    ),
    "int16 of full range": (
        integers(RAMP, 16, -(2**15)),
        GREY,
        "-32768",
        "[-32768, 32767]",
    ),
    "heights": (
        (RAMP * 3000 + 1000).astype("f4"),
        GREY,
        "1000 to 4000",
        "[1000, 4000]",
    ),
    "0 to 255 in floats": ((RAMP * 255).astype("f4"), GREY, "0 to 255", "[0, 255]"),
    "below 0 in floats": ((RAMP * 2 - 1).astype("f4"), GREY, "-1 to 1", "[-1, 1]"),
    "a dark float": ((RAMP / 4).astype("f4"), GREY, "0 to 0.25", "[0, 0.25]"),
    "nothing but NaN": (np.full((4, 4), np.nan, "f4"), GREY, "no sample", "finite"),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_a_range_that_nobody_tells_is_refused_with_the_cure(kind: str):
    values, options, found, cure = UNKNOWN[kind]
    why = refused(tiff(values, **options))
    assert why.startswith("unknown range: ")
    assert found in why
    assert cure in why


def test_values_outside_the_range_are_clipped_and_nan_is_black():
    values = np.array([[np.nan, -5, 0], [5, 10, np.inf]], "f4")
    found = shown(tiff(values, **GREY), PixelSpec(range=(0, 10)))
    assert found[..., 0].tolist() == [[0, 0, 0], [128, 255, 255]]


def test_a_range_says_nothing_of_8_bits():
    values = integers(RAMP, 8)
    near(shown(tiff(values, **GREY), TO_4095), eight(RAMP))


@pytest.mark.parametrize("bands", [2, 3, 4, 5, 13])
@pytest.mark.parametrize("bits", [8, 16])
def test_bands_without_a_name_are_refused_with_the_cure(bands: int, bits: int):
    data = tiff(
        integers(np.dstack([RAMP] * bands), bits), **GREY, planarconfig="contig"
    )
    why = refused(data)
    assert why.startswith(f"unknown bands: {bands} bands of {bits} bits")
    assert ("channels: [1]" if bands == 2 else "channels: [3, 2, 1]") in why
    assert ("range: [BLACK, WHITE]" in why) == (bits == 16)
    asked = PixelSpec(channels=(1, 2, 99))
    assert refused(data, asked).endswith("channels: [1, 2, 99]")


def test_pages_are_told_apart_and_one_may_be_named():
    pages = [integers(RAMP, 16), integers(RAMP.T, 16), integers(RAMP[::-1], 8)]
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as writer:
        for page in pages:
            writer.write(page, **GREY, metadata=None)
    data = out.getvalue()
    assert refused(data) == (
        "several pages: 3 images in one TIFF. Say in the entry of the dataset which is "
        "meant, as in page: 1, or write each to a file of its own"
    )
    for number, right in enumerate((RAMP, RAMP.T, RAMP[::-1]), 1):
        near(shown(data, PixelSpec(page=number)), eight(right))
    assert "there are 3" in refused(data, PixelSpec(page=4))


@pytest.mark.parametrize(
    ("values", "options"), [(COLOUR, RGB), (RAMP, GREY)], ids=["RGB", "grey"]
)
@pytest.mark.parametrize("lost", ["tag", "value"])
def test_bits_per_sample_that_are_lost_do_not_become_one_bit(
    values: np.ndarray, options: dict[str, Any], lost: str
):
    data = bytearray(tiff(integers(values, 8), **options))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        tag = file.pages[0].tags["BitsPerSample"]
    if lost == "tag":
        struct.pack_into("<H", data, tag.offset, 60000)
    else:  # of an unknown type
        struct.pack_into("<H", data, tag.offset + 2, 99)
    assert refused(bytes(data)) == (
        "undecodable: it does not say how many bits a sample has"
    )


def test_black_and_white_need_not_say_their_bits():
    data = tiff(RAMP > 0.5, **GREY)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        assert "BitsPerSample" not in file.pages[0].tags
    near(shown(data), eight((RAMP > 0.5).astype(float)))


def test_a_thumbnail_and_a_mask_are_no_pages():
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as writer:
        writer.write(integers(RAMP[::4, ::4], 8), **GREY, subfiletype=1, metadata=None)
        writer.write(integers(RAMP, 8), **GREY, metadata=None)
        writer.write(RAMP > 0.5, **GREY, subfiletype=4, metadata=None)
    near(shown(out.getvalue()), eight(RAMP))


def test_a_raw_photo_is_not_its_thumbnail():
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as writer:
        writer.write(
            integers(COLOUR, 8), **RGB, subfiletype=1, subifds=1, metadata=None
        )
        writer.write(integers(RAMP, 16), photometric="cfa", metadata=None)
    assert "raw photo" in refused(out.getvalue())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("bits", [8, 16])
def test_a_turned_tiff_is_upright(orientation: int, bits: int):
    stored, share = COLOUR[:12], COLOUR[:12]
    turned = {
        1: share,
        2: share[:, ::-1],
        3: share[::-1, ::-1],
        4: share[::-1],
        5: share.transpose(1, 0, 2),
        6: np.rot90(share, -1),
        7: share[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(share),
    }[orientation]
    tag = [(274, "H", 1, orientation, True)]
    data = tiff(integers(stored, bits), **RGB, extratags=tag)
    near(shown(data), eight(turned))


def chunk(name: bytes, body: bytes) -> bytes:
    crc = struct.pack(">I", zlib.crc32(name + body))
    return struct.pack(">I", len(body)) + name + body + crc


def png(values: np.ndarray, colour: int, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG of 16 bits."""
    height, width = values.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


TRANSPARENT = [(b"tRNS", struct.pack(">H", 0))]
PNGS = {
    "grey": (RAMP, 0, eight(RAMP)),
    "RGB": (COLOUR, 2, eight(COLOUR)),
    "grey and alpha": (np.dstack([RAMP, HALF]), 4, eight(1 - (1 - RAMP) / 2)),
    "RGB and alpha": (np.dstack([COLOUR, HALF]), 6, eight(1 - (1 - COLOUR) / 2)),
}


@pytest.mark.parametrize("kind", PNGS)
@pytest.mark.parametrize("bits", [16, 12, 10])
@pytest.mark.parametrize("told", ["sBIT", "range", "nothing"])
def test_png_of_16_bits(kind: str, bits: int, told: str):
    share, colour, right = PNGS[kind]
    values = integers(share, bits)
    if colour > 2:  # what is transparent is told by all 16 bits
        values[..., -1] = integers(HALF, 16)
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    sbit = [(b"sBIT", bytes([bits] * channels))] if told == "sBIT" else []
    how = PixelSpec(range=(0, 2**bits - 1)) if told == "range" else AS_IS
    data = png(values, colour, *sbit)
    if told == "nothing" and bits < 16:
        assert f"range: [BLACK, WHITE], such as [0, {2**bits - 1}]" in refused(data)
    elif not (told == "sBIT" and colour > 2):
        near(shown(data, how), right, 1 if colour > 2 else 0)


@pytest.mark.parametrize("bits", [16, 12, 10])
def test_a_png_whose_upper_bits_are_significant_is_of_full_range(bits: int):
    values = integers(RAMP / 20, 16) >> (16 - bits) << (16 - bits)
    found = shown(png(values, 0, (b"sBIT", bytes([bits]))))
    near(found, eight(values / 65535))


def test_a_transparent_grey_of_16_bits_is_white():
    right = eight(RAMP)
    right[0, 0] = 255
    near(shown(png(integers(RAMP, 16), 0, *TRANSPARENT)), right)


def test_a_transparent_colour_of_16_bits_is_white():
    right, values = eight(COLOUR), integers(COLOUR, 16)
    right[3, 5] = 255
    colour = struct.pack(">HHH", *values[3, 5])
    near(shown(png(values, 2, (b"tRNS", colour))), right)


@pytest.mark.parametrize("top", [1000, 4095, 65535])
@pytest.mark.parametrize("colour", [False, True])
def test_the_maximum_of_a_pnm_is_white(top: int, colour: bool):
    share = COLOUR if colour else RAMP
    values = np.rint(share * top).astype(">u2")
    header = f"P{6 if colour else 5} # by a test\n{SIDE} {SIDE}\n{top}\n"
    data = header.encode() + values.tobytes()
    near(shown(data), eight(values / top))
    assert "truncated" in refused(data[:-1])
    if top == 65535:
        dark = header.encode() + (values // 16).astype(">u2").tobytes()
        assert "such as [0, 4095]" in refused(dark)


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("kind", ["jp2", "j2k"])
def test_jpeg_2000(bits: int, colour: bool, kind: str):
    values = integers(COLOUR if colour else RAMP, bits)
    data = imagecodecs.jpeg2k_encode(
        values, level=0, reversible=True, bitspersample=bits, codecformat=kind
    )
    near(shown(data), eight(values / (2**bits - 1)))


def test_jpeg_2000_of_12_in_16_bits_is_refused():
    values = integers(COLOUR, 12)
    data = imagecodecs.jpeg2k_encode(values, level=0, reversible=True)
    assert "such as [0, 4095]" in refused(data)
    near(shown(data, TO_4095), eight(COLOUR))
