"""Which side, fit and pooling suit a dataset: a grid, ranked in rounds.

Scores and costs are those of ``ranking``. The first round looks at a part of the sample
and lets those go on that cannot be told apart from the best, at most half of them.
"""

import time
from collections.abc import Mapping, Sequence
from itertools import product
from typing import NamedTuple

from tl_pipeline import progress
from tl_pipeline.config.encoder_specs import BackboneSpec, EncoderSpec, Fit, Pool
from tl_pipeline.config.specs import TuneSpec
from tl_pipeline.encoders import resolution
from tl_pipeline.encoders.encoder import Encoder, sharing
from tl_pipeline.errors import InvalidSpec
from tl_pipeline.inputs.images import Preprocess
from tl_pipeline.pipeline import speeds, work
from tl_pipeline.pipeline.stages import embed
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder
from tl_pipeline.studies import ranking
from tl_pipeline.studies.ranking import Ranking, Sample
from tl_pipeline.studies.study import Study

# None: the usual one of the layer, none of one that gives a vector.
POOLS: tuple[Pool | None, ...] = (None, "grid2", "grid3", "avg+max")
# Smaller inputs than a network's own that are tried unless others are named.
_SIDES = (64, 96, 128, 160, 192)
# The part of the sample that the first round sees, and the part of candidates that may
# go on.
_FIRST, _GO_ON = 4, 2
_FEW = 4  # candidates that need no first round, or go on if the others are behind


class Candidate(NamedTuple):
    """An encoder that is compared, and how it is written."""

    spec: EncoderSpec
    encoder: Encoder


class Grid(NamedTuple):
    """What is compared, by encoder key; and what is not, by the reason."""

    candidates: dict[str, Candidate]
    refused: dict[str, list[str]]

    @property
    def encoders(self) -> list[Encoder]:
        """Each encoder once."""
        return [candidate.encoder for candidate in self.candidates.values()]


class Tuned(NamedTuple):
    """The last round, and by label the encoders that did not reach it.

    Those that were ``dropped`` were behind in the first round; ``unaffordable`` ones
    do not fit into the budget.
    """

    ranking: Ranking
    dropped: list[str]
    unaffordable: list[str]


def check(asked: Sequence[BackboneSpec]) -> list[EncoderSpec]:
    """``asked``, each of which is one network.

    Raises:
        InvalidSpec: one is several.
    """
    single = [spec for spec in asked if isinstance(spec, EncoderSpec)]
    if len(single) < len(asked):
        raise InvalidSpec(
            "tune chooses one encoder, and a concatenation is several: name each as a "
            "backbone of its own, or run without tune"
        )
    return single


def grid(
    asked: Sequence[EncoderSpec],
    encoders: Sequence[Encoder],
    how: TuneSpec,
    study: Study,
) -> Grid:
    """Each of ``asked`` with each side, fit and pool, its own among them.

    ``encoders`` are what was ``asked``, resolved. All others compute in the precision
    of theirs. Without sides those up to the network's own are tried, without pools all
    that suit a map, and without fits what the encoder names, or its own and ``squash``.

    Raises:
        InvalidSpec: one of ``asked`` takes no images.
    """
    found: dict[str, Candidate] = {}
    refused: dict[str, list[str]] = {}
    for spec, own in zip(asked, encoders, strict=True):
        if not isinstance(own.preprocess, Preprocess):
            raise InvalidSpec(
                f"{spec.short()} takes no images: there is no side to tune"
            )
        usual = own.preprocess.crop
        found.setdefault(own.key, Candidate(spec, own))
        sides = how.side or [*(side for side in _SIDES if side < usual), usual]
        fits = how.fit or ((spec.fit,) if spec.fit else (None, "squash"))
        for side, fit, pool in product(sides, fits, how.pool or POOLS):
            one = _with(spec, own, side, fit, pool)
            try:
                (made,) = work.resolve([one], study.at.store, how=study.dataset.pixels)
            except InvalidSpec as fault:
                refused.setdefault(str(fault), []).append(one.short())
                continue
            assert isinstance(made, Encoder)  # noqa: S101 - of one spec
            found.setdefault(made.key, Candidate(one, made))
    return Grid(found, refused)


