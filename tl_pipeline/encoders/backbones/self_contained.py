"""What files that hold a whole network have in common: names, and how to feed them.

Such a file fixes at most the shape of its input. The rest is taken as ImageNet's
networks are fed in torchvision's first recipe: the shorter side becomes 8/7 of the
crop (256 for 224), and ImageNet's mean and deviation are removed. A network of one
channel gets grey values in [0, 1]. Each can be set: ``resize``, ``crop``, ``mean``,
``std``, ``interpolation``.
"""

from collections.abc import Iterable
from pathlib import Path

from tl_pipeline.encoders.backbones.backbone import Backbone, Layer, NamedWeights
from tl_pipeline.errors import InvalidSpec, WeightsError
from tl_pipeline.inputs.images import Preprocess

IMAGENET = Preprocess(
    resize=256, crop=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)


def of_file(kind: str, name: str) -> Backbone | None:
    """``KIND:FILE``, the file as its weights; or bare ``KIND``, whose file is known."""
    prefix, _, rest = name.partition(":")
    if prefix != kind:
        return None
    weights = str(Path(rest).expanduser().resolve()) if rest else ""
    return Backbone(kind, {}, weights=weights, origin=kind)


def checked(backbone: Backbone, name: str) -> Path:
    """The file ``name``.

    Raises:
        InvalidSpec: none is named.
        WeightsError: it is not there.
    """
    if not name:
        raise InvalidSpec(f"{backbone.name} alone is no network: {backbone.name}:FILE")
    file = Path(name)
    if not file.is_file():
        raise WeightsError(f"network file {file} does not exist")
    return file


def named(
    file: Path, shape: tuple[int | None, ...], outputs: Iterable[str]
) -> NamedWeights:
    """What is known of a network in ``file``, whose layers are its ``outputs``.

    Raises:
        InvalidSpec: see ``fed``.
    """
    return NamedWeights(
        name=file.name,
        file=file,
        url="",
        megabytes=file.stat().st_size / 1e6,
        sha256_prefix="",
        preprocess=fed(str(file), shape),
        layers={output: Layer(output) for output in outputs},
    )


def fed(origin: str, shape: tuple[int | None, ...]) -> Preprocess:
    """How a network of input ``shape`` (images, channels, height, width) is fed.

    None stands for an axis that is free.

    Raises:
        InvalidSpec: the images are not square, or have not one or three channels.
    """
    _, channels, height, width = shape
    if channels not in {None, 1, 3} or height != width:
        told = " x ".join("?" if axis is None else str(axis) for axis in shape)
        raise InvalidSpec(
            f"{origin}: takes {told}; known are (images, channels, side, side) with "
            "one or three channels, the channels first"
        )
    found = IMAGENET
    if height is not None:
        found = found.model_copy(update={"resize": height * 8 // 7, "crop": height})
    if channels == 1:
        grey = {"grey": True, "mean": (0.0,), "std": (1.0,)}
        found = found.model_copy(update=grey)
    return found
