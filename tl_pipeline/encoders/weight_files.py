"""Weights files: a state dict out of bytes, without running code in them."""

import argparse
import io
import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors

from tl_pipeline.errors import WeightsError

_NUMPY = b"\x93NUMPY"
# What a pickle of arrays names, by module and name.
_MAKE_ARRAY: Any = np.zeros(1).__reduce__()[0]
_ARRAY_PARTS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _MAKE_ARRAY,
    ("numpy._core.multiarray", "_reconstruct"): _MAKE_ARRAY,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}
# How training scripts wrap a state dict.
_WRAPPERS = ("state_dict", "model")
# What wrappers of modules put before each name: torch.compile, DataParallel and
# SWA, Lightning modules, self-supervised learning (MoCo's query encoder).
_PREFIX = re.compile(r"(?:_orig_mod|module|model|net|backbone|encoder_q)\.")
_QUERY = "encoder_q."
_COUNTER = "n_averaged"  # of torch.optim.swa_utils.AveragedModel
_SCALAR: Any = np.float64(0).__reduce__()[0]  # makes numbers of numpy
# What checkpoints hold beside tensors, and what cannot run code.
_HARMLESS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,
    np.dtype,
    type(np.dtype(np.float64)),
    type(np.dtype(np.float32)),
    type(np.dtype(np.int64)),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    (_SCALAR, "numpy.core.multiarray.scalar"),
]
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_EXPECTED = (
    "Expected what torch.save(model.state_dict(), FILE) writes, or a .safetensors file"
)
# What a file is by its first bytes, and what to do about it.
_OTHERS: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (re.compile(rb"\s*$"), "is empty; copy or download it again"),
    (
        re.compile(rb"\s*(<!doctype|<html|<\?xml)", re.IGNORECASE),
        "is a web page that was saved in place of the file; download the file itself",
    ),
    (
        re.compile(rb"version https://git-lfs"),
        "is a Git LFS pointer and not the file; run `git lfs pull`",
    ),
    (re.compile(rb"\x89HDF"), f"is an HDF5 file (Keras). {_EXPECTED}"),
    (re.compile(rb"\x1f\x8b|BZh|\xfd7zXZ"), "is compressed; unpack it first"),
)


def read_state(data: bytes, origin: Path) -> dict[str, torch.Tensor]:
    """The state dict in the bytes of a weights file; ``origin`` names it in errors.

    ``{"state_dict": ...}`` and ``{"model": ...}`` are unwrapped where nothing else in
    the file could be meant. A usual prefix that all names share is removed, which a
    warning says.

    Raises:
        WeightsError: truncated, not one state dict, or a pickle that holds code.
    """
    found = _read(data, origin)
    if isinstance(found, dict) and not _is_state(found):
        found = _unwrapped(found, origin)
    if not _is_state(found):
        raise WeightsError(f"{origin}: holds no state dict of tensors. {_EXPECTED}")
    return _without_prefix(found, origin)


def _read(data: bytes, origin: Path) -> Any:
    if data[8:9] == b"{":  # after the length of its header
        try:
            return load_safetensors(data)
        except SafetensorError as error:
            raise WeightsError(
                f"{origin}: not a whole safetensors file: {error}"
            ) from None
    if data.startswith(_NUMPY):
        return _layers(data, origin)
    for begin, told in _OTHERS:
        if begin.match(data[:512]):
            raise WeightsError(f"{origin}: {told}")
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    # torch raises errors of many kinds for damaged files; all mean the same here.
    except Exception as error:  # noqa: BLE001
        raise WeightsError(f"{origin}: {_refusal(data, str(error))}") from None


class _Arrays(pickle.Unpickler):
    """Reads arrays of numbers in dictionaries and lists, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """What a pickle of arrays names; the file's own words run nothing."""
        found = _ARRAY_PARTS.get((module, name))
        if found is None:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return found


def _layers(data: bytes, origin: Path) -> dict[str, torch.Tensor]:
    """The state dict in a ``.npy`` file: a dictionary of (weight, bias) by layer.

    Arrays are in TensorFlow's order, (height, width, in, out) and (in, out).
    """
    file = io.BytesIO(data)
    told = "holds arrays of numpy, but no dictionary with (weight, bias) of each layer"
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            read = np.lib.format.read_array_header_2_0
        if not read(file)[2].hasobject:
            raise WeightsError(f"{origin}: {told}")
        layers = _Arrays(file, encoding="latin1").load().item()
        return {
            f"{layer}.{part}": torch.from_numpy(_ordered(np.asarray(array)))
            for layer, arrays in layers.items()
            for part, array in zip(("weight", "bias"), arrays, strict=True)
        }
    except pickle.UnpicklingError as fault:
        raise WeightsError(
            f"{origin}: holds an object of {fault}, whose code would have to run; only "
            "arrays of numbers are read"
        ) from None
    except (ValueError, TypeError, AttributeError, EOFError, IndexError):
        raise WeightsError(f"{origin}: {told}") from None


def _ordered(array: np.ndarray) -> np.ndarray:
    """From TensorFlow's order of axes to torch's."""
    axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim, (0,))
    return np.ascontiguousarray(array.transpose(axes), np.float32)


def _refusal(data: bytes, error: str) -> str:
    """What is wrong with a file that torch does not read; ``error`` is what it said."""
    if data[:2] == b"PK" and b"constants.pkl" in data:
        return (
            "is a TorchScript archive, which holds code. Save the weights: "
            "torch.save(torch.jit.load(FILE).state_dict(), OTHER)"
        )
    if data[:2] == b"PK" and b"models/model.json" in data:
        return "is an exported network; name it as a backbone: export:FILE"
    held = _GLOBAL.search(error)
    if held:
        return (
            f"holds an object of {held[1]}, whose code would have to run. Where the "
            "file was made, save the weights alone: "
            "torch.save(model.state_dict(), FILE)"
        )
    return f"is damaged, or holds no weights of torch. {_EXPECTED}"


def _unwrapped(found: dict[Any, Any], origin: Path) -> Any:
    """The only state dict of a checkpoint, if a usual name says it is the weights."""
    inside = [name for name, value in found.items() if _is_state(value)]
    if len(inside) == 1 and inside[0] in _WRAPPERS:
        return found[inside[0]]
    if inside:
        raise WeightsError(
            f"{origin}: a checkpoint with state dicts under {inside}. Save the one you "
            "mean: torch.save(checkpoint[NAME], FILE)"
        )
    return None


def _without_prefix(
    state: dict[str, torch.Tensor], origin: Path
) -> dict[str, torch.Tensor]:
    """``state`` without the usual prefixes that all of its names share."""
    found = {name: tensor for name, tensor in state.items() if name != _COUNTER}
    removed = ""
    while prefix := _shared_prefix(found):
        removed += prefix
        found = {
            name.removeprefix(prefix): tensor
            for name, tensor in found.items()
            if name.startswith(prefix)
        }
    if not removed:
        return state  # which may know its versions
    warnings.warn(
        f"{origin}: the names of its weights begin with {removed!r}, which is left out",
        stacklevel=2,
    )
    return found


def _shared_prefix(state: dict[str, torch.Tensor]) -> str:
    if any(name.startswith(_QUERY) for name in state):
        return _QUERY  # beside it lie the key encoder and the queue
    first = _PREFIX.match(next(iter(state), ""))
    shared = first is not None and all(name.startswith(first[0]) for name in state)
    return first[0] if first and shared else ""


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(name, str) for name in value)
        and all(torch.is_tensor(tensor) for tensor in value.values())
    )
