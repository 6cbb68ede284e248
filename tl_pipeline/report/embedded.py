"""The stored embeddings that a page looks into: those of the best single encoder."""

from collections.abc import Sequence
from dataclasses import dataclass

from tl_pipeline.encoders import concat
from tl_pipeline.encoders.concat import ConcatEmbeddings
from tl_pipeline.registry import nearest
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

    @property
    def _keys(self) -> list[str]:
        if isinstance(self.artifact, ConcatEmbeddings):
            return [member.key for member in self.artifact.members]
        return [self.artifact.key]

    def nearest(
        self, image_ids: Sequence[str], among: Sequence[str]
    ) -> dict[str, "Neighbour"]:
        """The nearest of ``among`` to each of ``image_ids``, exactly.

        Images without an embedding have none.

        Raises:
            DamagedArtifact: see ``EmbeddingFolder.load``.
        """
        ids = self.load(image_ids).image_ids
        if not ids:
            return {}
        vectors = {
            key: EmbeddingFolder(self.store, key).load(ids).vectors
            for key in self._keys
        }
        found = nearest.nearest(self.store, vectors, among)
        return {
            image_id: Neighbour(name, cosine)
            for image_id, name, cosine in zip(
                ids, found.ids, found.similarities, strict=True
            )
            if name is not None and cosine is not None
        }


@dataclass(frozen=True)
class Neighbour:
    """The image whose embedding has the largest cosine with that of another.

    Under several encoders it is the mean of their cosines.
    """

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


def _encoder_key(store: Store, result: Result) -> str:
    """That of a result of a record which does not name it."""
    folder = store.path(Artifact("evaluations", result.evaluation, result.evaluation))
    return tables.read(METRICS, folder, ("encoder_key",))["encoder_key"][0].as_py()
