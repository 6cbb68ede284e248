"""Where networks run: every GPU that torch can use, or else the processor.

Imports torch.
"""

import ctypes
import os
import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch

from tl_pipeline.errors import DeviceError, InvalidSpec

CPU = torch.device("cpu")
_NVIDIA = Path("/dev/nvidia0")
# From glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT = 1 << 30  # bytes


def devices() -> list[torch.device]:
    """All GPUs, or the processor where there is none.

    Raises:
        DeviceError: there is a GPU that torch cannot use. It is not passed over, since
            nobody would learn why everything takes so long.
    """
    if torch.cuda.is_available():
        return [torch.device("cuda", at) for at in range(torch.cuda.device_count())]
    if _NVIDIA.exists() and not _hidden():
        try:
            torch.cuda.init()
            fault = "torch sees none"
        except (RuntimeError, AssertionError) as error:
            fault = str(error).strip().partition("\n")[0]
        raise DeviceError(
            f"this machine has a GPU that torch {torch.__version__} cannot use: "
            f"{fault}. Mend the driver, install a torch that fits it, or set "
            "CUDA_VISIBLE_DEVICES= (to nothing) to run on the processor"
        )
    return [CPU]


def cores() -> int:
    """The processor cores that this process may use: ``TL_CORES``, or else all.

    Raises:
        InvalidSpec: the variable holds no number of cores.
    """
    said = os.environ.get("TL_CORES", "").strip()
    if not said:
        return os.cpu_count() or 1
    if not said.isdecimal() or int(said) < 1:
        raise InvalidSpec(f"TL_CORES={said!r} is no number of cores; give 1 or more")
    return int(said)


def has_bfloat16(device: torch.device) -> bool:
    """Whether ``device`` computes faster in bfloat16 than in float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpu = torch.cpu
    return cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported()  # noqa: SLF001


@cache
def keep_freed_memory() -> None:
    """Let glibc keep what a network frees for its next batch.

    By default large blocks go back to the kernel, which then hands them out anew page
    by page and zeroed: ResNet-50 spent 40 % of its time so. Elsewhere than on glibc
    nothing is done.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_THRESHOLD, _KEPT)
    libc.mallopt(_TRIM_THRESHOLD, _KEPT)


def exact_float32() -> None:
    """Let float32 mean float32 on GPUs too, where TensorFloat-32 would round it."""
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    cudnn: Any = torch.backends.cudnn
    # The older switch, too: torch.export asks for it, and fails if the two differ.
    cudnn.allow_tf32 = False
    cudnn.conv.fp32_precision = "ieee"
    cudnn.rnn.fp32_precision = "ieee"


def _hidden() -> bool:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible is not None and visible.strip() in {"", "-1"}