def tune(
    study: Study,
    encoders: Sequence[Encoder],
    sample: Sample,
    minutes: float | None = None,
    stays: str | None = None,
) -> Tuned:
    """Rank ``encoders`` on ``sample``, in two rounds if they are many.

    How long it takes is told beforehand; what does not fit into ``minutes`` is left
    out. The encoder with the key ``stays`` is in all rounds.

    Raises:
        InvalidSpec: not one of them fits into ``minutes``; or see ``ranking.rank``.
        DatasetError, WeightsError: see ``ranking.rank``.
    """
    began = time.monotonic()
    first = _first(sample)
    passes = sharing(encoders)
    seconds = _estimated(study, passes, sample, first)
    left = None if minutes is None else 60 * minutes - (time.monotonic() - began)
    kept, unaffordable = _affordable(passes, seconds, left, stays)
    if not kept:
        raise InvalidSpec(
            f"minutes={minutes:g}: not one candidate fits into it; the cheapest takes "
            f"about {min(seconds.values()) / 60:.2g} min. Give more minutes, or fewer "
            "images"
        )
    whole = sum(seconds[together[0].key] for together in kept)
    number = sum(map(len, kept))
    progress.notice(
        f"tune: {number} candidates, at most {len(kept)} passes over "
        f"{len(sample.drawn):,} images, about {whole / 60:.1f} min"
    )
    within = [encoder for together in kept for encoder in together]
    out = [encoder.label for encoder in unaffordable]
    if len(within) <= _FEW:
        return Tuned(ranking.rank(study, within, sample), [], out)
    early = ranking.rank(study, within, first)
    best = early.rows[: -(-len(early.rows) // _GO_ON)]
    ahead = {row.key for at, row in enumerate(best) if row.tied or at < _FEW} | {stays}
    dropped = [row.encoder for row in early.rows if row.key not in ahead]
    on = [encoder for encoder in within if encoder.key in ahead]
    return Tuned(ranking.rank(study, on, sample), dropped, out)


def known_seconds(
    study: Study, encoders: Sequence[Encoder], sample: Sample
) -> float | None:
    """What ``tune`` takes at most, if all of its networks were timed before."""
    passes = sharing(encoders)
    timed = {_network(one) for one in passes if _speed(study.at.store, one)}
    if timed < {_network(one) for one in passes}:
        return None
    return sum(_estimated(study, passes, sample, _first(sample)).values())


def _first(sample: Sample) -> Sample:
    """What the first of two rounds looks at."""
    return sample.part(max(1, len(sample.drawn) // _FIRST))


def _estimated(
    study: Study, passes: Sequence[Sequence[Encoder]], sample: Sample, first: Sample
) -> dict[str, float]:
    """What each pass over ``sample`` takes in seconds, by the key of its first encoder.

    That is embedding and judging. By the speed that is remembered; of a network that
    was never timed, the pass of the fewest pixels is timed on ``first``, and the others
    take as much a pixel.
    """
    speeds: dict[str, float] = {}
    for network in {_network(together) for together in passes}:
        own = sorted((one for one in passes if _network(one) == network), key=_pixels)
        known = {one[0].key: _speed(study.at.store, one) for one in own}
        if not any(known.values()):
            embed.fill(study.at.store, study.dataset, own[0], first.pairs)
            known[own[0][0].key] = _speed(study.at.store, own[0])
        timed = [(one, each) for one in own if (each := known[one[0].key])]
        for together in own:
            # of several, the nearest in size
            one, each = min(timed, key=lambda t: abs(_pixels(t[0]) - _pixels(together)))
            speeds[together[0].key] = each * _pixels(together) / _pixels(one)
    judging = _judging(study, passes, sample, first)
    return {
        together[0].key: sum(judging[e.key] for e in together)
        + speeds[together[0].key]
        * max(
            len(embed.pending(EmbeddingFolder(study.at.store, e.key), sample.pairs))
            for e in together
        )
        for together in passes
    }


def _judging(
    study: Study, passes: Sequence[Sequence[Encoder]], sample: Sample, first: Sample
) -> dict[str, float]:
    """What judging each encoder takes in all rounds, in seconds, by its key.

    Which of many go on is not known yet: each is charged a part of the last round.
    """
    encoders = [encoder for together in passes for encoder in together]
    widths = [resolution.width(one, study.at.store) or 1 for one in encoders]
    last = ranking.judging_seconds(widths, len(sample.drawn))
    if len(encoders) > _FEW:
        early = ranking.judging_seconds(widths, len(first.drawn))
        last = [a + b / _GO_ON for a, b in zip(early, last, strict=True)]
    return dict(zip([encoder.key for encoder in encoders], last, strict=True))


def _affordable(
    passes: Sequence[list[Encoder]],
    seconds: Mapping[str, float],
    budget: float | None,
    stays: str | None,
) -> tuple[list[list[Encoder]], list[Encoder]]:
    """The cheapest of ``passes`` that take ``budget`` together; what is left out.

    That of the encoder ``stays`` comes first.
    """
    if budget is None:
        return [*passes], []
    kept: list[list[Encoder]] = []
    left_out: list[Encoder] = []

    def order(together: Sequence[Encoder]) -> tuple[bool, float]:
        mine = any(encoder.key == stays for encoder in together)
        return (not mine, seconds[together[0].key])

    for together in sorted(passes, key=order):
        budget -= seconds[together[0].key]
        if budget >= 0:
            kept.append(together)
        else:
            left_out += together
    return kept, left_out


def _network(together: Sequence[Encoder]) -> tuple[str, str | None, str]:
    one = together[0]
    return one.backbone, one.weights.sha256, one.precision


def _pixels(together: Sequence[Encoder]) -> int:
    how = together[0].preprocess
    return how.crop**2 if isinstance(how, Preprocess) else 1


def _speed(store: Store, together: Sequence[Encoder]) -> float | None:
    """Seconds an image, as remembered."""
    for encoder in together:
        known = speeds.known_speed(EmbeddingFolder(store, encoder.key))
        if known:
            return 1 / known.images_per_second
    return None


def _with(
    spec: EncoderSpec, own: Encoder, side: int, fit: Fit | None, pool: Pool | None
) -> EncoderSpec:
    changes = {"side": side, "resize": None, "crop": None, "fit": fit, "pool": pool}
    return spec.model_copy(update={**changes, "precision": own.precision})
