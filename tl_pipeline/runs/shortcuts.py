"""What files tell of their labels before anyone looks at the image.

Where all images of a class were saved by one program or cut to one shape, a network can
be right for that reason alone, and will be wrong on images that come from elsewhere
(Geirhos et al. 2020, "Shortcut Learning in Deep Neural Networks", Nature Machine
Intelligence 2).
"""

# pyarrow.compute is filled when it is imported.
# pyright: reportAttributeAccessIssue=false

import zlib
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tl_pipeline.data.split_report import Shortcut
from tl_pipeline.data.splits import TEST, TRAIN, VALIDATION
from tl_pipeline.evaluation import intervals

COLUMNS = ("image_id", "uri", "label", "split", "group", "bytes", "width", "height")
ATTRIBUTES = ("bytes", "width", "height", "aspect ratio", "bytes per pixel", "format")
# Fewer images of a leaf are taken for chance.
_LEAF = 20


def look(images: pa.Table) -> Shortcut | None:
    """How well the attributes of files foretell the labels of test.

    ``images`` has ``COLUMNS`` of the manifest. A decision tree learns from
    ``ATTRIBUTES`` of train and validation. None where there is nothing to learn from or
    to judge by.
    """
    from sklearn.tree import DecisionTreeClassifier  # noqa: PLC0415 - half a second

    learned = images.filter(pc.is_in(images["split"], pa.array([TRAIN, VALIDATION])))
    judged = images.filter(pc.equal(images["split"], TEST))
    if not (learned.num_rows and judged.num_rows):
        return None
    labels, truth = (np.array(part["label"].to_pylist()) for part in (learned, judged))
    names, counts = np.unique(labels, return_counts=True)
    tree = DecisionTreeClassifier(min_samples_leaf=_LEAF, random_state=0)
    tree.fit(_attributes(learned), labels)
    right = tree.predict(_attributes(judged)) == truth
    first = tree.feature_importances_.argmax()
    return Shortcut(
        accuracy=intervals.share(right, _units(judged)),
        majority=float((truth == names[counts.argmax()]).mean()),
        attribute=ATTRIBUTES[first] if tree.feature_importances_[first] else None,
    )


def _units(images: pa.Table) -> np.ndarray:
    """The group of each image, or it alone, (n,)."""
    pairs = zip(
        images["group"].to_pylist(), images["image_id"].to_pylist(), strict=True
    )
    return np.array([f"group {g}" if g is not None else i for g, i in pairs])


def _attributes(images: pa.Table) -> np.ndarray:
    """``ATTRIBUTES`` of n images, float64 (n, 6); formats by the ends of names."""
    size, width, height = (
        images[name].to_numpy().astype(float) for name in ("bytes", "width", "height")
    )
    ends = [PurePosixPath(uri).suffix.lower() for uri in images["uri"].to_pylist()]
    formats = [zlib.crc32(end.encode()) for end in ends]
    return np.stack(
        [size, width, height, width / height, size / (width * height), formats], axis=1
    )
