"""JPEGs that a GPU decodes itself, and resizing there: the pixels of a processor."""
# ruff: noqa: ARG002, N802 - functions of nvJPEG keep their names and arguments

import ctypes
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_image

from tl_pipeline.config.specs import EncoderSpec
from tl_pipeline.data.identity import image_id
from tl_pipeline.embedding import devices
from tl_pipeline.embedding.batch_loader import BatchLoader
from tl_pipeline.embedding.forward import Forward
from tl_pipeline.embedding.gpu import batch_loader, nvjpeg
from tl_pipeline.embedding.gpu.batch_loader import NvjpegBatchLoader
from tl_pipeline.encoders import resolution
from tl_pipeline.errors import DeviceError
from tl_pipeline.inputs import nvjpeg_support, pixels
from tl_pipeline.inputs.images import Preprocess
from tl_pipeline.inputs.resizing import Resizer, can_resize
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.timings import Clock

EVERY = frozenset({(1, 1), (1, 2), (2, 2)})
COLOUR = Preprocess(resize=40, crop=32, mean=(0.5,) * 3, std=(0.5,) * 3)
GREY = Preprocess(resize=28, crop=28, grey=True, mean=(0.5,), std=(0.5,))
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def photo(width: int, height: int) -> Image.Image:
    return Image.fromarray(load_sample_image("china.jpg")).resize((width, height))


def encoded(image: Image.Image, kind: str = "JPEG", **how: object) -> bytes:
    kept = io.BytesIO()
    image.save(kept, kind, **how)
    return kept.getvalue()


def noise(height: int, width: int, seed: int) -> torch.Tensor:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return torch.from_numpy(values).permute(2, 0, 1)


def resized(image: torch.Tensor, how: Preprocess, device: torch.device) -> np.ndarray:
    """Beside another one, so that both are padded."""
    some = [noise(how.crop + 9, how.crop + 90, 1), image]
    sizes = [(one.shape[1], one.shape[2]) for one in some]
    height, width = np.max(sizes, axis=0)
    padded = torch.full((2, 3, height, width), 255, dtype=torch.uint8)
    for place, one in zip(padded, some, strict=True):
        place[:, : one.shape[1], : one.shape[2]] = one
    resizer = Resizer(how, device)
    both = resizer(padded.to(device), sizes).cpu().numpy()
    alone = resizer(image[None].to(device), sizes[1:]).cpu().numpy()
    assert np.array_equal(both[1:], alone)
    return both[1]


@settings(deadline=None, max_examples=60)
@given(
    size=st.tuples(st.integers(20, 300), st.integers(20, 300)),
    resize=st.integers(24, 60),
    crop=st.integers(16, 24),
    kind=st.sampled_from(["bilinear", "bicubic"]),
    grey=st.booleans(),
    squash=st.booleans(),
)
def test_resizing_by_products_gives_the_same_pixels(
    size: tuple[int, int], resize: int, crop: int, kind: str, grey: bool, squash: bool
):
    about = {"interpolation": kind, "grey": grey, "squash": squash}
    how = Preprocess(resize=resize, crop=crop, mean=(0.5,), std=(0.5,), **about)
    image = noise(*size, seed=0)
    expected = pixels.preprocess(image, how)
    assert can_resize(size, how)
    off = np.abs(resized(image, how, devices.CPU).astype(int) - expected)
    shrunk = max(a / b for a, b in zip(size, pixels.size_of(size, how), strict=True))
    # Float32 is exact as long as an output is not the sum of too many inputs.
    assert off.max() <= (shrunk > 2)
    assert np.mean(off) < 0.01


def test_a_photo_that_shrinks_a_lot_is_1_off_at_most_and_hardly_anywhere():
    how = COLOUR.model_copy(update={"resize": 256, "crop": 224})
    image = noise(2900, 2600, seed=0)
    off = resized(image, how, devices.CPU) - pixels.preprocess(image, how).astype(int)
    assert np.abs(off).max() <= 1
    assert np.mean(off != 0) < 1e-4


