"""Whether networks still give the embeddings that are stored.

The key of an encoder has weights, layer, input and precision. It has not the versions
of torch and of decoders, the processor or the driver. So before new embeddings join old
ones, a few of these are computed again and compared. Imports torch.
"""

from collections.abc import Iterable, Sequence
from importlib.metadata import version

import numpy as np
import torch

from tl_pipeline.data.reading import ImageRef, Refusal
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.errors import StoreError
from tl_pipeline.store.embeddings import EmbeddingFolder

_IMAGES = 16
# How far embeddings may move, as a share of their length, in the median. On one machine
# they come out equal in every bit. In bf16, Lite0's lie up to 0.064 from those in fp32,
# and another processor's lie as far again; another interpolation moves them by 0.1 or
# more.
_LIMIT = {"fp32": 0.02, "bf16": 0.1}


class Recomputed:
    """Takes what networks give, in place of a folder, and publishes nothing."""

    def __init__(self) -> None:
        self._vectors: dict[str, np.ndarray] = {}

    def add(self, image_ids: list[str], vectors: np.ndarray) -> None:
        """Keep ``vectors`` (len(image_ids), width)."""
        self._vectors.update(zip(image_ids, vectors, strict=True))

    def refuse(self, rows: list[Refusal]) -> None:
        """Leave out images that cannot be read any more."""

    def compare(self, encoder: Encoder, folder: EmbeddingFolder) -> None:
        """See that what lies in ``folder`` is as it came out now.

        Raises:
            StoreError: it is not; says by how much, and what to do.
            DamagedArtifact: a part cannot be read.
        """
        stored = folder.load(self._vectors)
        if not stored.image_ids:
            return
        now = np.stack([self._vectors[i] for i in stored.image_ids]).astype(np.float32)
        length = np.linalg.norm(stored.vectors, axis=1)
        apart = np.linalg.norm(now - stored.vectors, axis=1)
        moved = float(np.median(apart / np.maximum(length, np.finfo(np.float32).tiny)))
        limit = _LIMIT[encoder.precision]
        if moved <= limit:
            return
        before, here = folder.made_by() or "a version that did not note it", machine()
        cause = f"Stored by {before}; now {here}. Go back to that"
        if before == here:
            cause = f"Versions are the same ({here}). See whether parts were changed"
        raise StoreError(
            f"{encoder.label}: the network gives other embeddings than are stored: "
            f"{len(length)} images that were embedded before came out "
            f"{100 * moved:.2g} % of their length away in the median, and "
            f"{encoder.precision} allows {100 * limit:g} %. In one table old and new "
            f"ones would differ for no reason in the images. {cause}, or embed all "
            f"images anew: remove {folder.path}"
        )


def sample(
    folders: Iterable[EmbeddingFolder], images: Sequence[ImageRef]
) -> list[ImageRef]:
    """Some of ``images`` that have an embedding, of each folder those of one part."""
    known = dict(images)
    found: dict[str, str] = {}
    for folder in folders:
        most: list[str] = []
        for rows in reversed(folder.parts().whole.values()):
            ids = [i for i in rows["image_id"].to_pylist() if i in known]
            most = max(most, ids, key=len)
            if len(most) >= _IMAGES:
                break
        step = max(1, len(most) // _IMAGES)
        found |= {i: known[i] for i in most[::step][:_IMAGES]}
    return [*found.items()]


def machine() -> str:
    """What embeds here: versions and the processor or GPU, in words."""
    names = ("torch", "torchvision", "pillow")
    found = ", ".join(f"{name} {version(name)}" for name in names)
    if torch.cuda.is_available():
        return f"{found} on {torch.cuda.get_device_name()}"
    return f"{found} on a CPU with {torch.backends.cpu.get_cpu_capability()}"
