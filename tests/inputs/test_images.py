"""Bytes to pixels: every kind of file that people have, and the ones to refuse."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tl_pipeline.config.dataset_entry import PixelSpec
from tl_pipeline.inputs.images import Preprocess, RefusedImage, decode, probe
from tl_pipeline.inputs.pixels import decode as fast_decode
from tl_pipeline.inputs.pixels import pixels

SIZE = (48, 32)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """A smooth RGB picture, 48 wide and 32 high, different under every rotation."""
    x, y = np.meshgrid(np.linspace(0, 255, SIZE[0]), np.linspace(0, 255, SIZE[1]))
    return Image.fromarray(np.stack([x, y, x * y / 255], axis=-1).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    """The bytes of ``image`` in the format ``kind``."""
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def same(one: Image.Image, other: Image.Image) -> bool:
    """Whether both are the same 8-bit RGB image."""
    assert one.mode == other.mode == "RGB"
    return np.array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("PPM", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_lossless_formats_give_the_very_pixels(
    picture: Image.Image, kind: str, options: dict
):
    data = encoded(picture, kind, **options)
    assert probe(data) == SIZE
    assert same(decode(data), picture)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_formats_come_near(picture: Image.Image, kind: str):
    data = encoded(picture, kind, quality=95)
    assert probe(data) == SIZE
    difference = np.asarray(decode(data), int) - np.asarray(picture, int)
    assert np.abs(difference).mean() < 3


@pytest.mark.parametrize("kind", ["PNG", "PPM", "TIFF", "BMP"])  # PPM: a PGM of grey
def test_greyscale_becomes_three_equal_channels(picture: Image.Image, kind: str):
    grey = picture.convert("L")
    channels = np.asarray(decode(encoded(grey, kind)))
    assert np.array_equal(channels, np.stack([np.asarray(grey)] * 3, axis=-1))


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP"])
def test_a_palette_is_looked_up(picture: Image.Image, kind: str):
    paletted = picture.quantize(64)
    assert same(decode(encoded(paletted, kind)), paletted.convert("RGB"))


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_palette_entry_is_white(kind: str):
    indices = np.zeros((4, 4), np.uint8)
    indices[:, 2:] = 1
    image = Image.fromarray(indices).convert("P")
    image.putpalette([255, 0, 0, 0, 0, 255])
    shown = np.asarray(decode(encoded(image, kind, transparency=0)))
    assert (shown[:, :2] == 255).all()
    assert (shown[:, 2:] == (0, 0, 255)).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_white(mode: str):
    colours = {"RGBA": (100, 100, 100), "LA": (100,)}[mode]
    pixel = [(*colours, alpha) for alpha in (0, 128, 255)]
    image = Image.new(mode, (3, 1))
    image.putdata(pixel)
    shown = np.asarray(decode(encoded(image, "PNG")), int)[0]
    expected = [255, 255 + (100 - 255) * 128 / 255, 100]
    assert np.abs(shown - np.array(expected)[:, None]).max() <= 1


def test_a_transparent_colour_of_rgb_is_white():
    image = Image.new("RGB", (2, 1), (0, 200, 0))
    image.putpixel((1, 0), (9, 9, 9))
    shown = np.asarray(decode(encoded(image, "PNG", transparency=(0, 200, 0))))
    assert shown.tolist() == [[[255] * 3, [9] * 3]]


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_cmyk_becomes_rgb(kind: str):
    image = Image.new("CMYK", SIZE, (255, 0, 0, 0))  # full cyan: no red
    shown = np.asarray(decode(encoded(image, kind)), int)
    assert np.abs(shown - (0, 255, 255)).max() <= 2


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled_to_8(kind: str):
    values = (np.arange(256, dtype=np.uint32) * 257).astype(np.uint16).reshape(16, 16)
    shown = np.asarray(decode(encoded(Image.fromarray(values), kind)))
    assert np.array_equal(shown[..., 0], np.arange(256).reshape(16, 16))
    assert (shown == shown[..., :1]).all()


def test_floating_grey_in_zero_to_one_is_scaled_to_8():
    values = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    shown = np.asarray(decode(encoded(Image.fromarray(values), "TIFF")))
    assert np.array_equal(shown[..., 0], np.arange(256).reshape(16, 16))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_1_bit_is_black_and_white(kind: str):
    bits = Image.fromarray(np.eye(8, dtype=bool))
    shown = np.asarray(decode(encoded(bits, kind)))
    assert np.array_equal(shown, np.repeat(np.eye(8)[..., None] * 255, 3, axis=-1))


# What must be done to the stored image so that it is upright, undone: EXIF 2.3, 4.6.4.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_rotation_is_undone(picture: Image.Image, orientation: int, kind: str):
    turn = STORED[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = picture.transpose(turn) if turn is not None else picture
    shown = decode(encoded(stored, kind, exif=exif))
    assert shown.size == SIZE
    difference = np.abs(np.asarray(shown, int) - np.asarray(picture, int))
    assert difference.mean() < 4 if kind == "JPEG" else not difference.any()


def jpeg_with(after: bytes, picture: Image.Image, segment: bytes) -> bytes:
    """A JPEG with one more segment behind that of the marker ``after``."""
    data = encoded(picture, "JPEG", quality=95)
    at = data.index(after)
    end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    body = segment[:2] + (len(segment)).to_bytes(2, "big") + segment[2:]
    return data[:end] + body + data[end:]


def xmp(orientation: int) -> bytes:
    return (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description '
        b'tiff:Orientation="%d"/></rdf:RDF></x:xmpmeta>' % orientation
    )


@pytest.mark.parametrize("after", [b"\xff\xe0", b"\xff\xc0", b"\xff\xdb"])
@pytest.mark.parametrize("kind", ["EXIF", "XMP"])
@pytest.mark.parametrize("orientation", STORED)
def test_a_jpeg_is_turned_wherever_it_is_told(
    picture: Image.Image, orientation: int, kind: str, after: bytes
):
    turn = STORED[orientation]
    stored = picture.transpose(turn) if turn is not None else picture
    exif = Image.Exif()
    exif[0x0112] = orientation
    told = {
        "EXIF": exif.tobytes(),
        "XMP": b"http://ns.adobe.com/xap/1.0/\0" + xmp(orientation),
    }[kind]
    data = jpeg_with(after, stored, b"\xff\xe1" + told)
    assert probe(data) == SIZE
    for shown in (np.asarray(decode(data)), as_rows(data)):
        assert np.abs(shown.astype(int) - np.asarray(picture)).mean() < 4


def as_rows(data: bytes) -> np.ndarray:
    """The pixels as networks get them, (height, width, 3)."""
    return fast_decode(data).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("how", ["EXIF", "XMP"])
@pytest.mark.parametrize("orientation", STORED)
def test_width_and_height_are_those_of_the_pixels(
    picture: Image.Image, orientation: int, how: str, kind: str
):
    turn = STORED[orientation]
    stored = picture.transpose(turn) if turn is not None else picture
    exif = Image.Exif()
    exif[0x0112] = orientation
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp(orientation).decode())
    if how == "EXIF":
        options = {"exif": exif}
    else:
        options = {"pnginfo": info} if kind == "PNG" else {"xmp": xmp(orientation)}
    data = encoded(stored, kind, **options)
    shown = decode(data)
    assert probe(data) == shown.size
    if kind != "TIFF" or how == "EXIF":  # Pillow writes no XMP to TIFF
        assert shown.size == SIZE


def test_exif_behind_the_pixels_of_a_png_turns_it(picture: Image.Image):
    stored = picture.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = encoded(stored, "PNG")
    end = plain.index(b"IEND") - 4
    data = plain[:end] + png_chunk(b"eXIf", exif.tobytes()[6:]) + plain[end:]
    assert probe(data) == SIZE
    assert same(decode(data), picture)


@pytest.mark.parametrize("kind", ["zTXt", "tEXt", "iTXt"])
def test_a_png_may_hold_megabytes_of_metadata(picture: Image.Image, kind: str):
    text, info = "node " * 600_000, PngInfo()
    if kind == "iTXt":
        info.add_itxt("workflow", text, zip=True)
    else:
        info.add_text("workflow", text, zip=kind == "zTXt")
    data = encoded(picture, "PNG", pnginfo=info)
    assert probe(data) == SIZE
    assert same(decode(data), picture)


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_an_animation_gives_its_first_frame(kind: str):
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(red, kind, save_all=True, append_images=[blue], **options)
    assert same(decode(data), red)


def png_chunk(name: bytes, body: bytes) -> bytes:
    crc = struct.pack(">I", zlib.crc32(name + body))
    return struct.pack(">I", len(body)) + name + body + crc


def png_header(width: int, height: int) -> bytes:
    """A PNG that declares these sizes and holds one row."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    row = zlib.compress(bytes(1 + 3 * width))
    signature = b"\x89PNG\r\n\x1a\n"
    chunks = [(b"IHDR", header), (b"IDAT", row), (b"IEND", b"")]
    return signature + b"".join(png_chunk(*one) for one in chunks)


