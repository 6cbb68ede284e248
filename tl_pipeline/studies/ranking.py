"""Which encoder is worth the full pass: a quick probe, and the cost.

A sample of the training images is embedded under every encoder; the embeddings are the
ordinary ones of the store, so a later run finds them. Validation and test images are
not looked at.
"""

import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from tl_pipeline.data.sampling import Drawable, stratified
from tl_pipeline.data.splits import TRAIN, VALIDATION
from tl_pipeline.embedding.process import cores, memory
from tl_pipeline.encoders import backbones
from tl_pipeline.encoders.encoder import Encoder, sharing
from tl_pipeline.errors import DatasetError, InvalidSpec
from tl_pipeline.evaluation.intervals import paired_difference, share
from tl_pipeline.pipeline import speeds
from tl_pipeline.pipeline.manifest import Manifest
from tl_pipeline.pipeline.stages import embed
from tl_pipeline.progress import track
from tl_pipeline.runs.finetunings import Expectation
from tl_pipeline.score import Score
from tl_pipeline.store import tables
from tl_pipeline.store.embeddings import EmbeddingFolder
from tl_pipeline.studies import probe
from tl_pipeline.studies.study import Study

# Costs that differ by less are taken for equal: so much they vary by themselves. And
# so are those of a full pass that is over in as many seconds.
_SAME_COST, _SHORT = 1.1, 30.0
# Bytes that judging an encoder takes for each value of its embeddings: they are there
# in float32, a fold's share twice, and so are Gram matrices, which are no larger.
_ROOM = 24
# Rows and width of the embeddings by which this machine is timed.
_TRIED = (500, 1000)


@dataclass(frozen=True)
class Cost:
    """What an encoder costs on this machine.

    ``seconds_per_image`` was measured on the sample just now, or, if ``remembered``,
    when this encoder last embedded images, perhaps those of another dataset; it is None
    where nothing was ever measured. ``missing`` of the dataset's ``images`` still have
    no embedding.
    """

    seconds_per_image: float | None
    remembered: bool
    images: int
    missing: int

    @property
    def seconds(self) -> float | None:
        """What all images of the dataset take."""
        each = self.seconds_per_image
        return None if each is None else each * self.images


@dataclass(frozen=True)
class Ranked:
    """One encoder; ``behind`` is its accuracy minus that of the best, None for that.

    ``bytes_per_image`` is what an embedding takes in the store, without its id.
    ``published`` is the score that named weights are published with, "" where none is:
    an order of networks that needs no images.
    """

    encoder: str
    key: str
    width: int
    bytes_per_image: int
    probe: Score
    behind: Score | None
    cost: Cost
    published: str = ""

    @property
    def tied(self) -> bool:
        """Whether it cannot be told apart from the best; the best is tied with itself.

        The interval is one of 95 % for this pair alone.
        """
        return self.behind is None or (self.behind.high or 0.0) >= 0

    @property
    def close(self) -> bool:
        """Whether it is tied with the best, and within one standard error of it."""
        return self.tied and (self.behind is None or self.behind.close)


@dataclass(frozen=True)
class Ranking:
    """Encoders from the best to the worst in the probe.

    ``probed`` rows of ``sampled`` images are judged: classes with one image, or one
    group, are left out. ``validation`` images are not looked at. ``grouped``
    tells that whole groups were judged at a time.
    """

    dataset: str
    images: int
    trained: int
    sampled: int
    probed: int
    classes: int
    validation: int
    grouped: bool
    rows: tuple[Ranked, ...]

    @property
    def pick(self) -> Ranked:
        """The cheapest within one standard error of the best.

        Among those of about that cost, the first in the ranking; where a full pass is
        short, cost does not count.
        """
        close = [row for row in self.rows if row.close]
        enough = max(_SHORT, _SAME_COST * min(map(_seconds, close)))
        return next(row for row in close if _seconds(row) <= enough)

    @property
    def finetuning(self) -> Expectation:
        """What fine-tuning the one that was picked may bring."""
        return Expectation(
            encoder=self.pick.encoder,
            frozen=self.pick.probe.value,
            by=f"in the probe of {self.probed:,}",
            images=self.trained,
            classes=self.classes,
            validation=self.validation,
        )


