"""What exactly makes an embedding: backbone, layer, weights by content, preprocessing.

An ``Encoder`` is that identity, whose key names the folder of the embeddings.
``wishes`` finds it, and ``encoder_networks`` the network that it means.
"""

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from tl_pipeline.config.dataset_entry import PixelSpec
from tl_pipeline.encoders.backbones import CELLS, Pooling
from tl_pipeline.encoders.weight_names import Weights
from tl_pipeline.inputs.images import AS_IS, Preprocess
from tl_pipeline.inputs.modalities import Input
from tl_pipeline.store.embeddings import Places
from tl_pipeline.store.keys import digest

# Bump when the same identity must give other embeddings.
VERSION = 1


class Encoder(BaseModel):
    """The identity of an embedding: equal keys mean interchangeable vectors.

    ``variant`` says for people in what it differs from the usual; what makes it differ
    stands in the other fields. ``tokens`` is how many places pool=tokens keeps, which
    follows from the others; ``store`` how a value is kept, None for float32.
    """

    model_config = ConfigDict(frozen=True)

    backbone: str
    layer: str
    node: str
    pooling: Pooling
    weights: Weights
    preprocess: Input
    precision: str
    control: bool = Field(default=False, description="run only to be compared with")
    variant: str = ""
    tokens: int | None = None
    store: Literal["float16"] | None = None

    @property
    def places(self) -> Places | None:
        """The places of an image that a row holds; None where it is one vector."""
        if self.pooling in CELLS:
            return Places(CELLS[self.pooling] ** 2, channels_first=True)
        return Places(self.tokens) if self.tokens else None

    @property
    def value_bytes(self) -> int:
        """What a value of an embedding takes in the store."""
        return 2 if self.store else 4

    @property
    def key(self) -> str:
        """What the folder of this encoder's embeddings is named."""
        fields = self.model_dump(
            mode="json",
            exclude={
                "layer": True,
                "control": True,
                "variant": True,
                "tokens": True,
                "weights": {"name", "file", "seed"},
            },
        )
        if self.store is None:  # as before there was a choice
            del fields["store"]
        return digest({"encoder": fields, "version": VERSION})

    def reading(self, how: PixelSpec) -> Self:
        """The same encoder, whose images are read as ``how`` says."""
        if not isinstance(self.preprocess, Preprocess) or how == AS_IS:
            return self
        told = " ".join(
            f"{name}={'/'.join(f'{v:g}' for v in value)}"
            if isinstance(value, tuple)
            else f"{name}={value}"
            for name, value in how
            if value != getattr(AS_IS, name)
        )
        preprocess = self.preprocess.model_copy(update={"pixels": how})
        variant = f"{self.variant} {told}".strip()
        return self.model_copy(update={"preprocess": preprocess, "variant": variant})

    @property
    def label(self) -> str:
        """The name people read: ``vgg16/fc6 IMAGENET1K_V1``."""
        told = [self.variant] if self.variant else []
        told += [self.precision] if self.precision != "fp32" else []
        variant = f" ({' '.join(told)})" if told else ""
        return f"{self.backbone}/{self.layer}{variant} {self.weights.name}"


def shares_network(one: Encoder, other: Encoder) -> bool:
    """Whether one forward pass gives both: they differ in layer and pooling alone."""
    return (one.backbone, one.weights.sha256, one.preprocess, one.precision) == (
        other.backbone,
        other.weights.sha256,
        other.preprocess,
        other.precision,
    )


def sharing(encoders: Sequence[Encoder]) -> list[list[Encoder]]:
    """``encoders`` in groups that one forward pass serves."""
    groups: list[list[Encoder]] = []
    for encoder in encoders:
        for group in groups:
            if shares_network(group[0], encoder):
                group.append(encoder)
                break
        else:
            groups.append([encoder])
    return groups
