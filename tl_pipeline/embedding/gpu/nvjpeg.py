"""JPEGs decoded by the hardware that some GPUs have for it (tried: H200).

It is driven by NVIDIA's nvJPEG, of the extra ``nvjpeg``, through its C interface: that
takes a batch at a time and writes into memory of torch. As long as chroma is
interpolated, that hardware and libjpeg-turbo agree on all but one value in some ten
thousands, which is 1/255 off; what else decodes on GPUs does not agree and is not used.
Whether it is so here is tried once, for each way of chroma subsampling. Imports torch.
"""

import ctypes
import io
import weakref
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import Image

from tl_pipeline.errors import DeviceError
from tl_pipeline.inputs.nvjpeg_support import Sampling, Size

# By what PIL calls them. The hardware knows more, but who writes those is not here.
_SAMPLINGS: dict[Sampling, int] = {(1, 1): 0, (1, 2): 1, (2, 2): 2}
_SIDES = (333, 251)  # of the trial: odd, and no multiple of a block
# From nvjpeg.h.
_HARDWARE, _RGB, _INTERPOLATE = 3, 3, 1 << 5
_BAD, _UNSUPPORTED, _INCOMPLETE = 3, 4, 10
_PLACES = 4  # channels of an image


class NvjpegDecoder:
    """Decodes for one GPU, in one thread, on its stream.

    Called with JPEGs and their sizes it gives uint8 (n, 3, height, width), each in the
    upper left of what is as large as the largest; None where the hardware does not take
    one of them. The bytes must stay until the stream is done.

    Raises:
        ImportError: there is no nvJPEG for the CUDA of this torch.
        DeviceError: this GPU has no such hardware, or it fails.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._library = _library()
        self._handle, self._state = ctypes.c_void_p(), ctypes.c_void_p()
        with torch.cuda.device(device):
            self._do("CreateEx", _HARDWARE, None, None, _INTERPOLATE, self._handle)
            held = (self._library, device, self._handle, self._state)
            # Not at the end of the process, which gives everything back itself.
            weakref.finalize(self, _give_back, *held).atexit = False
            self._do("JpegStateCreate", self._handle, self._state)

    def __call__(
        self, encoded: Sequence[bytes], sizes: Sequence[Size]
    ) -> torch.Tensor | None:
        """Decode all."""
        number = len(encoded)
        height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
        found = torch.empty(
            (number, 3, height, width), dtype=torch.uint8, device=self.device
        )
        # An nvjpegImage_t each: where the channels are, and the bytes of a row.
        places = np.zeros((number, 2, _PLACES), np.uint64)
        channel = np.arange(3 * number, dtype=np.uint64).reshape(number, 3)
        places[:, 0, :3] = found.data_ptr() + channel * (height * width)
        places[:, 1, :3] = width
        code = self._call(
            "DecodeBatchedInitialize", self._handle, self._state, number, 1, _RGB
        ) or self._call(
            "DecodeBatched",
            *(self._handle, self._state),
            (ctypes.c_char_p * number)(*encoded),
            (ctypes.c_size_t * number)(*map(len, encoded)),
            places.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_void_p(torch.cuda.current_stream(self.device).cuda_stream),
        )
        if code in {_BAD, _UNSUPPORTED, _INCOMPLETE}:
            return None
        self._check("DecodeBatched", code)
        return found

    def _do(self, name: str, *given: Any) -> None:
        """Call what gives its last argument a value."""
        *first, last = given
        self._check(name, self._call(name, *first, ctypes.byref(last)))

    def _call(self, name: str, *given: Any) -> int:
        return getattr(self._library, f"nvjpeg{name}")(*given)

    def _check(self, name: str, code: int) -> None:
        if code:
            gpu = torch.cuda.get_device_name(self.device)
            raise DeviceError(
                f"{gpu}: nvjpeg{name} fails with status {code}; where the package "
                "nvidia-nvjpeg is missing, processors decode"
            )


def _give_back(
    library: Any, device: torch.device, handle: ctypes.c_void_p, state: ctypes.c_void_p
) -> None:
    with torch.cuda.device(device):
        if state:
            library.nvjpegJpegStateDestroy(state)
        library.nvjpegDestroy(handle)


@cache
def judge(device: torch.device) -> tuple[frozenset[Sampling], str]:
    """The samplings that the hardware of ``device`` decodes as libjpeg-turbo does.

    And why there is none, in words: "" where there is one.
    """
    try:
        decode = NvjpegDecoder(device)
    except ImportError as error:
        return frozenset(), f"{error}: pip install 'tl-pipeline[nvjpeg]'"
    except DeviceError as error:
        return frozenset(), f"without the hardware for it, or it fails ({error})"
    good = frozenset(how for how in _SAMPLINGS if _agrees(decode, _trial(how)))
    return good, "" if good else "its hardware decodes JPEGs to other pixels"


def _agrees(decode: NvjpegDecoder, data: bytes) -> bool:
    width, height = _SIDES
    found = decode([data], [(height, width)])
    if found is None:
        return False
    expected = simplejpeg.decode_jpeg(data, "RGB").astype(np.int16)
    off = found[0].permute(1, 2, 0).cpu().numpy() - expected
    return bool(np.abs(off).max() <= 1)


def _trial(sampling: Sampling) -> bytes:
    """A small JPEG of a photograph."""
    from sklearn.datasets import load_sample_image  # noqa: PLC0415

    photo = Image.fromarray(load_sample_image("flower.jpg")).resize(_SIDES)
    kept = io.BytesIO()
    photo.save(kept, "JPEG", quality=90, subsampling=_SAMPLINGS[sampling])
    return kept.getvalue()


@cache
def _library() -> ctypes.CDLL:
    """The nvJPEG that an NVIDIA package brings, or the system has, for this CUDA."""
    major = (torch.version.cuda or "none").partition(".")[0]
    spec = find_spec("nvidia")
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        for file in sorted(Path(folder).glob(f"*/lib/libnvjpeg.so.{major}")):
            return ctypes.CDLL(str(file))
    try:
        return ctypes.CDLL(f"libnvjpeg.so.{major}")
    except OSError:
        raise ImportError(f"there is no nvJPEG for CUDA {major}") from None
