"""A module of torch as a file that other programs run: ONNX, or ``torch.export``."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from tl_pipeline.errors import InvalidSpec
from tl_pipeline.export.classifier import Classifier

Format = Literal["onnx", "torch-export"]
Precision = Literal["fp32", "fp16", "int8"]
FILES: dict[Format, str] = {"onnx": "model.onnx", "torch-export": "model.pt2"}
_AT_A_TIME = 16


def check(kind: Format, precision: Precision) -> None:
    """See that there is such a thing and that its packages are installed.

    Raises:
        InvalidSpec: there is none, or they are not.
    """
    if kind == "torch-export" and precision == "int8":
        raise InvalidSpec(
            "--precision int8 goes with --format onnx, which onnxruntime quantises; "
            "torch-export has fp32 and fp16"
        )
    try:
        if kind == "onnx":
            import onnx  # noqa: F401, PLC0415
            import onnxruntime  # noqa: F401, PLC0415
            import onnxscript  # noqa: F401, PLC0415
    except ImportError as fault:
        raise InvalidSpec(
            f"--format onnx needs onnx, onnxruntime and onnxscript ({fault}): "
            "pip install 'tl-pipeline[export]'"
        ) from None


def write(classifier: Classifier, pixels: np.ndarray, kind: Format, file: Path) -> None:
    """Write ``classifier`` into ``file``, for any number of images at once.

    ``pixels`` are some images to trace it with: uint8 (n, channels, side, side).

    Raises:
        InvalidSpec: a part of the network has no form in that format.
    """
    example = torch.from_numpy(np.ascontiguousarray(pixels[:2]))
    shapes = {"pixels": {0: torch.export.Dim("images")}}
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # of what torch will change in itself
            if kind == "torch-export":
                program = torch.export.export(
                    classifier, (example,), dynamic_shapes=shapes
                )
                torch.export.save(program, file)
                return
            torch.onnx.export(
                classifier,
                (example,),
                file,
                dynamo=True,
                dynamic_shapes=shapes,
                input_names=["pixels"],
                output_names=["probabilities"],
                external_data=False,
                verbose=False,
            )
    # Tracing raises errors of many kinds for what it does not know.
    except Exception as fault:
        lines = [line for line in str(fault).splitlines() if line.strip()]
        raise InvalidSpec(
            f"torch cannot write this network as {kind}: "
            f"{type(fault).__name__}: {lines[0] if lines else ''}. Choose a model of "
            "another network, or the other format"
        ) from fault


def quantise(file: Path, pixels: np.ndarray) -> None:
    """Make the network in the ONNX ``file`` one of int8; the head stays as it is.

    Ranges of activations are those that ``pixels``, of images to learn from, show.
    """
    import onnx  # noqa: PLC0415
    from onnxruntime import quantization  # noqa: PLC0415
    from onnxruntime.quantization.shape_inference import (  # noqa: PLC0415
        quant_pre_process,
    )

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self._batches: Iterator[np.ndarray] = iter(
                np.array_split(pixels, -(-len(pixels) // _AT_A_TIME))
            )

        def get_next(self) -> dict[str, Any] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
            batch = next(self._batches, None)
            return None if batch is None else {"pixels": np.ascontiguousarray(batch)}

    exact = file.with_suffix(".fp32.onnx")
    quant_pre_process(file, exact, skip_symbolic_shape=True)
    # Optimised graphs do not tell any more where a node is from, but keep names.
    own = {node.name for node in onnx.load(file).graph.node if _of_network(node)}
    nodes = onnx.load(exact).graph.node
    chosen = [node.name for node in nodes if node.name in own or node.op_type == "Conv"]
    quantization.quantize_static(
        exact,
        file,
        Reader(),
        per_channel=True,
        reduce_range=True,  # or sums overflow on processors without VNNI
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        op_types_to_quantize=["Conv", "MatMul", "Gemm"],
        nodes_to_quantize=chosen,
    )
    exact.unlink()


def _of_network(node: Any) -> bool:
    told = {entry.key: entry.value for entry in node.metadata_props}
    return "'networks" in told.get("pkg.torch.onnx.name_scopes", "")
