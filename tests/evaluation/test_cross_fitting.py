"""A greedy ensemble is not scored on the rows that chose it."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import binom

from tl_pipeline.data.splits import TEST, VALIDATION
from tl_pipeline.evaluation import calibration, cross_fitting
from tl_pipeline.evaluation.averaging import Predictions, averaged, greedy
from tl_pipeline.pipeline.manifest import Manifest
from tl_pipeline.pipeline.stages.average import Average
from tl_pipeline.runs.planning import Workspace
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.keys import key_document
from tl_pipeline.store.tables import MANIFEST, METRICS, PREDICTIONS

NAMES = ["ant", "bee"]


def ids(images: int, split: str = VALIDATION) -> pa.Array:
    return pa.array([f"{split} {i:04d}" for i in range(images)])


def noise(
    heads: int, images: int, seed: int, split: str = VALIDATION
) -> list[Predictions]:
    """Heads that know nothing, of two classes with the same number of images."""
    chance = np.random.default_rng(seed)
    labels = pa.array(np.array(NAMES)[np.arange(images) % 2])
    first = chance.random((heads, images)).astype(np.float32)
    both = np.stack([first, 1 - first], axis=2)
    return [Predictions(ids(images, split), labels, NAMES, one) for one in both]


def able(images: int, seed: int = 0) -> list[Predictions]:
    """Heads that know something, one more than the other."""
    found = []
    for number, said in enumerate(noise(4, images, seed)):
        truth = (said.names()[:, None] == np.array(NAMES)).astype(np.float32)
        know = 0.2 + 0.1 * number
        mixed = know * truth + (1 - know) * said.probabilities
        found.append(Predictions(said.image_ids, said.labels, NAMES, mixed))
    return found


def right(said: Predictions, probabilities: np.ndarray) -> int:
    return int((np.array(NAMES)[probabilities.argmax(axis=1)] == said.names()).sum())


# --- what is not known is not claimed ------------------------------------------------


def chance_at_most(rows: int) -> float:
    """The share of right guesses that one in 500 guessers of two classes exceeds."""
    return float(binom.ppf(0.998, rows, 0.5)) / rows


def stored(store: Store, heads: int, images: int, seed: int) -> list[Artifact]:
    """Evaluations as evaluate writes them, of heads that know nothing."""
    sides = [
        noise(heads, images, seed + n, s) for n, s in enumerate((VALIDATION, TEST))
    ]
    made = []
    for number, splits in enumerate(zip(*sides, strict=True)):
        name = f"head {seed} {number}"
        document = key_document("evaluate", 1, {"head": name}, {})

        def write(
            folder: Path, splits: Sequence[Predictions] = splits, name: str = name
        ) -> str:
            metrics, rows = [], []
            for split, said in zip((VALIDATION, TEST), splits, strict=True):
                accuracy = right(said, said.probabilities) / images
                common = {"evaluation": name, "split": split}
                head = {"encoder_key": "e", "encoder": "e", "family": "f", "head": name}
                metrics += [
                    {**common, **head, "chosen": True, "images": images}
                    | {"metric": metric, "value": value}
                    for metric, value in (("accuracy", accuracy), ("log_loss", 1.0))
                ]
                rows += [
                    {**common, "image_id": image_id, "label": label}
                    | {"predicted": NAMES[int(p.argmax())], "confidence": p.max()}
                    | {"probabilities": p.tolist()}
                    for image_id, label, p in zip(
                        said.image_ids.to_pylist(),
                        said.names().tolist(),
                        said.probabilities,
                        strict=True,
                    )
                ]
            tables.write(METRICS, tables.from_rows(METRICS, metrics), folder)
            tables.write(PREDICTIONS, tables.from_rows(PREDICTIONS, rows), folder)
            (folder / "chosen.json").write_text(json.dumps({"classes": NAMES}))
            return name

        made.append(store.build("evaluations", document, write))
    return made


def manifest_of(store: Store, images: int) -> Artifact:
    rows = [
        {"image_id": image_id, "uri": image_id, "label": "ant", "split": split}
        | {"bytes": 1}
        for split in (VALIDATION, TEST)
        for image_id in ids(images, split).to_pylist()
    ]

    def write(folder: Path) -> str:
        tables.write(MANIFEST, tables.from_rows(MANIFEST, rows), folder)
        return "m"

    return store.build("manifests", key_document("ingest", 1, {}, {"n": images}), write)


def put_together(store: Store, heads: int, images: int, seed: int) -> Any:
    """The step of ``--ensemble greedy`` on noise, and its accuracy by split."""
    made = tuple(stored(store, heads, images, seed))
    manifest = Manifest(store, manifest_of(store, images), "photos")
    outcome = Average(
        Workspace(store), manifest, made, "greedy", 0, "temperature", 0.05
    ).run()
    rows = tables.read(METRICS, store.path(outcome.output)).to_pylist()
    found = {r["split"]: r["value"] for r in rows if r["metric"] == "accuracy"}
    return outcome.step, found


def test_the_greedy_ensemble_of_heads_that_know_nothing_reports_no_more_than_chance(
    store: Store,
):
    """Of 40 heads on 60 images; its members are right far more often there by luck."""
    images, times = 60, 6
    reported = [put_together(store, 40, images, 10 * n)[1] for n in range(times)]
    most = chance_at_most(images * times)
    assert np.mean([found[VALIDATION] for found in reported]) <= most
    assert np.mean([found[TEST] for found in reported]) <= most
    flattering = []
    for n in range(times):
        heads = noise(40, images, 10 * n)
        mean = averaged(heads, greedy(heads))
        flattering.append(right(mean, mean.probabilities) / images)
    assert np.mean(flattering) > most + 0.1


def test_calibration_on_top_learns_nothing_from_luck():
    """Where nothing is known the loss is a coin's; what luck taught looks like less."""
    honest, flattering = [], []
    for seed in range(5):
        heads, rows = noise(40, 100, seed), np.arange(100)
        found = cross_fitting.greedy("temperature", heads, rows)
        own = found.predictions.targets()
        honest.append(-np.log(found.calibrated[rows, own]).mean())
        chosen = averaged(heads, greedy(heads)).probabilities
        naive = calibration.cross_fitted("temperature", chosen, own, rows)
        flattering.append(-np.log(naive[rows, own]).mean())
    assert np.log(2) - 0.01 < np.mean(honest) < np.log(2) + 0.02
    assert np.mean(flattering) < np.log(2) - 0.05


