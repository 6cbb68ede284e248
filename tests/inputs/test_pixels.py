"""Fast pixels: those of PIL and torchvision's presets, whatever the file."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from tl_pipeline.inputs import images, pixels
from tl_pipeline.inputs.images import Preprocess, RefusedImage

RGB = Preprocess(resize=64, crop=56, mean=(0.5,) * 3, std=(0.5,) * 3)
FORMATS = {
    "jpeg": ("RGB", "JPEG", {"quality": 90}),
    "progressive": ("RGB", "JPEG", {"progressive": True}),
    "full colour": ("RGB", "JPEG", {"subsampling": 0}),
    "stored as rgb": ("RGB", "JPEG", {"keep_rgb": True}),
    "grey jpeg": ("L", "JPEG", {}),
    "cmyk": ("CMYK", "JPEG", {}),
    "png": ("RGB", "PNG", {}),
    "palette": ("P", "PNG", {}),
    "alpha": ("RGBA", "PNG", {}),
    "16 bit": ("I;16", "PNG", {}),
    "gif": ("P", "GIF", {}),
    "webp": ("RGB", "WEBP", {"quality": 80}),
    "bmp": ("RGB", "BMP", {}),
    "tiff": ("RGB", "TIFF", {}),
    "ppm": ("RGB", "PPM", {}),
}


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """Smooth colours with noise on them, 150 x 97, unlike itself when turned."""
    chance = np.random.default_rng(0)
    coarse = Image.fromarray(chance.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((150, 97), Image.Resampling.BICUBIC)).astype(int)
    noisy = smooth + chance.integers(-9, 10, smooth.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, mode: str, kind: str, **options) -> bytes:
    """The bytes of ``image``."""
    if mode == "I;16":
        values = np.asarray(image.convert("L")).astype(np.uint16) * 257
        image = Image.fromarray(values)
    elif image.mode != mode:
        image = image.convert(mode)
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_decoded_to_the_pixels_of_pil(picture: Image.Image, name: str):
    mode, kind, options = FORMATS[name]
    data = encoded(picture, mode, kind, **options)
    found = pixels.decode(data).permute(1, 2, 0).numpy()
    assert np.array_equal(found, np.asarray(images.decode(data)))


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_every_orientation_is_turned_upright(
    picture: Image.Image, orientation: int, kind: str
):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture, "RGB", kind, exif=exif)
    found = pixels.decode(data).permute(1, 2, 0).numpy()
    assert np.array_equal(found, np.asarray(images.decode(data)))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("method", ["bilinear", "bicubic", "nearest"])
def test_preprocessing_is_that_of_the_preset_on_pil(
    picture: Image.Image, name: str, method: str
):
    mode, kind, options = FORMATS[name]
    data = encoded(picture, mode, kind, **options)
    how = RGB.model_copy(update={"interpolation": method})
    preset = v2.Compose(
        [v2.Resize(64, v2.InterpolationMode(method)), v2.CenterCrop(56)]
    )
    expected = np.asarray(preset(images.decode(data))).transpose(2, 0, 1)
    off = np.abs(pixels.pixels(data, how).astype(int) - expected)
    assert off.max() <= (0 if method == "nearest" else 1)


def test_grey_is_pils_to_the_bit(picture: Image.Image):
    data = encoded(picture, "RGB", "PNG")
    how = Preprocess(resize=97, crop=97, grey=True, mean=(0.5,), std=(0.5,))
    left = round((150 - 97) / 2)
    expected = np.asarray(picture.convert("L"))[:, left : left + 97]
    assert np.array_equal(pixels.pixels(data, how)[0], expected)


def test_a_truncated_jpeg_is_refused_as_pil_refuses_it(picture: Image.Image):
    whole = encoded(picture, "RGB", "JPEG", quality=95)
    said = set()
    for length in range(0, len(whole) - 1, 97):
        reasons = []
        for decode in (images.decode, pixels.decode):
            with pytest.raises(RefusedImage) as refusal:
                decode(whole[:length])
            reasons.append(refusal.value.reason)
        assert reasons[0] == reasons[1]
        said.add(reasons[0])
    assert {"empty", "undecodable"} <= said


def test_flipped_bytes_give_what_pil_gives_or_are_refused_alike(picture: Image.Image):
    whole = encoded(picture, "RGB", "JPEG", quality=95)
    chance = np.random.default_rng(1)
    accepted = 0
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[chance.integers(len(whole))] ^= 1 << int(chance.integers(8))
        try:
            expected = np.asarray(images.decode(bytes(damaged)))
        except RefusedImage:
            with pytest.raises(RefusedImage):
                pixels.decode(bytes(damaged))
            continue
        found = pixels.decode(bytes(damaged)).permute(1, 2, 0).numpy()
        assert np.array_equal(found, expected)
        accepted += 1
    assert 20 < accepted < 150


def test_a_stack_keeps_the_channels_last_in_memory(picture: Image.Image):
    row = pixels.pixels(encoded(picture, "RGB", "PNG"), RGB)
    batch = pixels.stack([row, row[::-1]])
    assert batch.shape == (2, 3, 56, 56)
    assert np.array_equal(batch[0], row)
    assert np.array_equal(batch[1], row[::-1])
    tensor = torch.from_numpy(batch)
    assert tensor.is_contiguous(memory_format=torch.channels_last)
