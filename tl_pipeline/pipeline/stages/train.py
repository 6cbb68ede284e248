"""Train: embeddings of the training rows x one head's grid -> fitted heads.

Reads the manifest and the embeddings. Writes ``heads/<key>/`` for each configuration,
which is a cached unit of its own: a wider grid trains only what is new. Only training
rows are read, so new test images train nothing. Where the source tells weights, heads
learn by them; evaluation does not know of them. A fit is a function of its key, so the
key serves as the fingerprint.
"""

import time
from dataclasses import dataclass
from functools import cached_property

from tl_pipeline import heads
from tl_pipeline.config.specs import HeadConfig, HeadSpec, SearchSpec
from tl_pipeline.data.splits import TRAIN
from tl_pipeline.encoders.concat import AnyEncoder
from tl_pipeline.heads import search
from tl_pipeline.pipeline import fits
from tl_pipeline.pipeline.manifest import Manifest, Rows
from tl_pipeline.progress import track
from tl_pipeline.runs.planning import Outcome, Step, Workspace
from tl_pipeline.store.artifacts import Artifact
from tl_pipeline.store.keys import digest

VERSION = fits.VERSION


@dataclass(frozen=True)
class Train:
    """Every configuration of ``head``, fitted on the training rows of ``manifest``."""

    at: Workspace
    manifest: Manifest
    embeddings: Artifact
    encoder: AnyEncoder
    head: HeadSpec
    search: SearchSpec
    seed: int

    @property
    def title(self) -> str:
        return f"train {self.subject}"

    @property
    def subject(self) -> str:
        """What it works on, as people read it."""
        return f"{self.head.name} on {self.manifest.named(self.encoder.label)}"

    def plan(self) -> Outcome[tuple[Artifact, ...]]:
        """Name every configuration and look which are trained already."""
        started = time.perf_counter()
        documents = {
            heads.label(config): fits.document(
                self.embeddings, self._rows, config, self.seed
            )
            for config in self._configs
        }
        keys = {label: digest(document) for label, document in documents.items()}
        why: dict[str, list[str]] = {}
        for label, document in documents.items():
            if self.at.store.find("heads", keys[label]) is None:
                said = self.at.why_not_cached("heads", self.subject, label, document)
                why.setdefault(said, []).append(label)
        step = Step(
            stage="train",
            subject=self.subject,
            cached=not why,
            reason=_reason(why, len(keys)),
            keys=keys,
            units=sum(map(len, why.values())),
            seconds=time.perf_counter() - started,
        )
        made = tuple(Artifact("heads", key, key) for key in keys.values())
        return Outcome(made, (step,))

    def run(self) -> Outcome[tuple[Artifact, ...]]:
        """Fit every configuration that is not there yet.

        Raises:
            DatasetError: fewer than two classes have an embedded training image.
            InvalidSpec: images have weights, and ``head`` cannot take them.
        """
        started = time.perf_counter()
        planned = self.plan()
        if planned.step.cached:
            return planned
        fits.check(self._rows, self.manifest.dataset)
        with track(self.title, planned.step.units) as progress:
            fits.make(
                self.at.store,
                self.embeddings,
                self._rows,
                self._configs,
                self.seed,
                progress.advance,
            )
        return planned.ran(time.perf_counter() - started)

    @cached_property
    def _rows(self) -> Rows:
        return self.manifest.encoded(self.embeddings).learned(TRAIN)

    @cached_property
    def _configs(self) -> list[HeadConfig]:
        return search.candidates(self.head, self.search, self.seed)


def _reason(why: dict[str, list[str]], total: int) -> str:
    """``why`` has the labels of the configurations to train, by the reason."""
    if not why:
        return f"{total} trained already"
    if len(why) == 1 and len(*why.values()) == total > 1:
        return f"all {total} configurations: {next(iter(why))}"
    return "; ".join(f"{', '.join(labels)}: {said}" for said, labels in why.items())
