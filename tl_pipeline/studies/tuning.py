"""Which side of the input and which pooling suit a dataset: a grid, ranked in rounds.

Scores and costs are those of ``ranking``. The first round looks at a part of the sample
and lets half of the candidates go on.
"""

from collections.abc import Sequence
from typing import NamedTuple

from tl_pipeline.config.encoder_specs import EncoderSpec, Pool
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.errors import InvalidSpec
from tl_pipeline.inputs.images import Preprocess
from tl_pipeline.pipeline import work
from tl_pipeline.store.artifacts import Store
from tl_pipeline.studies import ranking
from tl_pipeline.studies.ranking import Ranking
from tl_pipeline.studies.study import Study

IMAGES = 2000
# None: the usual one of the layer, none of one that gives a vector.
POOLS: tuple[Pool | None, ...] = (None, "grid2", "grid3", "avg+max")
# Smaller inputs than a network's own that are tried unless others are named.
_SIDES = (64, 96, 128, 160, 192)
# The part of the sample that the first round sees, and of candidates that go on.
_FIRST, _GO_ON = 4, 2


class Grid(NamedTuple):
    """What is compared, each encoder once; and what is not, by the reason."""

    specs: list[EncoderSpec]
    refused: dict[str, list[str]]


class Tuned(NamedTuple):
    """The last round, and the encoders that did not reach it, by label."""

    ranking: Ranking
    dropped: list[str]


def grid(
    asked: Sequence[EncoderSpec],
    sides: Sequence[int],
    pools: Sequence[Pool],
    store: Store,
) -> Grid:
    """Each of ``asked`` with each side and pool, its own among them.

    Without ``sides`` those up to the network's own are tried, without ``pools`` all
    that suit a map. Weights are downloaded.

    Raises:
        UnknownName, WeightsError, InvalidSpec: one of ``asked`` itself is wrong.
    """
    specs: dict[str, EncoderSpec] = {}
    refused: dict[str, list[str]] = {}
    for spec in asked:
        (own,) = work.resolve([spec], store, download=True)
        assert isinstance(own, Encoder)  # noqa: S101 - of one spec
        if not isinstance(own.preprocess, Preprocess):
            raise InvalidSpec(
                f"{spec.short()} takes no images: there is no side to tune"
            )
        usual = own.preprocess.crop
        specs.setdefault(own.key, spec)
        for side in sides or [side for side in _SIDES if side < usual] + [usual]:
            for pool in pools or POOLS:
                one = _with(spec, side, pool)
                try:
                    (found,) = work.resolve([one], store, download=True)
                except InvalidSpec as fault:
                    refused.setdefault(str(fault), []).append(one.short())
                    continue
                specs.setdefault(found.key, one)
    return Grid(list(specs.values()), refused)


def tune(study: Study, encoders: Sequence[Encoder], images: int) -> Tuned:
    """Rank ``encoders`` on a sample of ``images``, in two rounds if they are many.

    Raises:
        InvalidSpec, DatasetError, WeightsError: see ``ranking.rank``.
    """
    if len(encoders) <= _FIRST:
        return Tuned(ranking.rank(study, encoders, images), [])
    first = ranking.rank(study, encoders, max(1, images // _FIRST))
    ahead = [row.key for row in first.rows[: -(-len(first.rows) // _GO_ON)]]
    kept = [encoder for encoder in encoders if encoder.key in ahead]
    dropped = [row.encoder for row in first.rows if row.key not in ahead]
    return Tuned(ranking.rank(study, kept, images), dropped)


def _with(spec: EncoderSpec, side: int, pool: Pool | None) -> EncoderSpec:
    sized = {"side": side, "resize": None, "crop": None}
    return spec.model_copy(update={**sized, "pool": pool})
