"""The quick look into a JPEG agrees with PIL, or leaves it to PIL."""

import io
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tl_pipeline.inputs.headers import jpeg_size
from tl_pipeline.inputs.images import RefusedImage, probe

Crops = Callable[[str, int], Image.Image]


def jpeg(image: Image.Image, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", **options)
    return out.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_size_is_that_of_pil(crops: Crops, mode, progressive, subsampling):
    image = crops("china", 7).convert(mode)
    data = jpeg(image, progressive=progressive, subsampling=subsampling)
    assert jpeg_size(data) == image.size == probe(data)


def test_exif_is_left_to_pil_which_turns_the_image_upright(crops: Crops):
    image = crops("china", 8).resize((40, 30))
    exif = Image.Exif()
    exif[0x0112] = 6
    data = jpeg(image, exif=exif)
    assert jpeg_size(data) is None
    assert probe(data) == (30, 40)


def test_comments_and_profiles_before_the_frame_are_skipped(crops: Crops):
    image = crops("flower", 3)
    data = jpeg(image, comment=b"x" * 5000, icc_profile=b"y" * 70_000)
    assert jpeg_size(data) == image.size


def test_other_formats_are_left_to_pil(crops: Crops):
    out = io.BytesIO()
    crops("flower", 3).save(out, "PNG")
    assert jpeg_size(out.getvalue()) is None
    assert jpeg_size(b"") is None


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_damaged_headers_never_crash_and_never_lie_about_whole_ones(crops, data):
    """Cut or changed anywhere: a size, None, or a refusal with a reason."""
    whole = jpeg(crops("china", 9))
    cut = data.draw(st.integers(0, len(whole)))
    changed = bytearray(whole[:cut])
    for _ in range(data.draw(st.integers(0, 4))):
        if changed:
            place = data.draw(st.integers(0, min(len(changed), 700) - 1))
            changed[place] = data.draw(st.integers(0, 255))
    try:
        found = probe(bytes(changed))
    except RefusedImage as refusal:
        found = (len(refusal.reason), len(refusal.detail))
    assert all(0 < number <= 65535 for number in found)
