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

COLUMNS = ("image_id", "uri", "label", "split", "group", "width", "height")
# Not how many bytes: a sky takes fewer than a flower, whoever saved them.
ATTRIBUTES = ("width", "height", "aspect ratio", "format")
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
    units = _units(judged)
    right = tree.predict(_attributes(judged)) == truth
    first = tree.feature_importances_.argmax()
    return Shortcut(
        accuracy=intervals.share(right, units),
        gain=intervals.adjusted_difference(
            right, truth == names[counts.argmax()], units
        ),
        attribute=ATTRIBUTES[first] if tree.feature_importances_[first] else None,
    )


def _units(images: pa.Table) -> np.ndarray:
    """The group of each image, or it alone, (n,)."""
    pairs = zip(
        images["group"].to_pylist(), images["image_id"].to_pylist(), strict=True
    )
    return np.array([f"group {g}" if g is not None else i for g, i in pairs])


def _attributes(images: pa.Table) -> np.ndarray:
    """``ATTRIBUTES`` of n images, float64 (n, 4); formats by the ends of names."""
    width, height = (images[name].to_numpy().astype(float) for name in COLUMNS[-2:])
    ends = [PurePosixPath(uri).suffix.lower() for uri in images["uri"].to_pylist()]
    formats = [zlib.crc32(end.encode()) for end in ends]
    return np.stack([width, height, width / height, formats], axis=1)
