"""Splits drawn again, so that near duplicates stand on one side."""

import numpy as np
import pyarrow as pa
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tl_pipeline.config.split_specs import SplitSpec
from tl_pipeline.data.splits import TEST, VALIDATION, assign

# The side of images that stand on none.
EXCLUDED = "excluded"


def keep_together(
    images: pa.Table, clusters: np.ndarray, spec: SplitSpec
) -> np.ndarray:
    """The split of each image: text of shape (n,).

    ``images`` has the columns ``image_id``, ``label``, ``group`` and ``declared``;
    ``clusters`` is int64 of shape (n,), -1 where an image has no near duplicate. A
    cluster is drawn as one group, together with the groups that it touches. A split
    that the source declares for test or validation keeps its images and gets no others:
    what is near them and not declared for the same split is EXCLUDED.
    """
    ids = images["image_id"].to_numpy(zero_copy_only=False)
    groups = _texts(images, "group", spec.strategy in ("auto", "group"))
    declared = _texts(images, "declared", spec.strategy != "stable")
    bundles = _bundles(groups, clusters)
    drawn_by = groups.copy()
    for members in bundles:
        named = [group for group in groups[members] if group is not None]
        drawn_by[members] = max(named, default=f"near {max(ids[members])}")
    told = {"group": drawn_by, "split": declared}
    rows = pa.table(
        {
            **{name: images[name] for name in ("image_id", "label")},
            **{name: pa.array(texts, pa.string()) for name, texts in told.items()},
        }
    )
    drawn = assign(rows, spec.model_copy(update={"strategy": "auto"}))
    sides = drawn.to_numpy(zero_copy_only=False).astype(object)
    for members in bundles:
        held = {TEST, VALIDATION}.intersection(declared[members])
        if held:
            side = TEST if TEST in held else VALIDATION
            sides[members] = np.where(declared[members] == side, side, EXCLUDED)
    return sides


def _texts(images: pa.Table, name: str, wanted: bool) -> np.ndarray:
    """A column as objects; nothing but None where it is not wanted."""
    if not wanted:
        return np.full(images.num_rows, None, object)
    return images[name].to_numpy(zero_copy_only=False).astype(object)


def _bundles(groups: np.ndarray, clusters: np.ndarray) -> list[np.ndarray]:
    """Images joined by clusters and by the groups that these touch, as positions."""
    size = len(clusters)
    grouped = np.flatnonzero(np.array([group is not None for group in groups], bool))
    _, group = np.unique(groups[grouped].astype(str), return_inverse=True)
    clustered = np.flatnonzero(clusters >= 0)
    # Images, clusters and groups are the nodes of one graph.
    first_group = size + clusters.max(initial=-1) + 1
    images = np.concatenate([clustered, grouped])
    others = np.concatenate([size + clusters[clustered], first_group + group])
    nodes = int(others.max(initial=size - 1)) + 1
    edges = coo_array((np.ones(len(images)), (images, others)), shape=(nodes, nodes))
    component = connected_components(edges, directed=False)[1][:size]
    touched = np.isin(component, component[clustered])
    members = np.flatnonzero(touched)
    order = members[np.argsort(component[members], kind="stable")]
    if not len(order):
        return []
    starts = np.flatnonzero(np.diff(component[order])) + 1
    return np.split(order, starts)
