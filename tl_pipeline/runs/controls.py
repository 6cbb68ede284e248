"""Which control an evaluation is compared with, and what the comparison says.

A control runs like any candidate: the same head on the untrained network, or on rows
that were split image by image. Pairs are formed by the key of the encoder and the head
as it was asked for; the record keeps them as keys of evaluations.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tl_pipeline.data.split_report import Leakage
from tl_pipeline.evaluation.intervals import paired_difference
from tl_pipeline.evaluation.scored_rows import compared
from tl_pipeline.runs.planning import ONE_BY_ONE, UNTRAINED
from tl_pipeline.runs.records import Result
from tl_pipeline.score import Score
from tl_pipeline.store.artifacts import Artifact, Store


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
    mine, theirs = (
        Artifact("evaluations", key, key) for key in (best.evaluation, best.untrained)
    )
    both = compared(store, mine, theirs, on_test=True)
    return paired_difference(*both.right, both.units, seed)


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
                by_image=control.held_out,
                by_group=result.held_out,
                test=result.test,
            )
    return None
