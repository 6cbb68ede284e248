"""How labels are spelled: what is mended, and which classes look alike after that."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace

from tl_pipeline.sources import Entry

_NAMED = 3  # of many, in a note
_MISSING = {"nan", "na", "n/a", "#n/a", "<na>", "none", "null"}  # as pandas writes it
_NUMBER = re.compile(r"0*([0-9]+)(?:\.0*)?")


class Spelling:
    """Mends labels and remembers which."""

    def __init__(self) -> None:
        self._mended: Counter[str] = Counter()

    def mend(self, entry: Entry) -> Entry:
        """``entry``, its label without spaces around it and in Unicode's form NFC."""
        label = entry.label
        if label is None:
            return entry
        plain = label.strip()
        if not plain.isascii():
            plain = unicodedata.normalize("NFC", plain)
        if plain == label:
            return entry
        self._mended[label] += 1
        return replace(entry, label=plain or None)

    def notes(self) -> Iterator[str]:
        """What was mended, in a sentence."""
        if self._mended:
            names = [ascii(label) for label, _ in self._mended.most_common(_NAMED)]
            yield (
                f"{self._mended.total():,} labels had spaces around them or another "
                f"Unicode form, such as {', '.join(names)}: both are evened out"
            )


def look_alike(labels: Iterable[str]) -> Iterator[str]:
    """A sentence on classes that may be one, and one on such as may be no label."""
    classes = sorted(labels)
    found: dict[str, list[str]] = defaultdict(list)
    for label in classes:
        found[_folded(label)].append(label)
    alike = [_shown(same) for same in found.values() if len(same) > 1]
    if alike:
        more = f" and {len(alike) - _NAMED} more" if alike[_NAMED:] else ""
        yield f"classes that look alike: {'; '.join(alike[:_NAMED])}{more}"
    if missing := [label for label in classes if label.casefold() in _MISSING]:
        yield f"classes that may be missing labels: {_shown(missing)}"


def _folded(label: str) -> str:
    """What ``Fire truck`` and ``fire_truck`` share; or ``0``, ``00`` and ``0.0``."""
    if number := _NUMBER.fullmatch(label):
        return number[1]
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", label).casefold())


def _shown(labels: Iterable[str]) -> str:
    return ", ".join(map(repr, labels))
