"""Tune as the first stage of a run: which encoder it goes on with.

What was chosen stands in the record of the run, and later runs keep it: embeddings of
all images hang on it. It is chosen anew when there are a quarter more, or fewer,
training images, and then gives way only to an encoder that is better by more than the
interval of their difference.
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from tl_pipeline.config.encoder_specs import EncoderSpec
from tl_pipeline.config.specs import TuneSpec
from tl_pipeline.encoders.encoder import Encoder, sharing
from tl_pipeline.errors import InvalidSpec
from tl_pipeline.pipeline import wiring
from tl_pipeline.pipeline import work as resolving
from tl_pipeline.pipeline.manifest import Manifest
from tl_pipeline.pipeline.stages.ingest import Ingest
from tl_pipeline.pipeline.wiring import Execute
from tl_pipeline.pipeline.work import Work
from tl_pipeline.runs import records
from tl_pipeline.runs.planning import Outcome, Step
from tl_pipeline.runs.records import TunedEncoder, Tuning
from tl_pipeline.store.keys import digest
from tl_pipeline.studies import ranking, tuning
from tl_pipeline.studies.ranking import Sample
from tl_pipeline.studies.study import Study
from tl_pipeline.studies.tuning import Grid, Tuned

# From so many times the training images on, or as much fewer, it is chosen anew.
GROWN = 1.25


@dataclass(frozen=True)
class Tune:
    """Choose the encoder of the run ``work``; None while planning what is not chosen.

    ``manifest`` is what ingest gave.

    Raises:
        InvalidSpec, DatasetError, WeightsError: see ``tuning.tune``.
    """

    work: Work
    how: TuneSpec
    manifest: Manifest

    @property
    def title(self) -> str:
        """See ``Stage``."""
        return f"tune {self.work.dataset.name}"

    def plan(self) -> Outcome[Tuning | None]:
        """Look whether what was chosen is kept; say what would be compared if not."""
        # what is to be kept together is not known yet
        sample = ranking.draw(self.manifest, self.how.images)
        looked = self._look(sample)
        if looked.step.cached:
            return looked
        with self.work.at.store.overlay() as overlay:
            study = self._study(replace(self.work.at, store=overlay))
            grid = self._grid(study)
            seconds = tuning.known_seconds(study, grid.encoders, sample)
        step = replace(
            looked.step,
            reason=f"{looked.step.reason}: {_said(grid, sample)}. What follows is "
            "planned for the backbones as they are asked for",
            units=len(grid.candidates),
            estimated_seconds=seconds,
        )
        return Outcome(None, (step,))

    def run(self) -> Outcome[Tuning | None]:
        """Keep what was chosen, or embed a sample under all candidates and judge."""
        began = datetime.now(UTC)
        study = self._study(self.work.at)
        sample = ranking.draw(study.kept_together(self.manifest), self.how.images)
        looked = self._look(sample)
        if looked.step.cached:
            return looked
        grid = self._grid(study)
        study = replace(study, encoders=grid.encoders)
        stays = self._last.key if self._last else None
        with study.in_use():
            found = tuning.tune(study, grid.encoders, sample, self.how.minutes, stays)
        chosen = self._chosen(grid, found)
        reason = (
            f"{looked.step.reason}: {_said(grid, sample)}; {chosen.label} is chosen"
        )
        seconds = (datetime.now(UTC) - began).total_seconds()
        units = len(grid.candidates)
        return replace(looked, output=chosen).ran(seconds, reason=reason, units=units)

    @cached_property
    def _asked(self) -> list[tuple[EncoderSpec, Encoder]]:
        specs = tuning.check(self.work.spec.backbones)
        found = [e for e, _ in self.work.heads if not e.control]
        singles = [e for e in found if isinstance(e, Encoder)]
        return list(zip(specs, singles, strict=True))

    @cached_property
    def _question(self) -> str:
        how = self.how.model_dump(mode="json")
        return digest([[encoder.key for _, encoder in self._asked], how])

    @cached_property
    def _last(self) -> Tuning | None:
        store, name = self.work.at.store, self.work.dataset.name
        return records.last_tuning(store, name, self._question)

    def _study(self, at: Any) -> Study:
        work = self.work
        together = work.dataset.near_duplicates.action == "keep_together"
        return Study(
            at,
            work.dataset,
            [encoder for _, encoder in self._asked],
            work.spec.seed,
            work.verify,
            work.duplicate_encoder if together else None,
        )

    def _grid(self, study: Study) -> Grid:
        specs, encoders = zip(*self._asked, strict=True)
        return tuning.grid(specs, encoders, self.how, study)

    def _look(self, sample: Sample) -> Outcome[Tuning | None]:
        """Whether the last choice is kept, and why not."""
        last, now = self._last, len(sample.trained)
        kept = last is not None and last.trained / GROWN < now < last.trained * GROWN
        if last is None:
            reason = "nothing is chosen yet"
        elif kept:
            reason = (
                f"{last.label} is kept, chosen on {last.chosen:%Y-%m-%d} from "
                f"{last.trained:,} training images; now {now:,}"
            )
        else:
            reason = f"training images: {last.trained:,} -> {now:,}"
        step = Step("tune", self.work.dataset.name, kept, reason, keys={})
        return Outcome(last if kept else None, (step,))

    def _chosen(self, grid: Grid, found: Tuned) -> Tuning:
        ranked = found.ranking
        stays = self._last and next(
            (row for row in ranked.rows if row.key == self._last.key), None
        )
        pick = stays if stays and stays.tied else ranked.pick
        return Tuning(
            question=self._question,
            spec=grid.candidates[pick.key].spec.short(),
            key=pick.key,
            chosen=datetime.now(UTC),
            trained=ranked.trained,
            sampled=ranked.sampled,
            candidates=[
                TunedEncoder(
                    key=row.key,
                    encoder=row.encoder,
                    probe=row.probe,
                    behind=row.behind,
                    seconds_per_image=row.cost.seconds_per_image,
                )
                for row in ranked.rows
            ],
            dropped=found.dropped,
            unaffordable=found.unaffordable,
        )


def check(work: Work) -> None:
    """Refuse a run that cannot be tuned; nothing is computed.

    Raises:
        InvalidSpec: backbones that are several networks, or take no images; or a split
            that would hang on the choice.
    """
    if work.spec.tune is None:
        return
    tuning.check(work.spec.backbones)
    near = work.dataset.near_duplicates
    if near.action == "keep_together" and not near.backbone:
        raise InvalidSpec(
            f"{work.dataset.name}: the split of images that are kept together would "
            "hang on the encoder that tune chooses. Name the one that compares them: "
            "near_duplicates: {action: keep_together, backbone: NAME}"
        )
    if work.dataset.modality != "image":
        raise InvalidSpec(
            f"{work.dataset.name} holds {work.dataset.modality}s: there is no side to "
            "tune; run without tune"
        )


def tuned(
    work: Work,
    execute: Execute,
    *,
    catalog_file: Path | None,
    download: bool,
) -> Work:
    """``work`` with the encoder that is chosen, if it asks for that.

    Ingest and tune are carried out by ``execute``.

    Raises:
        InvalidSpec, DatasetError, WeightsError: see ``check``, ``Ingest`` and ``Tune``.
    """
    check(work)
    if work.spec.tune is None:
        return work
    steps: list[Step] = []
    with wiring.keeping_refused(work, steps):
        ingested = execute(Ingest(work.at, work.dataset, work.verify))
        steps += ingested.steps
        tuned = execute(Tune(work, work.spec.tune, ingested.output))
        steps += tuned.steps
    chosen: Tuning | None = tuned.output
    known = {"ingested": ingested.output, "before": tuple(steps)}
    if chosen is None:  # while planning
        return replace(work, **known)
    backbones = (EncoderSpec.parse(chosen.spec),)
    found = resolving.prepare(
        work.spec.model_copy(update={"backbones": backbones}),
        work.at.store,
        catalog_file=catalog_file,
        verify=work.verify,
        download=download,
    )
    return replace(found, tuning=chosen, **known)


def _said(grid: Grid, sample: Sample) -> str:
    passes = len(sharing(grid.encoders))
    return (
        f"{len(grid.candidates)} candidates in {passes} passes over "
        f"{len(sample.drawn):,} of {len(sample.trained):,} training images"
    )
