"""What exactly makes an embedding: backbone, layer, weights by content, preprocessing.

``resolve`` turns a wish (``EncoderSpec``) into that identity, whose key names the
folder of the embeddings. Resolving a second time imports no torch: what torchvision
said of a named member, and the hash of an unchanged weights file, are remembered.
"""

import hashlib
import json
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from tl_pipeline import backbones
from tl_pipeline.artifacts import Store, digest, write_atomically
from tl_pipeline.backbones import Backbone, NamedWeights, Pooling
from tl_pipeline.errors import InvalidSpec, WeightsError
from tl_pipeline.images import Preprocess
from tl_pipeline.specs import EncoderSpec

if TYPE_CHECKING:
    import torch

# Bump when the same identity must give other embeddings.
VERSION = 1
_FILE_ENDINGS = (".pth", ".pt", ".safetensors")


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


class Encoder(BaseModel):
    """The identity of an embedding: equal keys mean interchangeable vectors."""

    model_config = ConfigDict(frozen=True)

    backbone: str
    layer: str
    node: str
    pooling: Pooling
    weights: Weights
    preprocess: Preprocess
    precision: str
    control: bool = Field(default=False, description="run only to be compared with")

    @property
    def key(self) -> str:
        """What the folder of this encoder's embeddings is named."""
        fields = self.model_dump(
            mode="json",
            exclude={
                "layer": True,
                "control": True,
                "weights": {"name", "file", "seed"},
            },
        )
        return digest({"encoder": fields, "version": VERSION})

    @property
    def label(self) -> str:
        """The name people read: ``vgg16/fc6 IMAGENET1K_V1``."""
        return f"{self.backbone}/{self.layer} {self.weights.name}"


def resolve(
    spec: EncoderSpec, store: Store, *, trust: bool = True, control: bool = False
) -> Encoder:
    """Find the weights and the preprocessing that ``spec`` means.

    With ``trust=False`` remembered hashes of weights files are not believed.

    Raises:
        UnknownName: no such backbone, layer, or named weights.
        WeightsError: the weights are not on disk, or not what their name promises.
        InvalidSpec: ``random:SEED`` without a number.
    """
    backbone = backbones.find_backbone(spec.backbone)
    layer_name, layer = backbone.layer(spec.layer)
    memo = _Remembered(store, trust=trust)
    asked = spec.weights or backbone.weights
    # A file and an untrained network are fed as the default weights would be.
    named = _named(backbone, _member(asked) or backbone.weights, memo)
    weights = _weights(asked, named, memo)
    memo.save()
    return Encoder(
        backbone=backbone.name,
        layer=layer_name,
        node=layer.node,
        pooling=layer.pooling,
        weights=weights,
        preprocess=named.preprocess,
        precision=spec.precision,
        control=control,
    )


def untrained_twin(spec: EncoderSpec, seed: int) -> EncoderSpec:
    """The control of ``spec``: the same network and layer with random weights."""
    return spec.model_copy(update={"weights": f"random:{seed}"})


def load(encoder: Encoder) -> "torch.nn.Module":
    """The frozen network of ``encoder``: (n, channels, crop, crop) -> (n, width).

    Raises:
        WeightsError: the file changed since it was resolved, or does not fit.
    """
    from tl_pipeline import networks  # noqa: PLC0415 - torch, which planning can spare

    backbone = backbones.find_backbone(encoder.backbone)
    layer = backbones.Layer(encoder.node, encoder.pooling)
    if encoder.weights.seed is not None:
        return networks.untrained(backbone, layer, encoder.weights.seed)
    file = encoder.weights.file
    if file is None or not file.exists():
        raise WeightsError(f"the weights {encoder.label} are no longer at {file}")
    data = file.read_bytes()
    if hashlib.sha256(data).hexdigest() != encoder.weights.sha256:
        raise WeightsError(f"{file} changed while this run was under way; run again")
    return networks.pretrained(backbone, layer, networks.read_state(data, file), file)


def check_names(spec: EncoderSpec) -> Backbone:
    """The backbone of ``spec``, if it and its layer are listed.

    Raises:
        UnknownName: one of them is not.
    """
    backbone = backbones.find_backbone(spec.backbone)
    backbone.layer(spec.layer)
    return backbone


