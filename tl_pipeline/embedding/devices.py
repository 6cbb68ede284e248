"""Where networks run: every GPU that torch can use, or else the processor.

Imports torch.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tl_pipeline.errors import DeviceError

CPU = torch.device("cpu")
_NVIDIA = Path("/dev/nvidia0")


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


def has_bfloat16(device: torch.device) -> bool:
    """Whether ``device`` computes faster in bfloat16 than in float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpu = torch.cpu
    return cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported()  # noqa: SLF001


class _ExactFloat32:
    """Switches TensorFloat-32 off while any thread needs that, and then back."""

    def __init__(self) -> None:
        self._lock, self._users = threading.Lock(), 0
        self._before: list[str] = []

    @contextmanager
    def __call__(self, device: torch.device) -> Iterator[None]:
        """In the block, float32 on ``device`` means float32 and is not rounded."""
        if device.type == "cpu":  # which never rounds
            yield
            return
        self._change(1)
        try:
            yield
        finally:
            self._change(-1)

    def _change(self, users: int) -> None:
        with self._lock:
            if self._users == 0:
                self._before = [one.fp32_precision for one in _switches()]
                for one in _switches():
                    one.fp32_precision = "ieee"
            self._users += users
            if self._users == 0:
                for one, before in zip(_switches(), self._before, strict=True):
                    one.fp32_precision = before


def _switches() -> list[Any]:
    cudnn: Any = torch.backends.cudnn
    return [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn]


exact_float32 = _ExactFloat32()


def _hidden() -> bool:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible is not None and visible.strip() in {"", "-1"}
