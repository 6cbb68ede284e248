"""What a dataset must fulfil before heads learn from it, by what its entry says.

Ingest asks once the headers are read; embed asks again once everything was decoded,
since a file that is cut short shows only then.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

from tl_pipeline.config.datasets import DatasetSpec
from tl_pipeline.errors import DatasetError, TooManyRefused

_NAMED = 5  # of many, in a message


@dataclass(frozen=True)
class Inputs:
    """What became of the inputs of a dataset.

    ``refused`` maps the uri of a refused input to its (reason, detail), ``classes`` the
    labels of those that were not to how many there are.
    """

    total: int
    refused: Mapping[str, tuple[str, str]]
    classes: Mapping[str, int]

    @property
    def images(self) -> int:
        """The images that can be used."""
        return sum(self.classes.values())


def check(dataset: DatasetSpec, inputs: Inputs) -> None:
    """See that enough of ``inputs`` can be used, and what ``expect`` says.

    Raises:
        TooManyRefused: all inputs were refused, or more than ``max_quarantined``.
        DatasetError: the number of images or classes is not what ``expect`` says.
    """
    faults = _expectations(dataset, inputs)
    refused = len(inputs.refused)
    if not inputs.images or refused > dataset.max_quarantined * inputs.total:
        allowed = f"max_quarantined = {dataset.max_quarantined:g} allows"
        also = f" It also {'; '.join(faults)}." if faults and inputs.images else ""
        raise TooManyRefused(
            f"{dataset.name}: {refused:,} of {inputs.total:,} inputs were refused, "
            f"more than {allowed}.{also}\n{named(inputs.refused)}"
        )
    if faults:
        raise DatasetError(
            f"{dataset.name} {' and '.join(faults)}. Look at what changed, or correct "
            f"'expect' in the catalogue\n{named(inputs.refused)}".rstrip()
        )


def _expectations(dataset: DatasetSpec, inputs: Inputs) -> list[str]:
    found = {"images": inputs.images, "classes": len(inputs.classes)}
    return [
        f"has {found[name]:,} {name} instead of {number:,}"
        for name, number in dataset.expect
        if number is not None and number != found[name]
    ]


def named(refused: Mapping[str, tuple[str, str]]) -> str:
    """The first of the ``refused`` inputs with their reasons, a line each."""
    lines = [
        f"  {uri}: {reason}" + (f" ({detail})" if detail else "")
        for uri, (reason, detail) in islice(refused.items(), _NAMED)
    ]
    if len(refused) > _NAMED:
        lines.append(f"  and {len(refused) - _NAMED:,} more")
    return "\n".join(lines)