def _seconds(row: Ranked) -> float:
    return math.inf if row.cost.seconds is None else row.cost.seconds


class _ProbeResult(NamedTuple):
    encoder: Encoder
    width: int
    right: np.ndarray
    cost: Cost


@dataclass(frozen=True)
class Sample:
    """``drawn`` of the training images ``trained``, and what all ``images`` are.

    ``images`` are pairs of id and uri, ``validation`` of them are of that split.
    """

    images: Sequence[tuple[str, str]]
    trained: Sequence[Drawable]
    drawn: Sequence[Drawable]
    validation: int

    def part(self, size: int) -> "Sample":
        """The same with ``size`` images drawn, or all."""
        return replace(self, drawn=stratified(self.trained, size))

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Id and uri of what was drawn."""
        ids = {image.image_id for image in self.drawn}
        return [image for image in self.images if image[0] in ids]


def draw(manifest: Manifest, size: int) -> Sample:
    """``size`` training images of ``manifest``, or all, but the number of others."""
    names = ("image_id", "label", "group", "split")
    trained = [
        Drawable(image_id, label, group or manifest.clusters.get(image_id))
        for image_id, label, group, split in tables.values(manifest.table, *names)
        if split == TRAIN
    ]
    validation = tables.counts(manifest.table["split"]).get(VALIDATION, 0)
    drawn = stratified(trained, size)
    return Sample(embed.pairs(manifest.images), trained, drawn, validation)


def rank(study: Study, encoders: Sequence[Encoder], sample: Sample) -> Ranking:
    """Embed ``sample`` under each of ``encoders``, and judge them.

    An encoder that stands there twice is ranked once. Those that share a network share
    its passes. All are judged on the same rows: an image that one of them refuses is
    left out for all.

    Raises:
        InvalidSpec: a sample too small for its classes.
        DatasetError: no two classes that could be judged.
        WeightsError: a network cannot be loaded.
    """
    wanted = {encoder.key: encoder for encoder in encoders}
    costs: dict[str, Cost] = {}
    for together in sharing([*wanted.values()]):
        costs |= _costs(study, together, sample)
    refused = set[str]().union(
        *(EmbeddingFolder(study.at.store, key).refused() for key in wanted)
    )
    usable = [image for image in sample.drawn if image.image_id not in refused]
    kept = probe.probed([i.label for i in usable], [i.unit for i in usable])
    judged = [usable[row] for row in kept]
    _check(study, judged, sample)
    cut = probe.divide([i.label for i in judged], [i.unit for i in judged])
    found = _probed(study, [*wanted.values()], judged, cut, costs)
    return Ranking(
        dataset=study.dataset.name,
        images=len(sample.images),
        trained=len(sample.trained),
        sampled=len(sample.drawn),
        probed=len(judged),
        classes=len({image.label for image in judged}),
        validation=sample.validation,
        grouped=cut.grouped,
        rows=_sorted(found, cut, study.seed),
    )


def judging_seconds(widths: Sequence[int], rows: int) -> list[float]:
    """What judging embeddings of ``widths`` for ``rows`` images takes on this machine.

    By the multiplications, and by how long those of some random embeddings take now.
    """
    if not widths:
        return []
    chance = np.random.default_rng(0)
    tried = chance.normal(size=_TRIED).astype(np.float32)
    cut = probe.divide(
        [str(row % 10) for row in range(len(tried))], [*map(str, range(len(tried)))]
    )
    took = math.inf
    with threadpool_limits(1):
        for _ in range(2):  # the first time libraries are loaded
            began = time.perf_counter()
            probe.judge(tried, cut)
            took = min(took, time.perf_counter() - began)
    each = took / _multiplications(*_TRIED) / min(cores(), len(widths))
    return [each * _multiplications(rows, width) for width in widths]


def _multiplications(rows: int, width: int) -> float:
    """About those of the Gram matrices of all folds, and of solving with them.

    What is done to each value, as standardising, was measured to take as long as some
    thousands.
    """
    smaller = min(rows, width)
    return rows * width * (4 * smaller + 2500) + smaller**3


def _costs(
    study: Study, together: Sequence[Encoder], sample: Sample
) -> dict[str, Cost]:
    """Embed what is missing of ``sample`` in one pass, and tell what an image costs.

    That is the cost of one of the encoders alone, whose network does nearly all of it.
    """
    folders = [EmbeddingFolder(study.at.store, encoder.key) for encoder in together]
    drawn, measured = sample.pairs, None
    if any(embed.pending(folder, drawn) for folder in folders):
        done = embed.fill(study.at.store, study.dataset, together, drawn)
        measured = next((one.speed for one in done.values() if one.speed), None)
    known = map(speeds.known_speed, folders)
    speed = measured or next((one for one in known if one), None)
    return {
        encoder.key: Cost(
            seconds_per_image=1 / speed.images_per_second if speed else None,
            remembered=measured is None,
            images=len(sample.images),
            missing=len(embed.pending(folder, sample.images)),
        )
        for encoder, folder in zip(together, folders, strict=True)
    }


def _check(study: Study, judged: Sequence[Drawable], sample: Sample) -> None:
    classes = len({image.label for image in judged})
    if classes > 1:
        return
    said = (
        f"{study.dataset.name}: among {len(sample.drawn):,} sampled training images "
        f"{classes} classes have two images (or groups) that could be embedded; a "
        "probe needs two such classes"
    )
    if len(sample.drawn) < len(sample.trained):
        raise InvalidSpec(f"{said}. Give more --images")
    raise DatasetError(f"{said}. Add images, or see the quarantine table")


def _probed(
    study: Study,
    encoders: Sequence[Encoder],
    judged: Sequence[Drawable],
    cut: probe.ProbeSplit,
    costs: Mapping[str, Cost],
) -> list[_ProbeResult]:
    """Judge each of ``encoders`` on a core of its own, as many at once as fit.

    Threads that share one decomposition wait for each other longer than they work.
    """
    folders = [EmbeddingFolder(study.at.store, encoder.key) for encoder in encoders]
    known = filter(None, map(speeds.known_speed, folders))
    widest = max((speed.width for speed in known), default=1)
    room = memory() // (2 * _ROOM * widest * len(judged))
    number = max(1, min(cores(), len(encoders), room))
    with (
        track("probe", len(encoders)) as progress,
        threadpool_limits(1 if number > 1 else None),
        ThreadPoolExecutor(number) as pool,
    ):

        def one(encoder: Encoder) -> _ProbeResult:
            found = _probe(study, encoder, judged, cut, costs[encoder.key])
            progress.advance()
            return found

        return [*pool.map(one, encoders)]


def _probe(
    study: Study,
    encoder: Encoder,
    judged: Sequence[Drawable],
    cut: probe.ProbeSplit,
    cost: Cost,
) -> _ProbeResult:
    ids = [image.image_id for image in judged]
    found = EmbeddingFolder(study.at.store, encoder.key).load(ids)
    assert found.image_ids == ids  # noqa: S101 - both are sorted, all are embedded
    right = probe.judge(found.vectors, cut)
    return _ProbeResult(encoder, found.vectors.shape[1], right, cost)


def _sorted(
    found: Sequence[_ProbeResult], cut: probe.ProbeSplit, seed: int
) -> tuple[Ranked, ...]:
    """By accuracy in the probe; of equal ones the first that was asked for."""
    order = sorted(found, key=lambda f: -f.right.sum())
    best = order[0]
    return tuple(
        Ranked(
            encoder=one.encoder.label,
            key=one.encoder.key,
            width=one.width,
            bytes_per_image=one.encoder.value_bytes * one.width,
            probe=share(one.right, cut.units),
            behind=None
            if one is best
            else paired_difference(one.right, best.right, cut.units, seed),
            cost=one.cost,
            published=_published(one.encoder.backbone, one.encoder.weights.name),
        )
        for one in order
    )


@cache
def _published(backbone: str, weights: str) -> str:
    named = backbones.published(backbones.find_backbone(backbone))
    return next((one.scored for one in named if one.name == weights), "")
