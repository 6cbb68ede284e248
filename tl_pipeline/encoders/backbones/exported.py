"""A network in a file of ``torch.export.save``, ``export:FILE.pt2``.

It takes one float32 (images, channels, side, side), the first axis fixed or free, and
returns a tensor (the layer ``output``), several (``output0``, ``output1`` ...) or a
dict of them. It is fed as ``sealed_input`` says, in the size that the file fixes.

Reading such a file runs code that it holds: ``torch.export.load`` unpickles objects and
evaluates expressions. Name only files from people you trust, as with ``python:``.
"""

import io
from typing import TYPE_CHECKING, Any

from tl_pipeline.encoders.backbones import self_contained
from tl_pipeline.encoders.backbones.backbone import Backbone, NamedWeights
from tl_pipeline.errors import WeightsError

if TYPE_CHECKING:
    from tl_pipeline.encoders.backbones.outputs import Outputs

PACKAGE: str = "torch"
NO_BASELINE: str = "an exported file does not tell how its weights were drawn"


def find(name: str) -> Backbone | None:
    """``export:FILE``; where the file lies is no part of what the network is."""
    return self_contained.of_file("export", name)


def named_weights(backbone: Backbone, name: str) -> NamedWeights:
    """The outputs and the input of the network in the file ``name``.

    Raises:
        WeightsError: it is not there, or is no exported network.
        InvalidSpec: its input is no batch of square images.
    """
    from tl_pipeline.encoders.backbones import exported_outputs

    file = self_contained.checked(backbone, name)
    program = _program(file.read_bytes(), str(file))
    shape, _ = exported_outputs.input_of(program, str(file))
    outputs = exported_outputs.names_of(program, str(file))
    return self_contained.named(file, shape, outputs)


def opened(
    backbone: Backbone,  # noqa: ARG001 - the file tells all
    data: bytes,
    origin: str,
    sha256: str,  # noqa: ARG001 - of ``data``, compared already
) -> "Outputs":
    """The network in ``data``, on the GPU if torch sees one.

    Raises:
        WeightsError: it is no exported network.
        InvalidSpec: its input is no batch of images.
    """
    import torch

    from tl_pipeline.encoders.backbones.exported_outputs import ExportedOutputs

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return ExportedOutputs(_program(data, origin), origin, device)


def _program(data: bytes, origin: str) -> Any:
    import torch

    try:
        return torch.export.load(io.BytesIO(data))
    # torch raises errors of many kinds for damaged files; all mean the same here.
    except Exception as fault:  # noqa: BLE001
        reason = str(fault).strip().partition("\n")[0]
        raise WeightsError(
            f"{origin}: cannot be read as an exported network ({reason}). Expected "
            "what torch.export.save(program, FILE) writes"
        ) from None
