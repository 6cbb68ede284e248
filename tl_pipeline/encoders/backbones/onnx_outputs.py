"""An ONNX network as the outputs of a batch of torch's. Imports torch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from tl_pipeline.encoders.backbones.outputs import InBatches


class OnnxOutputs(InBatches):
    """The float32 outputs ``names`` of an onnxruntime ``session``.

    ``batch`` is the number of images that the file fixes, None if it does not. The
    session sees arrays on the processor, whatever device it works on itself.
    """

    def __init__(self, session: Any, batch: int | None, names: Sequence[str]) -> None:
        super().__init__(names, least=batch or 1, most=batch)
        self._session = session
        self._input = session.get_inputs()[0].name

    def compute(self, batch: torch.Tensor) -> list[torch.Tensor]:
        """See ``InBatches``."""
        given = {self._input: np.ascontiguousarray(batch.cpu().numpy())}
        found = self._session.run(list(self.names), given)
        return [torch.from_numpy(values).to(batch.device) for values in found]