# --- how it is done ------------------------------------------------------------------


def test_a_part_has_no_say_in_what_is_said_of_it():
    """Exchange in one part what is said of ants and of bees, as if labels were turned.

    What is made of that is the same, only exchanged too; other parts notice.
    """
    heads, units = able(60), np.arange(60)
    before = cross_fitting.greedy("temperature", heads, units)
    targets = before.predictions.targets()
    here = calibration.parts(targets, units) == 2
    ants, bees = (np.flatnonzero(here & (targets == k)) for k in (0, 1))
    order = np.arange(60)
    order[ants], order[bees] = bees, ants
    exchanged = [replace(one, probabilities=one.probabilities[order]) for one in heads]
    after = cross_fitting.greedy("temperature", exchanged, units)
    for new, old in (
        (after.predictions.probabilities, before.predictions.probabilities),
        (after.calibrated, before.calibrated),
    ):
        np.testing.assert_array_equal(new[here], old[order][here])
        assert not np.array_equal(new[~here], old[~here])


def test_groups_stay_together(monkeypatch: pytest.MonkeyPatch):
    """Members that predict an image were chosen without any image of its group."""
    heads, films = able(60), np.arange(60) // 4
    seen: list[set[int]] = []
    plain = cross_fitting.products

    def products(rows: Sequence[Predictions]) -> Any:
        seen.append(
            {
                int(image_id.split()[1]) // 4
                for image_id in rows[0].image_ids.to_pylist()
            }
        )
        return plain(rows)

    monkeypatch.setattr(cross_fitting, "products", products)
    cross_fitting.greedy("none", heads, films)
    assert len(seen) == calibration.PARTS
    times = Counter(film for part in seen for film in part)
    assert times == dict.fromkeys(range(15), 1)


def test_it_is_that_of_its_definition():
    """Every choice made from the rows themselves, none from sums over parts."""
    heads, units = able(50, seed=3), np.arange(50)
    found = cross_fitting.greedy("temperature", heads, units)
    targets = found.predictions.targets()
    part = calibration.parts(targets, units)

    def said(rows: np.ndarray, chosen_by: np.ndarray) -> np.ndarray:
        times = greedy(
            [one.of(one.image_ids.filter(pa.array(chosen_by))) for one in heads]
        )
        return averaged(
            [one.of(one.image_ids.filter(pa.array(rows))) for one in heads], times
        )

    for p in range(calibration.PARTS):
        here = part == p
        given = said(here, ~here).probabilities
        np.testing.assert_allclose(
            found.predictions.probabilities[here], given, rtol=1e-6
        )
        others, labels = [], []
        for q in set(range(calibration.PARTS)) - {p}:
            others.append(said(part == q, ~here & (part != q)).probabilities)
            labels.append(targets[part == q])
        taught = calibration.fit(
            "temperature", np.concatenate(others), np.concatenate(labels)
        )
        np.testing.assert_allclose(
            found.calibrated[here], taught.apply(given), rtol=1e-5
        )


def test_it_is_the_same_each_time_however_units_are_numbered():
    heads, units = able(41), np.arange(41)
    first, again = (cross_fitting.greedy("temperature", heads, units) for _ in range(2))
    np.testing.assert_array_equal(first.calibrated, again.calibrated)
    other = cross_fitting.greedy("temperature", heads, 1000 + 7 * units)
    np.testing.assert_array_equal(first.calibrated, other.calibrated)


def test_heads_of_different_classes_are_put_together():
    """Every class that a candidate knows has a column, whoever is chosen."""
    heads = able(30)
    more = Predictions(
        heads[0].image_ids,
        heads[0].labels,
        ["ant", "bee", "wasp"],
        np.hstack([heads[3].probabilities * 0.9, np.full((30, 1), 0.1, np.float32)]),
    )
    found = cross_fitting.greedy("temperature", [*heads, more], np.arange(30))
    assert found.predictions.classes == ["ant", "bee", "wasp"]
    np.testing.assert_allclose(found.calibrated.sum(axis=1), 1, rtol=1e-5)


# --- too few -------------------------------------------------------------------------


def test_of_too_few_images_the_best_head_is_taken_alone_and_the_run_says_why(
    store: Store,
):
    step, found = put_together(store, 6, 4, 0)
    assert step.reason == (
        "new: 1 of 6 heads: the best alone, as 4 held-out images (or groups) are too "
        "few to choose by, it takes 5"
    )
    heads = noise(6, 4, 0)
    assert found[VALIDATION] == max(right(one, one.probabilities) / 4 for one in heads)
    again, _ = put_together(store, 6, 4, 0)
    assert again.cached
    assert "the best alone" in again.reason


def test_images_of_few_groups_are_too_few():
    assert cross_fitting.shortage(np.arange(60) % 4)
    assert cross_fitting.shortage(np.arange(60) % 5) is None
