"""Several encoders as one: an embedding is theirs side by side.

Nothing joint is stored. Each member is embedded once like any encoder; the joint
vectors are made when rows are read: float32, blocks in the order of the members, each
as its member gives it. Heads that standardise columns give every column equal room. A
head that scales rows (``l2``) scales the joint row, so that members with long vectors
prevail. An image that one member refused has no joint embedding.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from tl_pipeline.config.encoder_specs import BackboneSpec, members
from tl_pipeline.encoders import resolution
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.errors import InvalidSpec
from tl_pipeline.inputs.images import Preprocess
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.embeddings import EmbeddingFolder, Embeddings, Places
from tl_pipeline.store.keys import digest

# Bump when the same members must give other embeddings.
VERSION = 1
_BETWEEN = " + "


class ConcatEncoder(BaseModel):
    """The identity of a joint embedding; it is used as an ``Encoder`` is."""

    model_config = ConfigDict(frozen=True)

    members: tuple[Encoder, ...] = Field(min_length=2)

    @property
    def key(self) -> str:
        """What its heads are bound to; no folder has this name."""
        keys = [member.key for member in self.members]
        return digest({"joint": keys, "version": VERSION})

    @property
    def label(self) -> str:
        """The names of the members: ``vgg16/fc6 IMAGENET1K_V1 + lenet5/c5 LETTERS``."""
        return _BETWEEN.join(member.label for member in self.members)

    @property
    def control(self) -> bool:
        """Whether it is run only to be compared with."""
        return all(member.control for member in self.members)


AnyEncoder = Encoder | ConcatEncoder


@dataclass(frozen=True)
class EncoderEmbeddings(Artifact):
    """The embeddings of one encoder, whose rows hold ``places`` of an image or none."""

    places: Places | None


@dataclass(frozen=True)
class ConcatEmbeddings(Artifact):
    """The embeddings of a joint: ``members`` are those of its members."""

    members: tuple[Artifact, ...]


def members_of(encoder: AnyEncoder) -> tuple[Encoder, ...]:
    """The encoders that are embedded for ``encoder``: its members, or itself."""
    return encoder.members if isinstance(encoder, ConcatEncoder) else (encoder,)


def unique_members(wanted: Iterable[AnyEncoder]) -> tuple[Encoder, ...]:
    """All encoders that are embedded for ``wanted``, each once, in their order."""
    found = [part for encoder in wanted for part in members_of(encoder)]
    return tuple({encoder.key: encoder for encoder in found}.values())


def combine(found: Sequence[Encoder], wish: BackboneSpec) -> AnyEncoder:
    """What ``found``, the members that ``wish`` means, are together.

    Raises:
        InvalidSpec: one of them stands there twice.
    """
    if len(found) == 1:
        return found[0]
    if len({member.key for member in found}) < len(found):
        raise InvalidSpec(
            f"{wish.short()} joins an encoder with itself; name it once, or another "
            "layer, pooling or weights of it"
        )
    return ConcatEncoder(members=tuple(found))


def no_baseline_reason(wish: BackboneSpec) -> str:
    """Why ``wish`` has no untrained twin, or "" where all its members have one."""
    return next(filter(None, map(resolution.no_baseline_reason, members(wish))), "")


def random_init_baseline(
    wish: BackboneSpec, like: AnyEncoder, seed: int, store: Store
) -> AnyEncoder:
    """The control of ``like``, which is what ``wish`` means: its members untrained.

    Raises:
        InvalidSpec: there is none, see ``no_baseline_reason``.
    """
    found = []
    for member, trained in zip(members(wish), members_of(like), strict=True):
        # as exact as the one that it is compared with
        alike = member.model_copy(update={"precision": trained.precision})
        baseline = resolution.random_init_baseline(alike, seed)
        twin = resolution.resolve(baseline, store, control=True)
        if isinstance(trained.preprocess, Preprocess):
            twin = twin.reading(trained.preprocess.pixels)
        found.append(twin)
    return found[0] if len(found) == 1 else ConcatEncoder(members=tuple(found))


def labels(label: str) -> list[str]:
    """The members' labels in that of a joint; of one encoder, its own."""
    return label.split(_BETWEEN)


def embeddings_of(embedded: Mapping[str, Artifact], encoder: AnyEncoder) -> Artifact:
    """The embeddings of ``encoder`` among those that embed gives, by encoder key."""
    if isinstance(encoder, Encoder):
        return embedded[encoder.key]
    found = tuple(embedded[member.key] for member in encoder.members)
    prints = [member.fingerprint for member in found]
    return ConcatEmbeddings(
        "embeddings", encoder.key, digest([encoder.key, prints]), found
    )


def refused(store: Store, embeddings: Artifact) -> set[str]:
    """Ids of the images that have no embedding because an encoder refused them."""
    return set[str]().union(
        *(EmbeddingFolder(store, key).refused() for key in _keys(embeddings))
    )


def load(store: Store, embeddings: Artifact, wanted: Iterable[str]) -> Embeddings:
    """The embeddings of ``wanted`` that are there, sorted by id.

    Raises:
        DamagedArtifact: see ``EmbeddingFolder.load``.
    """
    ids = set(wanted)
    found = [EmbeddingFolder(store, key).load(ids) for key in _keys(embeddings)]
    if len(found) == 1:
        one = isinstance(embeddings, EncoderEmbeddings)
        return replace(found[0], places=embeddings.places if one else None)
    shared = sorted(set[str].intersection(*(set(one.image_ids) for one in found)))
    width = sum(one.vectors.shape[1] for one in found)
    # Its pages are taken as they are filled, while those of the members are given back.
    vectors = np.empty((len(shared), width), np.float32)
    start = 0
    while found:
        member = found.pop(0)
        end = start + member.vectors.shape[1]
        if member.image_ids == shared:
            vectors[:, start:end] = member.vectors
        else:
            rows = np.searchsorted(member.image_ids, shared)
            vectors[:, start:end] = member.vectors[rows]
        start = end
        del member
    return Embeddings(embeddings.key, shared, vectors)


def concatenate(
    encoder: AnyEncoder, vectors: Mapping[str, np.ndarray], image_ids: list[str]
) -> Embeddings:
    """The embeddings of ``image_ids`` under ``encoder``.

    ``vectors`` has those of its parts, each (n_images, width), by encoder key.
    """
    blocks = [vectors[part.key] for part in members_of(encoder)]
    together = blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=1)
    return Embeddings(encoder.key, image_ids, together.astype(np.float32, copy=False))


def _keys(embeddings: Artifact) -> list[str]:
    if isinstance(embeddings, ConcatEmbeddings):
        return [member.key for member in embeddings.members]
    return [embeddings.key]
