"""Labels of encoders that are told apart where several have one name.

A label names the file of the weights and not its content, so two encoders may share it.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tl_pipeline.encoders.backbones import find_backbone
from tl_pipeline.encoders.weight_names import FILE_ENDINGS
from tl_pipeline.errors import UnknownName

_SHORTEST = 6
_MORE = ("weights", "precision")
# Between encoders that are concatenated or averaged, or a head and what it learns from.
_BETWEEN = re.compile(r"( \+ |, | on )")
_LABEL = re.compile(
    r"(?P<backbone>.+)/(?P<layer>[^/ ]+)(?: \((?P<variant>[^)]*)\))? "
    r"(?P<weights>.+?)(?P<rest>(?: \([^)]*\))?(?: #[0-9a-f]+)?)"
)


def unique(labels: Mapping[str, str]) -> dict[str, str]:
    """Encoder key -> label, with the beginning of the key where labels are equal.

    ``labels`` maps keys to labels: ``lenet5/c5 a.pth`` becomes
    ``lenet5/c5 a.pth #3f9a21`` where another encoder is called so, too.
    """
    shared = Counter(labels.values())
    keys = [key for key, label in labels.items() if shared[label] > 1]
    length = _SHORTEST
    while len({key[:length] for key in keys}) < len(keys):
        length += 1
    return {
        key: f"{label} #{key[:length]}" if shared[label] > 1 else label
        for key, label in labels.items()
    }


def short(labels: Iterable[str]) -> dict[str, str]:
    """Label -> the shortest form that tells it from all others of ``labels``.

    For tables: labels are parts of keys, and these forms are not. Left out are the
    default layer, the default weights and files of weights, and bf16; what two would
    then share is named for both. ``squeezenet1_0/fire9 (@160 2x2 bf16) a.pth`` becomes
    ``squeezenet1_0@160 2x2``, and so do the parts of averaged or concatenated encoders
    and of ``HEAD on ENCODER``. What is no label stays as it is.
    """
    found = {label: _BETWEEN.split(label) for label in labels}
    pieces = dict.fromkeys(piece for parts in found.values() for piece in parts[::2])
    told = {piece: _Told.of(piece) for piece in pieces}
    shown = {piece: one.named() if one else piece for piece, one in told.items()}
    shared = Counter(shown.values())
    for form in [form for form, often in shared.items() if often > 1]:
        alike = {piece: told[piece] for piece in pieces if shown[piece] == form}
        shown |= _told_apart(alike)
    return {
        label: "".join(shown.get(part, part) for part in parts)
        for label, parts in found.items()
    }


def _told_apart(alike: "Mapping[str, _Told | None]") -> dict[str, str]:
    """Labels whose short forms are equal -> the next longer ones that are not."""
    choices = ({"weights": True}, {"precision": True}, dict.fromkeys(_MORE, True))
    for more in choices:
        shown = {
            piece: one.named(**more) if one else "" for piece, one in alike.items()
        }
        if len(set(shown.values())) == len(shown):
            return shown
    return {piece: piece for piece in alike}


@dataclass(frozen=True)
class _Told:
    """The parts of a label of one encoder."""

    name: str  # with the layer, if it is not the default
    variant: str
    precision: str
    weights: str
    usual: bool  # whether the weights are those that one expects
    rest: str  # what tells encoders of one label apart, and how images were split

    @classmethod
    def of(cls, label: str) -> "_Told | None":
        """Take ``label`` apart; None where it has another form."""
        parts = _LABEL.fullmatch(label)
        if parts is None:
            return None
        try:
            row = find_backbone(parts["backbone"])
        except UnknownName:
            return None
        layer, weights = parts["layer"], parts["weights"]
        usual = next(iter(row.layers), "") == layer
        words = (parts["variant"] or "").split()
        precision = words.pop() if words[-1:] == ["bf16"] else ""
        return cls(
            name=parts["backbone"] + ("" if usual else f"/{layer}"),
            variant=" ".join(words),
            precision=precision,
            weights=weights,
            usual=weights == row.weights or weights.endswith(FILE_ENDINGS),
            rest=parts["rest"],
        )

    def named(self, *, weights: bool = False, precision: bool = False) -> str:
        """The short form, with what is asked for as well."""
        beside = self.variant if self.variant.startswith("@") else f" {self.variant}"
        told = [self.precision or "fp32"] if precision else []
        told += [self.weights] if weights or not self.usual else []
        return " ".join([(self.name + beside).strip(), *told]) + self.rest
