"""Labels of encoders that are told apart where several have one name.

A label names the file of the weights and not its content, so two encoders may share it.
"""

from collections import Counter
from collections.abc import Mapping

_SHORTEST = 6


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
