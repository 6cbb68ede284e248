"""How heads do that learn from a few images of each class: n draws of k.

Training images are sampled, validation images score; test is not looked at. The
embeddings are the ordinary ones, and each draw of each configuration is a trial: asking
for more draws or another k computes only what is new.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tl_pipeline import heads
from tl_pipeline.config.specs import HeadSpec
from tl_pipeline.data.splits import TRAIN, VALIDATION
from tl_pipeline.encoders import concat
from tl_pipeline.encoders.concat import AnyEncoder
from tl_pipeline.errors import DatasetError
from tl_pipeline.evaluation.intervals import share_of_draws
from tl_pipeline.heads.search import ranked
from tl_pipeline.pipeline import fits
from tl_pipeline.pipeline.manifest import Rows
from tl_pipeline.pipeline.stages.embed import Embed
from tl_pipeline.pipeline.trials import Trials
from tl_pipeline.pipeline.work import check_places, check_weights
from tl_pipeline.progress import track
from tl_pipeline.studies import learning_curve
from tl_pipeline.studies.study import Study

_TIMES = (2, 4)


@dataclass(frozen=True)
class FewShot:
    """One head on one encoder with ``shots`` images of each class.

    ``accuracy`` is the mean over ``draws`` of the configuration that is the best of
    ``tried`` (on the same validation images: the more were tried, the more it
    flatters); ``low`` and ``high`` bound its 95 % interval for another draw and other
    images (groups, where there are some), None for one draw. ``images`` is how many a
    draw has at most.
    """

    encoder: str
    head: str
    tried: int
    shots: int
    draws: int
    images: int
    accuracy: float
    low: float | None
    high: float | None
    deviation: float | None
    log_loss: float


@dataclass(frozen=True)
class Outlook:
    """The accuracy that ``times`` as many images as the most would give."""

    encoder: str
    head: str
    times: int
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class FewShots:
    """All rows, and how many of the ``classes`` have fewer images than ``most``.

    ``outlooks`` are of curves that can be continued: see ``learning_curve``.
    """

    dataset: str
    classes: int
    most: int
    short: int
    validation: int
    rows: tuple[FewShot, ...]
    outlooks: tuple[Outlook, ...]


def few_shots(
    study: Study,
    wanted: Sequence[HeadSpec],
    shots: Sequence[int],
    draws: int,
) -> FewShots:
    """Learn ``wanted`` complete heads from each of ``shots``, ``draws`` times.

    All encoders and heads learn from the same draws; with more shots a draw holds what
    it holds with fewer.

    Raises:
        DatasetError: fewer than two classes have a training image, or no image is in
            validation.
        WeightsError: a network cannot be loaded.
    """
    encoders, dataset = study.encoders, study.dataset
    check_weights(dataset, wanted)
    check_places(encoders, wanted)
    manifest = study.ingested()
    flat = concat.unique_members(encoders)
    embedded = Embed(study.at, dataset, manifest, flat).run().output
    found, outlooks = list[FewShot](), list[Outlook]()
    total = len(encoders) * len(wanted) * len(shots) * draws
    sizes: dict[str, int] = {}
    scored = 0
    with track("few-shot", total) as progress:
        for encoder in encoders:
            made = concat.embeddings_of(embedded, encoder)
            images = manifest.encoded(made)
            held = images.held_out(VALIDATION)
            if not len(held):
                raise DatasetError(
                    f"{dataset.name}: no validation image could be embedded, "
                    "and they are what scores; see the quarantine table"
                )
            rows = images.learned(TRAIN)
            fits.check(rows, dataset.name)
            sizes, scored = rows.classes, len(held)
            trials = Trials(
                study.at.store, dataset.name, made, study.seed, held, folds=None
            )
            for head in wanted:
                curve: list[tuple[FewShot, np.ndarray]] = []
                for k in shots:
                    parts = [sampled(rows, k, study.seed, at) for at in range(draws)]
                    curve.append(_row(trials, encoder, head, k, parts))
                    progress.advance(draws)
                found += [row for row, _ in curve]
                outlooks += _outlooks(curve, trials.units_of(rows), study.seed)
    return FewShots(
        dataset=dataset.name,
        classes=len(sizes),
        most=max(shots),
        short=sum(size < max(shots) for size in sizes.values()),
        validation=scored,
        rows=tuple(found),
        outlooks=tuple(outlooks),
    )


def sampled(rows: Rows, shots: int, seed: int, number: int) -> Rows:
    """``shots`` images of each class, or all that it has; the draw ``number``.

    Of different groups, as long as there are some.
    """
    ids, labels, named = rows.ids, rows.labels.tolist(), rows.named
    order = np.random.default_rng([seed, number]).permutation(len(ids))
    classes: dict[str, list[int]] = defaultdict(list)
    for at in order:
        classes[labels[at]].append(at)
    chosen: list[str] = []
    for members in classes.values():
        turns: dict[str, int] = defaultdict(int)
        ordered = []
        for place, at in enumerate(members):
            unit = named[at] or ids[at]
            ordered.append((turns[unit], place, ids[at]))
            turns[unit] += 1
        chosen += [image_id for _, _, image_id in sorted(ordered)[:shots]]
    return rows.part(chosen)


def _row(
    trials: Trials,
    encoder: AnyEncoder,
    head: HeadSpec,
    shots: int,
    parts: Sequence[Rows],
) -> tuple[FewShot, np.ndarray]:
    """The row, and whether each validation image is right in each draw."""
    configs = list(heads.grid(head))
    tried = [trials.of(configs, part) for part in parts]  # (draws, configurations)
    accuracy = np.array([[one.accuracy for one in draw] for draw in tried])
    loss = np.array([[one.log_loss for one in draw] for draw in tried]).mean(axis=0)
    means = accuracy.mean(axis=0)
    best = ranked(list(zip(means.tolist(), loss.tolist(), strict=True)))[0]
    number = len(parts)
    right = np.stack([draw[best].right for draw in tried])
    score = share_of_draws(right, trials.units_of(parts[0]))
    row = FewShot(
        encoder=encoder.label,
        head=heads.label(configs[best]),
        tried=len(configs),
        shots=shots,
        draws=number,
        images=max(map(len, parts)),
        accuracy=float(means[best]),
        low=score.low,
        high=score.high,
        deviation=float(accuracy[:, best].std(ddof=1)) if number > 1 else None,
        log_loss=float(loss[best]),
    )
    return row, right


def _outlooks(
    curve: Sequence[tuple[FewShot, np.ndarray]], units: np.ndarray, seed: int
) -> Iterator[Outlook]:
    """What two and four times as many images as at its end would give."""
    last = curve[-1][0]
    found = learning_curve.expected(
        [row.images for row, _ in curve],
        [right for _, right in curve],
        units,
        [last.images * times for times in _TIMES],
        seed,
    )
    for times, score in zip(_TIMES, found or (), strict=False):
        yield Outlook(last.encoder, last.head, times, *score)