NO_IMAGE = {
    "empty": (b"", "empty"),
    "text": (b"<html>404 Not Found</html>\n", "not an image"),
    "numbers": (bytes(range(256)), "not an image"),
    "signature-only": (b"\x89PNG\r\n\x1a\n", "not an image"),
    "bomb": (png_header(60000, 60000), "too many pixels"),
}


@pytest.mark.parametrize("look", [probe, decode])
@pytest.mark.parametrize(("data", "reason"), NO_IMAGE.values(), ids=NO_IMAGE)
def test_what_is_no_image_is_refused_with_its_reason(look, data: bytes, reason: str):
    with pytest.raises(RefusedImage) as refusal:
        look(data)
    assert refusal.value.reason == reason
    assert refusal.value.detail


@pytest.mark.parametrize(
    "data", [b"P5\n0 8\n255\n", png_header(0, 8), b"BM" + bytes(52)]
)
def test_an_image_without_pixels_is_refused(data: bytes):
    with pytest.raises(RefusedImage):
        probe(data)


def _jpeg_cut(picture: Image.Image, after: str) -> bytes:
    data = encoded(picture, "JPEG")
    scan = data.index(b"\xff\xda") + 14  # the header of the scan is 14 bytes long
    return {
        "half": data[: (scan + len(data)) // 2],
        "header": data[:scan],
        "header-and-nul": data[:scan] + bytes(20),
    }[after]


@pytest.mark.parametrize("after", ["half", "header", "header-and-nul"])
def test_a_truncated_jpeg_passes_the_probe_and_is_refused_by_decode(
    picture: Image.Image, after: str
):
    data = _jpeg_cut(picture, after)
    assert probe(data) == SIZE
    with pytest.raises(RefusedImage) as refusal:
        decode(data)
    assert refusal.value.reason == "undecodable"


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "GIF"])
def test_other_truncated_formats_are_refused(kind: str):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    with pytest.raises(RefusedImage):
        decode(data[: len(data) // 2])


ACCEPT = PixelSpec(truncated="accept")


def test_a_jpeg_without_its_end_marker_is_whole_where_the_entry_accepts_it(
    picture: Image.Image,
):
    whole = encoded(picture, "JPEG")
    with pytest.raises(RefusedImage, match="truncated: accept in the entry"):
        decode(whole[:-2])
    assert same(decode(whole[:-2], ACCEPT), decode(whole))
    assert fast_decode(whole[:-2], ACCEPT).equal(fast_decode(whole))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "PPM", "BMP"])
