"""Which control an evaluation is compared with, and what the comparison says.

A control runs like any candidate: the same head on the untrained network, or on rows
that were split image by image. Pairs are formed by the key of the encoder and the head
as it was asked for; the record keeps them as keys of evaluations.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tl_pipeline.data.split_report import Leakage
from tl_pipeline.evaluation.comparison import paired_difference
from tl_pipeline.runs.planning import ONE_BY_ONE, UNTRAINED
from tl_pipeline.runs.records import Result
from tl_pipeline.score import Score
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.tables import PREDICTIONS


class Subject(NamedTuple):
    """What one evaluation of a run scored: a head on an encoder.

    ``encoder`` is a key, "" where heads of several are averaged. ``head`` is the short
    form of what was asked for. ``control`` is that of the context it was scored in.
    """

    encoder: str
    head: str
    control: str = ""


class Controls(NamedTuple):
    """The controls of one evaluation, by the keys of theirs; None where there is none.

    ``untrained``: the same head on the same network with random weights.
    ``by_image``: the same head and encoder on rows that were split image by image.
    """

    untrained: str | None = None
    by_image: str | None = None


def pair(
    subjects: Sequence[Subject],
    evaluations: Sequence[str],
    baselines: Mapping[str, str],
) -> dict[str, Controls]:
    """The controls of each of ``evaluations``, keys in the order of ``subjects``.

    ``baselines`` maps the key of an encoder to that of the same network with random
    weights.
    """
    key_of = dict(zip(subjects, evaluations, strict=True))

    def untrained(subject: Subject) -> str | None:
        if not subject.encoder:
            return key_of.get(subject._replace(control=UNTRAINED))
        baseline = baselines.get(subject.encoder)
        return key_of.get(subject._replace(encoder=baseline)) if baseline else None

    return {
        key: Controls(
            untrained=untrained(subject),
            by_image=key_of.get(subject._replace(control=ONE_BY_ONE)),
        )
        for subject, key in key_of.items()
        if not subject.control
    }


def gain(store: Store, best: Result, seed: int) -> Score | None:
    """The gain by transfer: test accuracy of ``best`` minus that of its control.

    The interval is of the difference on the test images that both scored. None where
    there is no untrained control.
    """
    if best.untrained is None:
        return None
    mine, theirs = _right(store, best.evaluation, best.untrained)
    found = paired_difference(mine, theirs, seed)
    return Score(value=found.value, low=found.low, high=found.high)


def leakage(results: Sequence[Result]) -> Leakage | None:
    """What the split by image says beside the best of ``results`` that has one.

    ``results`` has the best first; None without such a control.
    """
    by_key = {result.evaluation: result for result in results}
    for result in results:
        control = by_key.get(result.by_image or "")
        if control:
            return Leakage(
                head=result.head,
                encoder=result.encoder,
                by_image=control.validation,
                by_group=result.validation,
                test=result.test,
            )
    return None


def _right(store: Store, *evaluations: str) -> list[np.ndarray]:
    """Whether each test image that all scored, in the order of ids, is right."""
    found = []
    for key in evaluations:
        folder = store.path(Artifact("evaluations", key, key))
        rows = tables.read(PREDICTIONS, folder).to_pandas()
        rows = rows[rows["split"] == "test"].set_index("image_id").sort_index()
        found.append(rows["label"] == rows["predicted"])
    both = found[0].index
    for other in found[1:]:
        both = both.intersection(other.index)
    return [right.loc[both].to_numpy() for right in found]
