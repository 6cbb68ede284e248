"""A study with every name resolved: what it embeds, and its manifest."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from tl_pipeline.config import catalog
from tl_pipeline.config.datasets import DatasetSpec
from tl_pipeline.config.encoder_specs import BackboneSpec, EncoderSpec
from tl_pipeline.encoders import concat
from tl_pipeline.encoders.concat import AnyEncoder
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.pipeline.manifest import Manifest
from tl_pipeline.pipeline.stages.audit import Audit
from tl_pipeline.pipeline.stages.embed import Embed
from tl_pipeline.pipeline.stages.ingest import Ingest
from tl_pipeline.pipeline.work import check_labelled, check_modality, resolve
from tl_pipeline.runs.planning import Workspace
from tl_pipeline.store.artifacts import Store


@dataclass(frozen=True)
class Study:
    """What a command needs that embeds and is no run.

    ``duplicate_encoder`` is set where near duplicates are to be kept together.
    """

    at: Workspace
    dataset: DatasetSpec
    encoders: list[AnyEncoder]
    seed: int
    verify: bool = False
    duplicate_encoder: AnyEncoder | None = None

    @property
    def singles(self) -> list[Encoder]:
        """The encoders, members of concatenations among them, each once."""
        return [*concat.unique_members(self.encoders)]

    def ingested(self) -> Manifest:
        """The manifest of the dataset, with the splits that a run has."""
        manifest = Ingest(self.at, self.dataset, self.verify).run().output
        return self.kept_together(manifest)

    def kept_together(self, manifest: Manifest) -> Manifest:
        """``manifest`` with near duplicates in one split, if a run has them so.

        All images are embedded under the encoder that compares them.
        """
        encoder = self.duplicate_encoder
        if encoder is None:
            return manifest
        members = concat.members_of(encoder)
        embedded = Embed(self.at, self.dataset, manifest, members).run().output
        embeddings = concat.embeddings_of(embedded, encoder)
        audit = Audit(self.at, self.dataset, manifest, embeddings, encoder)
        return audit.run().output

    def in_use(self) -> AbstractContextManager[None]:
        """Keep the embeddings that it needs from being collected in the block."""
        used = [*self.encoders]
        used += [self.duplicate_encoder] if self.duplicate_encoder else []
        keys = [encoder.key for encoder in concat.unique_members(used)]
        return self.at.store.in_use(keys)


def prepare(
    dataset: str,
    asked: Sequence[BackboneSpec],
    store: Store,
    *,
    catalog_file: Path | None,
    seed: int,
    verify: bool,
) -> Study:
    """Resolve the names of a study; weights are downloaded.

    Raises:
        CatalogError, UnknownName, InvalidSpec, WeightsError: see ``work.prepare``.
    """
    entry = catalog.find(dataset, catalog_file)
    check_labelled(entry)
    near = entry.near_duplicates
    together = near.action == "keep_together"
    wanted = [*asked]
    if together:
        compares = EncoderSpec.parse(near.backbone) if near.backbone else asked[0]
        wanted.append(compares)
    check_modality(entry, wanted)
    found = resolve(wanted, store, how=entry.pixels, verify=verify, download=True)
    duplicates = found.pop() if together else None
    return Study(Workspace(store), entry, found, seed, verify, duplicates)