@pytest.mark.parametrize(
    ("size", "changes"),
    [
        ((2, 60_000_000), {}),  # refused elsewhere: it would be too wide
        ((90, 60), {"resize": 20}),  # smaller than the crop: to be padded
        ((90, 60), {"interpolation": "nearest"}),
        ((90, 60), {"resize": 32, "pad": True}),
    ],
)
def test_what_is_not_resized_by_products_is_told(
    size: tuple[int, int], changes: dict[str, object]
):
    assert not can_resize(size, COLOUR.model_copy(update=changes))


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_whole_plain_jpegs_are_for_the_hardware(subsampling: int):
    data = encoded(photo(75, 50), subsampling=subsampling)
    assert nvjpeg_support.size(data, EVERY) == (50, 75)
    assert nvjpeg_support.size(data + b"\0" * 8, EVERY) == (50, 75)
    adobe = data[:2] + b"\xff\xee\0\x0eAdobe\0d\0\0\0\0\x01" + data[20:]
    assert pixels.decode(adobe).equal(pixels.decode(data))
    assert nvjpeg_support.size(adobe, EVERY) == (50, 75)
    own = [(1, 1), (1, 2), (2, 2)][subsampling]
    assert nvjpeg_support.size(data, EVERY - {own}) is None


def test_the_hardware_is_not_given_what_it_may_see_otherwise():
    plain, exif = photo(75, 50), Image.Exif()
    exif[0x0112] = 6  # lies on its side
    data = encoded(plain)
    for other in (
        encoded(plain, progressive=True),
        encoded(plain.convert("L")),
        encoded(plain.convert("CMYK")),
        encoded(plain, keep_rgb=True),
        encoded(plain, exif=exif),
        encoded(plain, "PNG"),
        data[:-200],
        b"\xff\xd8\xff",
        b"",
    ):
        assert nvjpeg_support.size(other, EVERY) is None
    exif[0x0112] = 1  # upright
    assert nvjpeg_support.size(encoded(plain, exif=exif), EVERY) == (50, 75)


class Hardware:
    """As NvjpegDecoder, on the processor; it does not take images of 64 rows."""

    device, given = devices.CPU, 0

    def __call__(
        self, some: Sequence[bytes], sizes: Sequence[tuple[int, int]]
    ) -> torch.Tensor | None:
        Hardware.given += len(some)
        if 64 in dict(sizes):
            return None
        height, width = np.max(sizes, axis=0)
        found = torch.full((len(some), 3, height, width), 99, dtype=torch.uint8)
        for place, data, (rows, columns) in zip(found, some, sizes, strict=True):
            place[:, :rows, :columns] = pixels.decode(data)
        return found


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """What a folder may hold, and hardware that takes some of it."""
    mine = Hardware(), [Resizer(how, devices.CPU) for how in (COLOUR, GREY)]
    monkeypatch.setattr(NvjpegBatchLoader, "_tools", lambda _: mine)
    monkeypatch.setattr(Hardware, "given", 0)
    sides = [(75, 50), (50, 75), (120, 64), (333, 200), (41, 40)]
    held = {f"{at}.jpg": encoded(photo(*side)) for at, side in enumerate(sides)}
    return held | {
        "as.png": encoded(photo(60, 48), "PNG"),
        "grey.jpg": encoded(photo(60, 48).convert("L")),
        "cut.jpg": encoded(photo(300, 200))[:3000],
        "text.jpg": b"no image",
        "small.jpg": encoded(photo(9, 9)),
    }


def fed(kind: type[BatchLoader], folder: dict[str, bytes], *more: object) -> dict:
    images = [(image_id(data), name) for name, data in folder.items()]
    images.append(("0" * 64, images[0][1]))  # changed since
    with ThreadPoolExecutor(2) as reading:
        feeder = kind((COLOUR, GREY), folder.__getitem__, reading, Clock(), *more)
        return feeder.finish(feeder.begin(images))


def assert_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for how, one in found.items():
        assert one.ids == expected[how].ids
        assert one.refused == expected[how].refused
        assert len(one.refused) == 3
        assert np.array_equal(np.asarray(one.batch), expected[how].batch)


def test_a_folder_is_fed_alike_whoever_decodes(folder: dict[str, bytes]):
    found = fed(NvjpegBatchLoader, folder, EVERY)
    assert_same(found, fed(BatchLoader, folder))
    assert isinstance(found[COLOUR].batch, torch.Tensor)
    assert Hardware.given == 6


