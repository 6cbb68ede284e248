"""The stored embeddings that a page looks into: those of the best single encoder."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tl_pipeline.encoders import concat
from tl_pipeline.encoders.concat import ConcatEmbeddings
from tl_pipeline.runs.records import Result, RunRecord
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.embeddings import EmbeddingFolder, Embeddings
from tl_pipeline.store.tables import METRICS


@dataclass(frozen=True)
class BestEmbeddings:
    """Those of ``encoder``, a label."""

    store: Store
    encoder: str
    artifact: Artifact

    def load(self, image_ids: Sequence[str]) -> Embeddings:
        """The embeddings of those of ``image_ids`` that have one, sorted by id.

        Raises:
            DamagedArtifact: see ``EmbeddingFolder.load``.
        """
        return concat.load(self.store, self.artifact, image_ids)

    def blocks(self, image_ids: Sequence[str]) -> Iterator[Embeddings]:
        """As ``load``, a part file at a time, so that memory stays bounded."""
        wanted, joint = set(image_ids), self.artifact
        first = joint.members[0] if isinstance(joint, ConcatEmbeddings) else joint
        for rows in EmbeddingFolder(self.store, first.key).parts().whole.values():
            if some := wanted.intersection(rows["image_id"].to_pylist()):
                wanted -= some
                yield self.load(sorted(some))


@dataclass(frozen=True)
class Neighbour:
    """The image whose embedding has the largest cosine with that of another."""

    image_id: str
    cosine: float


def of_best(store: Store, record: RunRecord) -> BestEmbeddings:
    """The embeddings of the best candidate of ``record`` that is no average.

    Raises:
        DamagedArtifact: a table of the store cannot be read.
    """
    result = next(r for r in record.results if r.role != "control" and not r.members)
    key = result.encoder_key or _encoder_key(store, result)
    members = [joint.members for joint in record.joints if joint.key == key]
    artifact = Artifact("embeddings", key, key)
    if members:
        parts = tuple(Artifact("embeddings", one, one) for one in members[0])
        artifact = ConcatEmbeddings("embeddings", key, key, parts)
    return BestEmbeddings(store, result.encoder, artifact)


def nearest(
    embeddings: BestEmbeddings, image_ids: Sequence[str], among: Sequence[str]
) -> dict[str, Neighbour]:
    """The nearest of ``among`` to each of ``image_ids``, exactly.

    Images without an embedding have none.

    Raises:
        DamagedArtifact: see ``EmbeddingFolder.load``.
    """
    queries = embeddings.load(image_ids)
    asked = _normalised(queries.vectors)
    best = np.full(len(asked), -np.inf, np.float32)
    names = np.full(len(asked), None, object)
    for block in embeddings.blocks(among) if len(asked) else ():
        cosines = asked @ _normalised(block.vectors).T
        at = cosines.argmax(axis=1)
        value = cosines[np.arange(len(asked)), at]
        better = value > best
        best[better] = value[better]
        names[better] = np.array(block.image_ids, object)[at[better]]
    return {
        image_id: Neighbour(name, float(cosine))
        for image_id, name, cosine in zip(queries.image_ids, names, best, strict=True)
        if name is not None
    }


def _normalised(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1; those of zeros stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def _encoder_key(store: Store, result: Result) -> str:
    """That of a result of a record which does not name it."""
    folder = store.path(Artifact("evaluations", result.evaluation, result.evaluation))
    return tables.read(METRICS, folder, ("encoder_key",))["encoder_key"][0].as_py()
