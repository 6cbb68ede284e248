"""How much better the chosen candidate looks in folds than on images it never saw.

``.venv/bin/python benchmarks/optimism.py`` embeds all images of cifar10-subset under
each side and pool of a small grid, once. Then it draws some of them again and again:
five folds of those choose side, pool and C of `logistic` together, as a run does; the
choice is fitted on all of them, and every other image is the fresh test. It records the
folds' accuracy of what they chose minus that on test in RESULTS.md. "Nested": the
same with each fold scored by what the other folds choose.

Needs the folder of shared data, at $TL_SHARED or ../shared.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from results import machine, processor, record
from scipy import stats

from tl_pipeline.config.encoder_specs import EncoderSpec
from tl_pipeline.config.specs import HeadConfig, HeadSpec, TuneSpec
from tl_pipeline.encoders.encoder import sharing
from tl_pipeline.heads import complete, cross_validation, folds, grid, grids
from tl_pipeline.heads.grids import LabelledRows
from tl_pipeline.heads.search import ranked
from tl_pipeline.pipeline.stages import embed
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder
from tl_pipeline.studies import study, tuning

HERE = Path(__file__).parent
SHARED = Path(os.environ.get("TL_SHARED", HERE.parent.parent / "shared"))
NETWORK = (
    f"squeezenet1_0:weights={SHARED / 'weights'}/squeezenet1_0-imagenet-"
    "deepcompression.pth"
)


class Embedded(NamedTuple):
    """Each encoder's embeddings (n, width) by its label, and the labels (n,)."""

    vectors: dict[str, np.ndarray]
    labels: np.ndarray


class Split(NamedTuple):
    """Accuracies of what was chosen on one split, and its name."""

    folds: float
    nested: float
    test: float
    chosen: str


def embedded(sides: str, pools: str, place: Path) -> Embedded:
    """All images of cifar10-subset under all candidates."""
    spec = EncoderSpec.parse(NETWORK)
    asked = study.prepare(
        str(SHARED / "data/cifar10-subset"),
        [spec],
        Store.open(place),
        catalog_file=None,
        seed=0,
        verify=False,
    )
    how = TuneSpec.parse(f"side={sides},pool={pools}")
    (usual,) = asked.singles
    encoders = [
        encoder
        for encoder in tuning.grid([spec], [usual], how, asked).encoders
        if encoder.key != usual.key
    ]
    manifest = asked.ingested()
    for together in sharing(encoders):
        pairs = embed.pairs(manifest.images)
        embed.fill(asked.at.store, asked.dataset, together, pairs)
    label = dict(tables.values(manifest.table, "image_id", "label"))
    vectors, labels = dict[str, np.ndarray](), np.empty(0, str)
    for encoder in encoders:
        found = EmbeddingFolder(asked.at.store, encoder.key).load(label)
        vectors[encoder.label] = found.vectors
        labels = np.array([label[image_id] for image_id in found.image_ids])
    return Embedded(vectors, labels)


def measured(
    given: Embedded, images: int, configs: list[HeadConfig], seed: int
) -> Split:
    """Choose on ``images`` drawn by ``seed``, and score on the others."""
    codes = np.unique(given.labels, return_inverse=True)[1]
    chance = np.random.default_rng(seed)
    drawn = np.zeros(len(codes), bool)
    for k in np.unique(codes):
        own = np.flatnonzero(codes == k)
        drawn[chance.permutation(own)[: images // len(np.unique(codes))]] = True
    part = folds.divided(codes[drawn], None, seed)
    rows = {
        name: LabelledRows(x[drawn], given.labels[drawn])
        for name, x in given.vectors.items()
    }
    tried: list[tuple[str, HeadConfig]] = []
    scores: list[list[tuple[float, float, int]]] = []  # by fold
    for name, learned in rows.items():
        for at, found in cross_validation.cross_validated(configs, 0, learned, part):
            tried.append((name, configs[at]))
            each = [one.score() for one in found]
            scores.append([(s.accuracy, s.log_loss, len(s.right)) for s in each])
    table = np.array(scores)  # (candidates, folds, 3)
    best = chosen(table)
    sizes = table[0, :, 2]
    others = [chosen(np.delete(table, fold, axis=1)) for fold in range(len(sizes))]
    nested = [table[at, fold, 0] for fold, at in enumerate(others)]
    name, config = tried[best]
    (fit,) = grids.fit([config], 0, rows[name])
    right = fit.estimator.predict(given.vectors[name][~drawn]) == given.labels[~drawn]
    return Split(
        float(np.average(table[best, :, 0], weights=sizes)),
        float(np.average(nested, weights=sizes)),
        float(right.mean()),
        f"{name.partition(' (')[2].partition(')')[0]}, C={config.params['C']:g}",
    )


def chosen(table: np.ndarray) -> int:
    """The number of the best of (candidates, folds, 3), as a run ranks them."""
    sizes = table[0, :, 2]
    means = np.average(table[:, :, :2], axis=1, weights=sizes)
    return ranked([(accuracy, loss) for accuracy, loss in means.tolist()])[0]


def difference(name: str, values: list[float]) -> str:
    """A row: mean with interval, and how far single splits lie."""
    points = [100 * value for value in values]
    spread = statistics.stdev(points)
    quantile = float(stats.t.ppf(0.975, len(points) - 1))
    half = quantile * spread / len(points) ** 0.5
    mean = statistics.mean(points)
    return (
        f"| {name} | {mean:+.2f} | {mean - half:+.2f} to {mean + half:+.2f} | "
        f"{spread:.2f} |"
    )


def main() -> None:
    """Measure, and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--splits", type=int, default=50)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--sides", default="96/128/160")
    parser.add_argument("--pools", default="gap/grid2")
    asked = parser.parse_args()
    configs = [*grid(complete(HeadSpec(name="logistic")))]
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        given = embedded(asked.sides, asked.pools, Path(place))
    print(f"embedded in {time.perf_counter() - began:.0f} s", flush=True)
    found = []
    for seed in range(asked.splits):
        found.append(measured(given, asked.images, configs, seed))
        took = f"{time.perf_counter() - began:.0f} s, {time.process_time():.0f} of CPU"
        print(took, found[-1], flush=True)
    picks = statistics.multimode(one.chosen for one in found)
    record(
        "Folds' accuracy of the candidate they chose, and fresh test",
        f"`python benchmarks/optimism.py --splits {asked.splits} --images "
        f"{asked.images} --sides {asked.sides} --pools {asked.pools}`; {machine()}; "
        f"{processor()}.\n\ncifar10-subset, squeezenet1_0: {asked.images:,} images "
        f"choose among {len(given.vectors)} encoders x {len(configs)} C, the other "
        f"{len(given.labels) - asked.images:,} test. {len(found)} splits of the same "
        "images; the interval is of chance in the splits. Test: "
        f"{100 * statistics.mean(one.test for one in found):.1f} % on average. Most "
        f"often chosen: {', '.join(picks)}.\n\n"
        "| estimate | points above test | 95 % interval | deviation of a split |\n"
        "|---|---|---|---|\n"
        + difference("folds, as a run shows", [one.folds - one.test for one in found])
        + "\n"
        + difference("nested folds", [one.nested - one.test for one in found]),
    )


if __name__ == "__main__":
    main()
