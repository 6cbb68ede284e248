"""Weights files: a state dict out of bytes, without running code in them."""

import io
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors

from tl_pipeline.errors import WeightsError

# How training scripts wrap a state dict, and what DataParallel puts before each name.
_WRAPPERS, _PARALLEL = ("state_dict", "model"), "module."


def read_state(data: bytes, origin: Path) -> dict[str, torch.Tensor]:
    """The state dict in the bytes of a weights file; ``origin`` names it in errors.

    ``{"state_dict": ...}``, ``{"model": ...}`` and names that all begin with
    ``module.`` are unwrapped, where nothing else in the file could be meant.

    Raises:
        WeightsError: truncated, not one state dict, or a pickle that holds code.
    """
    found = _read(data, origin)
    if isinstance(found, dict) and not _is_state(found):
        found = _unwrapped(found, origin)
    if not _is_state(found):
        raise WeightsError(f"{origin}: holds no state dict of tensors")
    if all(name.startswith(_PARALLEL) for name in found):
        return {name.removeprefix(_PARALLEL): t for name, t in found.items()}
    return found


def _read(data: bytes, origin: Path) -> Any:
    try:
        if origin.suffix == ".safetensors" or _is_safetensors(data):
            return load_safetensors(data)
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise WeightsError(f"{origin}: not a whole safetensors file: {error}") from None
    # torch raises errors of many kinds for damaged files; all mean the same here.
    except Exception as error:  # noqa: BLE001
        reason = str(error).strip().partition("\n")[0]
        raise WeightsError(
            f"{origin}: cannot be read as a state dict ({reason}). Expected what "
            "torch.save(model.state_dict(), FILE) writes, or a .safetensors file"
        ) from None


def _is_safetensors(data: bytes) -> bool:
    """Whether ``data`` begins with the length of a JSON object, and the object."""
    return data[8:9] == b"{" and int.from_bytes(data[:8], "little") < len(data)


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


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(name, str) for name in value)
        and all(torch.is_tensor(tensor) for tensor in value.values())
    )
