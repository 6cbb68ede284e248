"""A network in an ONNX file, ``onnx:FILE``, run by onnxruntime.

Its one input is float32 (images, channels, side, side), the first axis fixed or free;
its layers are its outputs. It is fed as ImageNet's networks are (``sealed_input``), in
the size that the file fixes. No library of custom operators is ever loaded, and
weights in files beside it (``external data``) are refused: the hash of this one file is
all that tells which network it is.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_pipeline.encoders.backbones import self_contained
from tl_pipeline.encoders.backbones.backbone import Backbone, NamedWeights
from tl_pipeline.errors import InvalidSpec, WeightsError

if TYPE_CHECKING:
    from tl_pipeline.encoders.backbones.outputs import Outputs

PACKAGE: str = "onnxruntime"
NO_BASELINE: str = "an ONNX file does not tell how its weights were drawn"
_PREFIX = "onnx:"
_FLOAT = "tensor(float)"


def find(name: str) -> Backbone | None:
    """``onnx:FILE``; where the file lies is no part of what the network is."""
    return self_contained.of_file("onnx", name)


def named_weights(backbone: Backbone, name: str) -> NamedWeights:
    """The outputs and the input of the network in the file ``name``.

    Raises:
        WeightsError: it is not there, or is no ONNX network.
        InvalidSpec: its input is no batch of square images.
    """
    file = self_contained.checked(backbone, name)
    session = _session(file.read_bytes(), str(file), device="cpu")
    shape, outputs = _signature(session, str(file))
    return self_contained.named(file, shape, outputs)


def opened(
    backbone: Backbone,  # noqa: ARG001 - the file tells all
    data: bytes,
    origin: str,
    sha256: str,  # noqa: ARG001 - of ``data``, compared already
) -> "Outputs":
    """The network in ``data``, on the GPU if torch and onnxruntime both see one.

    Raises:
        WeightsError: it is no ONNX network.
    """
    import torch

    from tl_pipeline.encoders.backbones.onnx_outputs import OnnxOutputs

    session = _session(data, origin, "cuda" if torch.cuda.is_available() else "cpu")
    shape, outputs = _signature(session, origin)
    return OnnxOutputs(session, shape[0], outputs)


def _session(data: bytes, origin: str, device: str) -> Any:
    try:
        import onnx
        import onnxruntime
    except ImportError:
        raise InvalidSpec(
            "onnx:FILE needs the packages onnx and onnxruntime: "
            "pip install 'tl-pipeline[onnx]'"
        ) from None
    try:
        _refuse_external(onnx.load_model_from_string(data), origin)
        options = onnxruntime.SessionOptions()
        options.use_deterministic_compute = True
        options.log_severity_level = 3  # errors are raised; warnings nobody can act on
        wanted = ["CUDAExecutionProvider"] if device == "cuda" else []
        able = onnxruntime.get_available_providers()
        providers = [name for name in wanted if name in able]
        return onnxruntime.InferenceSession(
            data, options, providers=[*providers, "CPUExecutionProvider"]
        )
    except WeightsError:
        raise
    # Both libraries raise errors of many kinds; all mean the same here.
    except Exception as fault:  # noqa: BLE001
        reason = str(fault).strip().partition("\n")[0]
        raise WeightsError(f"{origin}: cannot be read as ONNX ({reason})") from None


def _refuse_external(model: Any, origin: str) -> None:
    from onnx.external_data_helper import uses_external_data

    beside = sum(map(uses_external_data, _tensors(model)))
    if beside:
        name = Path(origin).name
        raise WeightsError(
            f"{origin}: {beside} of its tensors lie in another file, which its hash "
            "does not cover. Write it in one, with torch.onnx.export(..., "
            f"external_data=False) or onnx.save(onnx.load({name!r}), 'whole.onnx')"
        )


def _tensors(message: Any) -> Iterator[Any]:
    """Every tensor in a protobuf ``message``: weights, attributes, subgraphs."""
    from onnx import TensorProto

    if isinstance(message, TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if field.is_repeated else [value]:
                yield from _tensors(part)


def _signature(session: Any, origin: str) -> tuple[tuple[int | None, ...], list[str]]:
    """The shape of the input, None where it is free, and the names of the outputs."""
    inputs = session.get_inputs()
    if [(one.type, len(one.shape)) for one in inputs] != [(_FLOAT, 4)]:
        told = ", ".join(f"{one.name} {one.type} {one.shape}" for one in inputs)
        raise InvalidSpec(
            f"{origin}: its input must be one float32 (images, channels, side, side), "
            f"but it is {told or 'none'}"
        )
    shape = tuple(axis if isinstance(axis, int) else None for axis in inputs[0].shape)
    outputs = [one.name for one in session.get_outputs() if one.type == _FLOAT]
    if not outputs:
        raise InvalidSpec(f"{origin}: it has no output of float32")
    return shape, outputs