def test_what_is_all_for_the_hardware_is_fed_as_it_comes(folder: dict[str, bytes]):
    some = {name: folder[name] for name in ("0.jpg", "1.jpg")}
    found, expected = fed(NvjpegBatchLoader, some, EVERY), fed(BatchLoader, some)
    for how, one in found.items():
        assert one.ids == expected[how].ids
        assert np.array_equal(np.asarray(one.batch), expected[how].batch)


def test_what_would_wait_for_the_hardware_too_long_is_decoded_at_once(
    folder: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
):
    limit = len(folder["0.jpg"]) + len(folder["1.jpg"])
    monkeypatch.setattr(batch_loader, "_WAITING", limit)
    found = fed(NvjpegBatchLoader, folder, EVERY)
    assert_same(found, fed(BatchLoader, folder))
    assert Hardware.given == 2


def test_large_photos_are_decoded_few_at_a_time(
    folder: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(batch_loader, "_MOST_PIXELS", 8000)
    assert_same(fed(NvjpegBatchLoader, folder, EVERY), fed(BatchLoader, folder))


def test_without_the_library_there_is_no_hardware_and_it_is_said_why(
    monkeypatch: pytest.MonkeyPatch,
):
    def lacking() -> None:
        raise ImportError("there is no nvJPEG for CUDA 13")

    monkeypatch.setattr(nvjpeg, "_library", lacking)
    good, why = nvjpeg.judge.__wrapped__(torch.device("cuda", 0))
    assert not good
    assert "tl-pipeline[nvjpeg]" in why


class Library:
    """nvJPEG as far as it is called, decoding by libjpeg-turbo into memory."""

    def __init__(self) -> None:
        self.held: list[str] = []
        self.code = 0

    def nvjpegCreateEx(self, kind, device, pinned, flags, handle) -> int:
        assert (kind, device, pinned, flags) == (3, None, None, 32)
        return self._made("handle", handle)

    def nvjpegJpegStateCreate(self, handle, state) -> int:
        return self._made("state", state)

    def _made(self, name: str, place) -> int:
        self.held.append(name)
        place._obj.value = len(self.held)
        return self.code

    def nvjpegDecodeBatchedInitialize(self, handle, state, number, threads, kind):
        self.number = number
        assert (threads, kind) == (1, 3)  # planes of red, green and blue
        return self.code

    def nvjpegDecodeBatched(self, handle, state, data, lengths, places, stream) -> int:
        fields = ctypes.c_size_t * (8 * self.number)
        told = fields.from_address(places.value)
        for at in range(self.number):
            encoded = ctypes.string_at(
                ctypes.cast(data, ctypes.POINTER(ctypes.c_void_p))[at], lengths[at]
            )
            channels, pitch = told[8 * at : 8 * at + 3], told[8 * at + 4]
            for channel, place in zip(pixels.decode(encoded), channels, strict=True):
                for row, values in enumerate(channel.numpy()):
                    target = place + row * pitch
                    ctypes.memmove(target, values.tobytes(), len(values))
        return 0

    def nvjpegJpegStateDestroy(self, state) -> None:
        assert state.value == 2
        self.held.remove("state")

    def nvjpegDestroy(self, handle) -> None:
        assert handle.value == 1
        self.held.remove("handle")


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    found = Library()
    monkeypatch.setattr(nvjpeg, "_library", lambda: found)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    stream = SimpleNamespace(cuda_stream=0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: stream)
    return found


def test_a_batch_is_decoded_into_the_upper_left_of_what_all_share(library: Library):
    decode = nvjpeg.NvjpegDecoder(devices.CPU)
    sizes = [(50, 75), (75, 50), (9, 9)]
    some = [encoded(photo(width, height)) for height, width in sizes]
    images = decode(some, sizes)
    assert images is not None
    assert images.shape == (3, 3, 75, 75)
    for data, image, (height, width) in zip(some, images, sizes, strict=True):
        assert image[:, :height, :width].equal(pixels.decode(data))
    assert library.held == ["handle", "state"]
    del decode
    assert library.held == []


def test_what_the_hardware_does_not_take_is_told_from_a_failure(library: Library):
    decode = nvjpeg.NvjpegDecoder(devices.CPU)
    data = encoded(photo(75, 50))
    for code in (3, 4, 10):  # damaged, of another kind, not whole
        library.code = code
        assert decode([data], [(50, 75)]) is None
    library.code = 6
    with pytest.raises(DeviceError, match=r"a GPU: nvjpegDecodeBatched .* status 6"):
        decode([data], [(50, 75)])


def test_a_gpu_without_the_hardware_decodes_nothing(library: Library):
    library.code = 7
    good, why = nvjpeg.judge.__wrapped__(devices.CPU)
    assert not good
    assert "without the hardware for it" in why
    assert "nvjpegCreateEx fails with status 7" in why


@pytest.mark.usefixtures("library")
def test_hardware_that_sees_other_pixels_is_not_used(monkeypatch: pytest.MonkeyPatch):
    judge = nvjpeg.judge.__wrapped__
    assert judge(devices.CPU) == (EVERY, "")
    usual = pixels.decode
    monkeypatch.setattr(pixels, "decode", lambda data: usual(data) ^ 2)
    good, why = judge(devices.CPU)
    assert not good
    assert why == "its hardware decodes JPEGs to other pixels"


@on_gpu
def test_a_gpu_resizes_to_the_pixels_of_a_processor():
    how = COLOUR.model_copy(update={"resize": 256, "crop": 224})
    for kind in ("bilinear", "bicubic"):
        how = how.model_copy(update={"interpolation": kind})
        image, gpu = noise(411, 523, seed=0), torch.device("cuda", 0)
        with devices.exact_float32(gpu):
            found = resized(image, how, gpu)
        assert np.array_equal(found, pixels.preprocess(image, how))


@on_gpu
def test_the_hardware_decodes_to_the_pixels_of_a_processor():
    good, why = nvjpeg.judge(torch.device("cuda", 0))
    if not good:
        pytest.skip(why)
    decode = nvjpeg.NvjpegDecoder(torch.device("cuda", 0))
    sides = ((500, 375), (37, 41), (1024, 768), (17, 300))
    for sampling in good:
        how = [(1, 1), (1, 2), (2, 2)].index(sampling)
        some = [
            encoded(photo(*side), subsampling=how, quality=quality)
            for side in sides
            for quality in (50, 90, 100)
        ]
        sizes = [(height, width) for width, height in sides for _ in range(3)]
        images = decode(some, sizes)
        assert images is not None
        for data, image, (height, width) in zip(some, images, sizes, strict=True):
            found = image[:, :height, :width].cpu().numpy().astype(int)
            off = found - pixels.decode(data).numpy()
            assert np.abs(off).max() <= 1
            assert np.mean(off != 0) < 0.01


@on_gpu
def test_a_damaged_jpeg_costs_no_other_its_pixels():
    device = torch.device("cuda", 0)
    if not nvjpeg.judge(device)[0]:
        pytest.skip(nvjpeg.judge(device)[1])
    decode, data = nvjpeg.NvjpegDecoder(device), encoded(photo(300, 200))
    expected, size = pixels.decode(data).numpy().astype(int), (200, 300)
    for cut in range(700, len(data) - 400, 500):
        images = decode([data, data[:cut] + data[cut + 200 :]], [size] * 2)
        if images is not None:  # what it makes of the damaged one is anybody's guess
            assert np.abs(images[0].cpu().numpy() - expected).max() <= 1
    images = decode([data], [size])
    assert images is not None
    assert np.abs(images[0].cpu().numpy() - expected).max() <= 1


@on_gpu
def test_a_recorded_network_gives_what_it_gives_otherwise(store: Store):
    how = "squeezenet1_0:weights=random:0"
    encoder = resolution.resolve(EncoderSpec.parse(how), store)
    device = torch.device("cuda", 0)
    plain, fast = Forward([encoder], device), Forward([encoder], device)
    fast.record(16, threads=2)
    crop = encoder.preprocess.crop
    chance = np.random.default_rng(0)
    batches = [
        chance.integers(0, 256, (rows, 3, crop, crop), dtype=np.uint8)
        for rows in (16, 16, 16, 16, 16, 5)
    ]
    with ThreadPoolExecutor(2) as threads:
        found = [one for (one,) in threads.map(fast, batches)]
    assert fast._recorded.empty()
    for batch, one in zip(batches, found, strict=True):
        np.testing.assert_allclose(one, plain(batch)[0], atol=1e-3 * np.abs(one).max())
