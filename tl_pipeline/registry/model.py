"""A model folder as it is read: ``models/<key>/``, complete in itself.

It holds everything a prediction needs but the network's own weights: ``model.json``
(encoder identity with preprocessing, head, label names, scores), the head, its
operating point and the provenance. A model of joint encoders or of several heads keeps
each head in ``members/<number>/``.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_pipeline.encoders.concat import AnyEncoder, ConcatEncoder, unique_members
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.encoders.weight_store import located
from tl_pipeline.errors import StoreError
from tl_pipeline.evaluation.operating_point import OperatingPoint
from tl_pipeline.heads.fitted import FittedHead
from tl_pipeline.heads.fitted import load as load_head
from tl_pipeline.registry.model_folder import MODEL, SEVERAL
from tl_pipeline.store.artifacts import Store

if TYPE_CHECKING:
    from tl_pipeline.registry.prediction import Predictor


@dataclass(frozen=True)
class Member:
    """A head, the identity of the encoder that it needs, and how much it counts.

    One of several is calibrated before they are averaged.
    """

    encoder: AnyEncoder
    head: FittedHead
    times: int = 1
    operating_point: OperatingPoint | None = None


@dataclass(frozen=True)
class Model:
    """A registered model: one head, or several whose probabilities are averaged.

    ``classes`` are the label names that it can give. Models of older versions have no
    operating point.
    """

    folder: Path
    dataset: str
    members: tuple[Member, ...]
    classes: list[str]
    about: dict[str, Any]
    operating_point: OperatingPoint | None = None

    @property
    def encoders(self) -> tuple[Encoder, ...]:
        """Every encoder that an input must go through, once."""
        return unique_members(member.encoder for member in self.members)

    @cached_property
    def predictor(self) -> "Predictor":
        """Its networks, loaded when they are first needed and kept from then on.

        Raises:
            WeightsError: see ``Predictor``.
        """
        from tl_pipeline.registry.prediction import Predictor  # noqa: PLC0415 - torch

        return Predictor(self)


def open_model(folder: Path, store: Store | None = None) -> Model:
    """The model in ``folder``, which needs no registry.

    Its weights are those that ``store``, by default the one around ``folder``, keeps.

    Raises:
        StoreError: it is of a format that this version does not know.
        DamagedArtifact, UnsafeModelFile: see ``heads.fitted.load`` and
            ``OperatingPoint.read``.
    """
    about = json.loads((folder / MODEL).read_text())
    store = store or Store(folder.parent.parent)
    if about["format"] == 1:
        encoder = located(Encoder.model_validate(about["encoder"]), store)
        members = (Member(encoder, load_head(folder)),)
    elif about["format"] == SEVERAL:
        members = tuple(_member(folder, row, store) for row in about["members"])
    else:
        raise StoreError(
            f"{folder}: this version reads models of the formats 1 and {SEVERAL}, not "
            f"{about['format']}; use the version that wrote it"
        )
    point = OperatingPoint.read(folder)
    return Model(folder, about["dataset"], members, about["classes"], about, point)


def _member(folder: Path, row: dict[str, Any], store: Store) -> Member:
    named = map(Encoder.model_validate, row["encoders"])
    found = tuple(located(encoder, store) for encoder in named)
    encoder = found[0] if len(found) == 1 else ConcatEncoder(members=found)
    place = folder / row["folder"]
    point = OperatingPoint.read(place)
    return Member(encoder, load_head(place), row["times"], point)