def test_of_a_cut_image_what_is_there_is_taken_where_the_entry_accepts_it(kind: str):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(noise), kind)
    shown = np.asarray(decode(whole[: len(whole) * 3 // 4], ACCEPT))
    right = np.asarray(decode(whole))
    there = slice(32, 64) if kind == "BMP" else slice(0, 16)  # BMP begins below
    assert np.array_equal(shown[there], right[there])
    assert not np.array_equal(shown, right)


@pytest.mark.parametrize("data", [b"\xff\xd8\xff", b"text", b""])
def test_what_is_no_image_is_accepted_by_no_entry(data: bytes):
    with pytest.raises(RefusedImage):
        decode(data, ACCEPT)


@pytest.mark.parametrize(
    ("data", "reason", "what", "cure"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "unsupported", "HEIC", "JPEG"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "unsupported", "HEIC", "JPEG"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "not an image", "video", "frames"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "unsupported", "JPEG XL", "djxl"),
        (b"\xff\x0a\xfa\x1f", "unsupported", "JPEG XL", "djxl"),
        (bytes(128) + b"DICM\2\0", "unsupported", "DICOM", "16-bit PNG"),
        (b'<?xml version="1.0"?><svg xmlns="">', "unsupported", "SVG", "render"),
        (b"%PDF-1.7\n%", "not an image", "PDF", "pdftoppm"),
        (b"8BPS\0\1broken", "unsupported", "Photoshop", "flatten"),
        (b"PK\3\4\x14\0", "not an image", "zip", "unpack"),
        (b"7z\xbc\xaf'\x1c", "not an image", "7z", "unpack"),
        (b"\x1f\x8b\x08", "not an image", "gzip", "unpack"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n",
            "not an image",
            "Git LFS",
            "git lfs pull",
        ),
        (b"\n<!DOCTYPE html><html>404", "not an image", "HTML page", "download anew"),
        (b"\xef\xbb\xbf<html>", "not an image", "HTML page", "download anew"),
        (b"image,label\na.jpg,cat\n", "not an image", "text", "image,label a.jpg"),
        (bytes(4096), "not an image", "zeros", "copy it anew"),
        (b"\x00\x01\x02\x80garbage", "not an image", "11 bytes, no known", ""),
    ],
)
def test_what_is_no_known_image_is_named_with_its_cure(
    data: bytes, reason: str, what: str, cure: str
):
    for look in (probe, decode):
        with pytest.raises(RefusedImage) as refusal:
            look(data)
        assert refusal.value.reason.startswith(reason)
        assert what in refusal.value.detail
        assert cure in refusal.value.detail


def test_a_100_megapixel_photo_passes_the_probe_without_a_warning():
    """PIL would warn; the filter is set on import, so this needs a fresh process."""
    code = (
        "import sys; from tl_pipeline.inputs.images import probe; "
        "print(*probe(sys.stdin.buffer.read()))"
    )
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        input=png_header(10000, 10000),
        capture_output=True,
        check=True,
    )
    assert (found.stdout.split(), found.stderr) == ([b"10000", b"10000"], b"")


def test_a_strip_that_resizing_would_blow_up_is_refused():
    """1 x 60,000 pixels would become 256 x 15,360,000: the end of the process."""
    code = (
        "import resource, sys\n"
        "from tl_pipeline.inputs.images import Preprocess, RefusedImage\n"
        "from tl_pipeline.inputs.pixels import pixels\n"
        "used = int(open('/proc/self/statm').read().split()[0])\n"
        "most = used * resource.getpagesize() + (2 << 30)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (most, most))\n"
        "how = Preprocess(resize=256, crop=224, mean=(0.5,), std=(0.5,))\n"
        "try: pixels(sys.stdin.buffer.read(), how)\n"
        "except RefusedImage as refusal: print(refusal.reason)\n"
    )
    strip = encoded(Image.new("RGB", (1, 60_000)), "PNG")
    run = [sys.executable, "-c", code]
    assert subprocess.check_output(run, input=strip).strip() == b"too many pixels"


@pytest.mark.parametrize(("grey", "channels"), [(False, 3), (True, 1)])
@pytest.mark.parametrize("size", [(1, 1), (5, 90), (90, 5), SIZE])
def test_pixels_have_the_shape_of_the_crop(
    size: tuple[int, int], grey: bool, channels: int
):
    how = Preprocess(resize=20, crop=16, grey=grey, mean=(0.5,), std=(0.5,))
    values = pixels(encoded(Image.new("RGB", size, "red"), "PNG"), how)
    assert values.shape == (channels, 16, 16)
    assert values.dtype == np.uint8
    assert [set(channel.flat) for channel in values] == (
        [{76}] if grey else [{255}, {0}, {0}]
    )


def test_a_crop_larger_than_the_image_is_padded_with_zeros():
    how = Preprocess(resize=4, crop=7, mean=(0.5,), std=(0.5,))
    red, *_ = pixels(encoded(Image.new("RGB", (4, 4), "red"), "PNG"), how)
    expected = np.zeros((7, 7), np.uint8)
    expected[1:5, 1:5] = 255  # the odd pixel of padding lies right and below
    assert np.array_equal(red, expected)
