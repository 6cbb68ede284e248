"""Whether mirrored images may be learned from."""

import numpy as np

from tl_pipeline.finetuning.mirroring import Mirrored, measure


def told(turned: float, rows: int = 40) -> Mirrored | None:
    """Two classes on two sides of 0, whose mirrored images lie at ``turned`` times."""
    targets = np.arange(rows) % 2
    vectors = (2.0 * targets - 1)[:, None].astype(np.float32)
    return measure(vectors, targets, None, lambda at: turned * vectors[at], seed=0)


def test_classes_that_change_sides_are_not_mirrored():
    """And those that stay are."""
    assert told(1.0) == Mirrored(1.0, 1.0)
    changed = told(-1.0)
    assert changed == Mirrored(1.0, 0.0)
    assert changed is not None
    assert not changed.harmless


def test_of_too_few_images_nothing_is_told():
    """One of each class cannot be halved."""
    assert told(1.0, rows=2) is None
