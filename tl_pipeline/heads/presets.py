"""Sets of heads that are good without tuning, to be named like a head."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tl_pipeline.config.specs import HeadSpec
from tl_pipeline.errors import InvalidSpec


@dataclass(frozen=True)
class Preset:
    """Heads with their grids, in the order in which they are trained."""

    summary: str
    heads: tuple[str, ...]


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "quick": Preset(
            "seconds: what a linear boundary and the class means can do",
            ("logistic:C=0.0001/0.001/0.01/0.1/1", "nearest_centroid"),
        ),
        "thorough": Preset(
            "minutes: every kind of boundary, with grids around what is usually best",
            (
                "logistic:C=0.0001/0.0003/0.001/0.003/0.01/0.03/0.1/1,l2=false/true",
                "lda:shrinkage=auto/0.1/0.3/0.6",
                "linear_svm",
                "nearest_centroid",
                "knn:k=1/5/20,whiten=false/true",
                "cosine:stop_by=refined",
                "mlp:hidden=256/512,label_smoothing=0.1,mixup=0.0/0.2,stop_by=refined",
            ),
        ),
    }
)


def expanded(spec: HeadSpec) -> list[HeadSpec]:
    """The heads that ``spec`` stands for: those of a preset, or itself.

    Raises:
        InvalidSpec: a preset with parameters.
    """
    preset = PRESETS.get(spec.name)
    if preset is None:
        return [spec]
    if spec.params:
        raise InvalidSpec(
            f"{spec.short()!r}: a preset takes no parameters; name its heads one by "
            f"one: {' '.join('--head ' + text for text in preset.heads)}"
        )
    return [HeadSpec.parse(text) for text in preset.heads]