def fetch(spec: EncoderSpec) -> None:
    """Download the named weights of ``spec`` by torchvision's own loader if missing.

    Raises:
        UnknownName: see ``check_names``.
        WeightsError: they cannot be downloaded; says which file to put where.
    """
    backbone = check_names(spec)
    member = _member(spec.weights or backbone.weights)
    if backbone.origin == "ours" or member is None:
        return
    named = backbones.named_weights(backbone, member)
    if named.file.exists():
        return
    from torch.hub import load_state_dict_from_url  # noqa: PLC0415

    try:
        load_state_dict_from_url(named.url, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        raise WeightsError(f"{_missing(named)}. Download failed: {error}") from None


def _member(asked: str) -> str | None:
    """``asked`` if it names a member of torchvision's weights; None for the rest."""
    is_file = asked.endswith(_FILE_ENDINGS) or "/" in asked
    return None if is_file or _is_random(asked) else asked


def _is_random(asked: str) -> bool:
    return asked.partition(":")[0] == "random"


def _weights(asked: str, named: NamedWeights, memo: "_Remembered") -> Weights:
    if _is_random(asked):
        seed = asked.partition(":")[2]
        if not seed.isdecimal() or int(seed) >= 2**64:
            raise InvalidSpec(f"weights {asked!r}: write random:SEED, a whole number")
        # The draw depends on torch's own initialisation and generator.
        drawn = f"random:{int(seed)} torch {metadata.version('torch')}"
        sha256 = hashlib.sha256(drawn.encode()).hexdigest()
        return Weights(name=f"random:{int(seed)}", sha256=sha256, seed=int(seed))
    if _member(asked) is None:
        file = Path(asked).expanduser().resolve()
        if not file.is_file():
            raise WeightsError(f"weights file {file} does not exist")
        return Weights(name=file.name, sha256=memo.sha256(file), file=file)
    if not named.file.is_file():
        raise WeightsError(_missing(named))
    sha256 = memo.sha256(named.file)
    # torchvision checks this only while it downloads.
    if not sha256.startswith(named.sha256_prefix):
        raise WeightsError(
            f"{named.file} is not the published {named.name}: its sha256 begins with "
            f"{sha256[:8]}, not {named.sha256_prefix}. Delete it, or give it with "
            "weights=FILE if you mean it"
        )
    return Weights(name=named.name, sha256=sha256, file=named.file)


def _missing(named: NamedWeights) -> str:
    return (
        f"weights {named.name} are not on disk: put {named.url.rpartition('/')[2]} "
        f"({named.megabytes:.0f} MB, from {named.url}) at {named.file}, or give "
        "another file with weights=FILE"
    )


def _named(backbone: Backbone, member: str, memo: "_Remembered") -> NamedWeights:
    if backbone.origin == "ours":
        return backbones.named_weights(backbone, member)
    key = f"torchvision {metadata.version('torchvision')} {backbone.name} {member}"
    known = memo.get(key)
    if known is not None:
        file = backbones.checkpoint_folder() / known.pop("file")
        preprocess = Preprocess.model_validate(known.pop("preprocess"))
        return NamedWeights(file=file, preprocess=preprocess, **known)
    named = backbones.named_weights(backbone, member)
    memo.put(
        key,
        {
            "name": named.name,
            "file": named.file.name,
            "url": named.url,
            "megabytes": named.megabytes,
            "sha256_prefix": named.sha256_prefix,
            "preprocess": named.preprocess.model_dump(mode="json"),
        },
    )
    return named


class _Remembered:
    """A disposable memo in the store: named members, hashes of weights files."""

    def __init__(self, store: Store, *, trust: bool) -> None:
        self._file = store.root / "memo" / "encoders.json"
        self._writable = (store.root / "store.json").exists()
        self._trust = trust
        try:
            self._known = json.loads(self._file.read_text())
        except (FileNotFoundError, ValueError):  # bytes that are no JSON, or no text
            self._known = {}
        if not isinstance(self._known, dict):
            self._known = {}
        self._before = dict(self._known)

    def get(self, key: str) -> dict[str, Any] | None:
        value = self._known.get(key)
        return dict(value) if value is not None else None

    def put(self, key: str, value: dict[str, Any]) -> None:
        self._known[key] = value

    def sha256(self, file: Path) -> str:
        stat = file.stat()
        version = f"{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"
        known = self._known.get(str(file))
        if known and known["version"] == version and self._trust:
            return known["sha256"]
        with file.open("rb") as handle:
            sha256 = hashlib.file_digest(handle, "sha256").hexdigest()
        self.put(str(file), {"version": version, "sha256": sha256})
        return sha256

    def save(self) -> None:
        if self._writable and self._known != self._before:
            self._file.parent.mkdir(exist_ok=True)
            write_atomically(self._file, json.dumps(self._known, indent=1))
