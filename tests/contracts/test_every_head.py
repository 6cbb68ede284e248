"""What every row of HEADS promises; a head that is added is tested by being listed."""

import json
import pickle
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import sklearn
import skops.io
from safetensors.numpy import load_file, save_file
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from tl_pipeline import heads
from tl_pipeline.config.specs import HeadConfig, HeadSpec
from tl_pipeline.errors import (
    DamagedArtifact,
    EncoderMismatch,
    InvalidSpec,
    StoreError,
    UnsafeModelFile,
)
from tl_pipeline.heads import HEADS, fitted, fitting, skops_files
from tl_pipeline.heads.calibrated_svm import CalibratedSVM
from tl_pipeline.heads.cosine import CentroidHead, NeighbourHead
from tl_pipeline.heads.discriminant import DiscriminantHead
from tl_pipeline.heads.linear.logistic import LogisticHead
from tl_pipeline.heads.neural.attentive import AttentiveHead
from tl_pipeline.heads.neural.classifiers import NeuralHead
from tl_pipeline.heads.preparation import Components
from tl_pipeline.heads.support_vectors import LinearSVMHead
from tl_pipeline.store.embeddings import Embeddings, Places

ENCODER = "0123456789abcdef"
# of the heads that have these parameters
SMALL = {"max_epochs": 5, "hidden": 16, "queries": 2, "values": 8}
LONG = {
    "mlp": {"max_epochs": 200, "hidden": 256},
    "softmax": {"max_epochs": 200, "learning_rate": 0.05},
    "cosine": {"max_epochs": 200, "learning_rate": 0.05},
    "attentive": {"max_epochs": 200, "learning_rate": 0.02},
}
PREPARED = {"l2": True, "pca": 2, "whiten": True}

every_head = pytest.mark.parametrize("name", list(HEADS))
every_prepared_head = pytest.mark.parametrize(
    "name", [row.name for row in HEADS.values() if "pca" in row.options]
)


def first(name: str, **params: Any) -> HeadConfig:
    """The first configuration of the default grid, with few epochs."""
    defaults = HEADS[name].defaults
    small = {key: value for key, value in SMALL.items() if key in defaults}
    spec = HeadSpec(name=name, params={**small, **params})
    return next(heads.grid(heads.complete(spec)))


def rows(
    classes: int, per_class: int = 8, width: int = 6, *, constant: bool = False
) -> tuple[Embeddings, np.ndarray]:
    """Noisy clusters, one per class, in shuffled order, with text labels.

    For heads that attend to places a row is two of them.
    """
    chance = np.random.default_rng(classes)
    names = np.repeat([f"class {i:02d}" for i in range(classes)], per_class)
    chance.shuffle(names)
    centres = dict(
        zip(np.unique(names), chance.normal(size=(classes, width)), strict=True)
    )
    vectors = np.stack([centres[name] for name in names])
    vectors += chance.normal(scale=0.5, size=vectors.shape)
    if constant:
        vectors[:, 0] = 3.0
    ids = [f"{i:04d}" for i in range(len(names))]
    return kept(ids, vectors), names


def kept(ids: list[str], vectors: np.ndarray) -> Embeddings:
    """Embeddings whose rows are two places, or one of an odd width."""
    places = Places(2 - vectors.shape[1] % 2)
    return Embeddings(ENCODER, ids, vectors.astype(np.float32), places)


def fit(
    name: str, *, classes: int = 3, seed: int = 7, **params: Any
) -> fitted.FittedHead:
    return fitting.fit(first(name, **params), seed, *rows(classes))


@every_head
def test_equal_seeds_give_equal_probabilities_whatever_runs_in_between(name: str):
    embeddings, _ = rows(3)
    before = fit(name).predict_proba(embeddings)
    fit(name, classes=5, seed=99)
    np.testing.assert_array_equal(fit(name).predict_proba(embeddings), before)


@every_head
def test_two_fits_at_once_do_not_disturb_each_other(name: str):
    embeddings, _ = rows(3)
    alone = [fit(name, seed=seed).predict_proba(embeddings) for seed in (1, 2)]
    barrier = Barrier(2)

    def together(seed: int) -> np.ndarray:
        barrier.wait(timeout=60)
        return fit(name, seed=seed).predict_proba(embeddings)

    with ThreadPoolExecutor(2) as threads:
        for expected, found in zip(alone, threads.map(together, (1, 2)), strict=True):
            np.testing.assert_array_equal(found, expected)


@every_head
def test_a_fit_leaves_the_global_generators_alone(name: str):
    """Another thread may be drawing an untrained network from torch's just then."""
    import torch

    numpy_before = np.random.get_state()[1].copy()  # noqa: NPY002
    torch_before = torch.get_rng_state()
    fit(name)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_before)


@every_head
@pytest.mark.parametrize(
    "made",
    [
        pytest.param(partial(rows, 2), id="2 classes"),
        pytest.param(partial(rows, 43, 3), id="43 classes"),
        pytest.param(partial(rows, 5, 1), id="one row per class"),
        pytest.param(partial(rows, 2, 1), id="two rows in all"),
        pytest.param(partial(rows, 3, constant=True), id="a constant feature"),
        pytest.param(partial(rows, 3, width=1), id="width 1"),
        pytest.param(partial(rows, 2, 1, 1, constant=True), id="nothing to learn from"),
    ],
)
def test_probabilities_are_those_of_the_sorted_labels(name: str, made: Any):
    embeddings, labels = made()
    head = fitting.fit(first(name), 0, embeddings, labels)
    found = head.predict_proba(embeddings)
    assert head.classes == sorted(set(labels))
    assert found.dtype == np.float32
    assert found.shape == (len(labels), len(head.classes))
    assert found.min() >= 0
    assert found.max() <= 1
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)


@every_head
def test_a_head_that_is_no_control_learns_separable_classes(name: str):
    embeddings, labels = rows(2, per_class=40)
    head = fitting.fit(first(name, **LONG.get(name, {})), 0, embeddings, labels)
    winners = head.predict_proba(embeddings).argmax(axis=1)
    accuracy = np.mean(np.array(head.classes)[winners] == labels)
    assert accuracy == 0.5 if HEADS[name].control else accuracy > 0.9


@every_head
def test_a_saved_head_comes_back_the_same(name: str, tmp_path: Path):
    embeddings, _ = rows(3)
    head = fit(name)
    fitted.save(head, tmp_path)
    loaded = fitted.load(tmp_path)
    for field in ("config", "seed", "encoder_key", "classes"):
        assert getattr(loaded, field) == getattr(head, field)
    np.testing.assert_array_equal(
        loaded.predict_proba(embeddings), head.predict_proba(embeddings)
    )


@every_prepared_head
def test_a_head_after_steps_of_preparation_comes_back_the_same(
    name: str, tmp_path: Path
):
    embeddings, _ = rows(3)
    head = fit(name, **PREPARED)
    assert head.preparation.l2
    assert head.preparation.axes.shape == (2, 6)
    fitted.save(head, tmp_path)
    np.testing.assert_array_equal(
        fitted.load(tmp_path).predict_proba(embeddings), head.predict_proba(embeddings)
    )


@every_prepared_head
@pytest.mark.parametrize(
    "params",
    [{"scale": "none"}, {"scale": "standard", "pca": 0.9}, {"whiten": True, "pca": 99}],
    ids=str,
)
@pytest.mark.parametrize(
    "made",
    [
        pytest.param(partial(rows, 3), id="3 classes"),
        pytest.param(partial(rows, 5, 1), id="one row per class"),
        pytest.param(partial(rows, 2, 1, 1, constant=True), id="nothing to learn from"),
    ],
)
def test_every_preparation_gives_probabilities(name: str, params: Any, made: Any):
    embeddings, labels = made()
    found = fitting.fit(first(name, **params), 0, embeddings, labels)
    probabilities = found.predict_proba(embeddings)
    assert np.isfinite(probabilities).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)


@every_head
def test_embeddings_are_left_as_they_are(name: str):
    embeddings, labels = rows(3)
    before = embeddings.vectors.copy()
    prepared = PREPARED if "pca" in HEADS[name].options else {}
    for params in ({}, prepared):
        fitting.fit(first(name, **params), 0, embeddings, labels).predict_proba(
            embeddings
        )
        np.testing.assert_array_equal(embeddings.vectors, before)


@every_head
def test_probabilities_of_a_row_do_not_depend_on_the_rows_beside_it(name: str):
    """So neither on the classes that a validation split happens to have."""
    embeddings, labels = rows(3)
    head = fit(name)
    some = np.flatnonzero(labels != "class 01")
    part = kept([embeddings.image_ids[i] for i in some], embeddings.vectors[some])
    found = head.predict_proba(part)
    assert found.shape == (len(some), 3)
    np.testing.assert_allclose(
        found, head.predict_proba(embeddings)[some], rtol=1e-3, atol=1e-5
    )


@every_head
@pytest.mark.parametrize("params", [{}, PREPARED], ids=["plain", "prepared"])
def test_weights_are_taken_by_all_heads_but_one(name: str, params: dict[str, Any]):
    if params and "pca" not in HEADS[name].options:
        params = {}
    embeddings, labels = rows(3)
    weights = np.random.default_rng(0).uniform(0.1, 3, len(labels))
    config = first(name, **params)
    if name == "knn":
        with pytest.raises(InvalidSpec, match="'knn' cannot take the weights"):
            fitting.fit(config, 0, embeddings, labels, weights)
        return
    plain = fitting.fit(config, 0, embeddings, labels).predict_proba(embeddings)
    head = fitting.fit(config, 0, embeddings, labels, weights)
    assert np.abs(head.predict_proba(embeddings) - plain).max() > 1e-6


@pytest.mark.parametrize("name", ["logistic", "linear_svm"])
def test_a_saved_head_tells_how_near_to_its_optimum_it_ended(name: str, tmp_path: Path):
    for params in ({}, PREPARED):
        fitted.save(fit(name, **params), tmp_path)
        about = json.loads((tmp_path / "head.json").read_text())
        assert about["converged"] is True
        assert 0 <= about["relative_gap"] < 1e-8
        assert about["iterations"] > 0


@pytest.mark.parametrize(
    "name",
    [
        row.name
        for row in HEADS.values()
        # directions from the mean have no intercept that could be shifted
        if "class_weight" in row.options and row.name != "cosine"
    ],
)
def test_balanced_classes_give_a_rare_one_its_chance(name: str):
    chance = np.random.default_rng(0)
    labels = np.repeat(["common", "rare"], [180, 20])
    vectors = chance.normal(size=(200, 3)) + (labels == "rare")[:, None] * 0.8
    ids = [f"{i:04d}" for i in range(200)]
    embeddings = kept(ids, vectors)
    params = dict(LONG.get(name, {}))
    if name == "rbf_svm":
        params["C"] = 0.5
    found = [
        fitting.fit(
            first(name, class_weight=weight, **params), 0, embeddings, labels
        ).predict_proba(embeddings)[:, 1]
        for weight in ("none", "balanced")
    ]
    assert found[1].mean() > found[0].mean() + 0.1


@every_head
def test_a_head_refuses_embeddings_of_another_encoder(name: str):
    embeddings, _ = rows(3)
    other = Embeddings("fedcba", embeddings.image_ids, embeddings.vectors)
    with pytest.raises(EncoderMismatch, match=f"{ENCODER}.*fedcba"):
        fit(name).predict_proba(other)


@every_head
def test_no_embeddings_give_no_probabilities_in_all_columns(name: str):
    # EmbeddingFolder.load knows no width when it finds nothing
    none = Embeddings(ENCODER, [], np.empty((0, 0), np.float32))
    assert fit(name).predict_proba(none).shape == (0, 3)


MODEL = fitted.FILE


@every_head
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("which", ["head.json", "model"])
def test_a_truncated_head_is_damaged(
    name: str, which: str, share: float, tmp_path: Path
):
    fitted.save(fit(name), tmp_path)
    file = tmp_path / (MODEL if which == "model" else which)
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DamagedArtifact, match=str(tmp_path)):
        fitted.load(tmp_path)


@every_head
@pytest.mark.parametrize("which", ["head.json", "model"])
def test_a_head_without_one_of_its_files_is_damaged(
    name: str, which: str, tmp_path: Path
):
    fitted.save(fit(name), tmp_path)
    (tmp_path / (MODEL if which == "model" else which)).unlink()
    with pytest.raises(DamagedArtifact, match=str(tmp_path)):
        fitted.load(tmp_path)


@pytest.mark.parametrize("about", ["[]", "{}", '{"config": {"name": "knn"}}'])
def test_a_head_json_that_describes_no_head_is_damaged(about: str, tmp_path: Path):
    fitted.save(fit("logistic"), tmp_path)
    (tmp_path / "head.json").write_text(about)
    with pytest.raises(DamagedArtifact, match=str(tmp_path)):
        fitted.load(tmp_path)


def test_tensors_of_another_shape_are_a_damaged_head(tmp_path: Path):
    fitted.save(fit("mlp"), tmp_path)
    file = tmp_path / "head.json"
    about = json.loads(file.read_text())
    about["config"]["params"]["hidden"] += 1
    file.write_text(json.dumps(about))
    with pytest.raises(DamagedArtifact, match=str(tmp_path)):
        fitted.load(tmp_path)


NO_SCIKIT_LEARN = """
import sys
from pathlib import Path

import numpy as np

from tl_pipeline.heads import fitted
from tl_pipeline.store.embeddings import Embeddings

rows = np.load(sys.argv[1] + "/rows.npy")
for folder in sorted(Path(sys.argv[1]).glob("*/")):
    head = fitted.load(folder)
    embeddings = Embeddings(head.encoder_key, list(map(str, range(len(rows)))), rows)
    np.save(folder / "again.npy", head.predict_proba(embeddings))
assert not [name for name in sys.modules if name.startswith(("sklearn", "skops"))]
"""


def test_no_head_needs_scikit_learn_to_predict(tmp_path: Path):
    embeddings, _ = rows(3)
    np.save(tmp_path / "rows.npy", embeddings.vectors)
    expected = {}
    for row in HEADS.values():
        for params in ({}, PREPARED) if "pca" in row.options else ({},):
            head = fit(row.name, **params)
            folder = tmp_path / f"{row.name}-{len(params)}"
            folder.mkdir()
            fitted.save(head, folder)
            expected[folder] = head.predict_proba(embeddings)
    subprocess.run([sys.executable, "-c", NO_SCIKIT_LEARN, tmp_path], check=True)
    for folder, probabilities in expected.items():
        again = np.load(folder / "again.npy")
        np.testing.assert_allclose(again, probabilities, atol=1e-6)


@every_head
def test_a_head_in_numbers_says_what_its_estimator_says(name: str):
    embeddings, labels = rows(3)
    for params in ({}, PREPARED) if "pca" in HEADS[name].options else ({},):
        config = first(name, **params)
        estimator = fitting.build(config, 7, embeddings.places)
        estimator.fit(embeddings.vectors, labels)
        head = fitting.fitted_head(config, 7, ENCODER, estimator)
        np.testing.assert_allclose(
            head.predict_proba(embeddings),
            estimator.predict_proba(embeddings.vectors),
            atol=1e-6,
        )


# --- heads of version 0.1 ------------------------------------------------------------


def as_version_0_1(
    config: HeadConfig, estimator: Any, folder: Path, release: str | None = None
) -> None:
    """Write a fitted ``estimator`` as version 0.1 did, with the names of its types.

    ``release`` is that of scikit-learn which the file says wrote it.
    """
    file, names = folder / "head.skops", {}
    skops.io.dump(estimator, file)
    for (old, name), (module, today) in skops_files.OLDER_TYPES.items():
        names[f"tl_pipeline.heads.{module}", today] = (old, name)
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    schema = json.loads(parts["schema.json"])
    for node in skops_files._nodes(schema):
        kind = (node.get("__module__"), node.get("__class__"))
        if kind in names:
            node["__module__"], node["__class__"] = names[kind]
        if "inverse_temperature_" in node:
            node["sharpness_"] = node.pop("inverse_temperature_")
        if release and "_sklearn_version" in node:
            node["_sklearn_version"]["content"] = json.dumps(release)
    parts["schema.json"] = json.dumps(schema).encode()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    about = {
        "config": config.model_dump(mode="json"),
        "seed": 7,
        "encoder_key": ENCODER,
        "classes": [str(name) for name in estimator.classes_],
        "file": "head.skops",
    }
    (folder / "head.json").write_text(json.dumps(about))


@pytest.mark.parametrize(
    "name",
    [name for name in HEADS if name not in ("logistic", "majority", "attentive")],
)
def test_a_head_that_version_0_1_kept_in_skops_comes_back(name: str, tmp_path: Path):
    embeddings, labels = rows(3)
    config = first(name, **PREPARED)
    estimator = fitting.build(config, 7).fit(embeddings.vectors, labels)
    as_version_0_1(config, estimator, tmp_path)
    np.testing.assert_allclose(
        fitted.load(tmp_path).predict_proba(embeddings),
        estimator.predict_proba(embeddings.vectors),
        atol=1e-6,
    )


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(
    ("name", "params", "model"),
    [
        ("logistic", {"C": 0.1}, LogisticRegression(C=0.1)),
        ("linear", {"C": 0.1, "pca": 4}, LogisticHead(0.1, standardise=False)),
        ("majority", {}, DummyClassifier(strategy="prior")),
    ],
)
def test_linear_heads_and_the_majority_of_version_0_1_come_back(
    name: str, params: dict[str, Any], model: Any, classes: int, tmp_path: Path
):
    embeddings, labels = rows(classes)
    steps = [StandardScaler()] if name != "majority" else []
    steps += [Components(4)] if "pca" in params else []
    estimator = make_pipeline(*steps, model).fit(embeddings.vectors, labels)
    as_version_0_1(HeadConfig(name=name, params=params), estimator, tmp_path)
    found = fitted.load(tmp_path)
    assert found.config.name == {"linear": "logistic"}.get(name, name)
    np.testing.assert_allclose(
        found.predict_proba(embeddings),
        estimator.predict_proba(embeddings.vectors),
        atol=1e-6,
    )


def test_a_linear_head_that_version_0_1_kept_as_tensors_comes_back(tmp_path: Path):
    embeddings, _ = rows(3)
    head = fit("logistic")
    fitted.save(head, tmp_path)
    tensors = load_file(tmp_path / MODEL)
    tensors["sharpness"] = tensors.pop("inverse_temperature")
    save_file(tensors, tmp_path / MODEL)
    about = json.loads((tmp_path / "head.json").read_text())
    about["config"]["name"] = "linear"
    (tmp_path / "head.json").write_text(json.dumps(about))
    np.testing.assert_array_equal(
        fitted.load(tmp_path).predict_proba(embeddings), head.predict_proba(embeddings)
    )


def test_a_kind_of_head_that_is_no_more_is_said(tmp_path: Path):
    fitted.save(fit("logistic"), tmp_path)
    about = json.loads((tmp_path / "head.json").read_text())
    about["config"]["name"] = "random_forest"
    (tmp_path / "head.json").write_text(json.dumps(about))
    with pytest.raises(StoreError, match=r"no heads of the kind 'random_forest'"):
        fitted.load(tmp_path)


def test_a_file_that_another_scikit_learn_wrote_names_both_releases(tmp_path: Path):
    """Only where it cannot be read: numbers alone are taken, which seldom change."""
    embeddings, labels = rows(3)
    config = HeadConfig(name="logistic", params={"C": 0.1})
    whole = LogisticRegression(C=0.1).fit(embeddings.vectors, labels)
    as_version_0_1(config, whole, tmp_path, release="99.1.0")
    fitted.load(tmp_path)
    del whole.coef_
    as_version_0_1(config, whole, tmp_path, release="99.1.0")
    said = (
        rf"written by scikit-learn 99\.1\.0 and cannot be read by {sklearn.__version__}"
    )
    with pytest.raises(StoreError, match=said):
        fitted.load(tmp_path)
    as_version_0_1(config, whole, tmp_path)
    with pytest.raises(DamagedArtifact, match="coef_"):
        fitted.load(tmp_path)


@pytest.mark.parametrize(
    ("smuggled", "kind"),
    [
        (partial(print, "run"), "functools.partial"),
        (RandomForestClassifier(2).fit([[0], [1]], [0, 1]), "sklearn.tree._tree.Tree"),
    ],
    ids=["partial", "forest"],
)
def test_types_that_no_head_wrote_are_not_loaded(
    smuggled: Any, kind: str, tmp_path: Path
):
    config = HeadConfig(name="logistic", params={"C": 0.1})
    embeddings, labels = rows(3)
    estimator = LogisticRegression().fit(embeddings.vectors, labels)
    as_version_0_1(config, estimator, tmp_path)
    skops.io.dump(smuggled, tmp_path / "head.skops")
    with pytest.raises(UnsafeModelFile, match=kind):
        fitted.load(tmp_path)


# --- what is not loaded --------------------------------------------------------------


@every_head
@pytest.mark.parametrize("other", ["head.pkl", "../head.safetensors", "head.bin"])
def test_a_head_json_that_names_another_file_is_unsafe(
    name: str, other: str, tmp_path: Path
):
    fitted.save(fit(name), tmp_path)
    file = tmp_path / "head.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "file": other}))
    with pytest.raises(UnsafeModelFile, match=f"{MODEL}, not in {other}"):
        fitted.load(tmp_path)


class Trap:
    """Unpickling it makes the file ``mark``."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


@every_head
def test_a_renamed_pickle_is_refused_and_runs_no_code(name: str, tmp_path: Path):
    mark, trap = tmp_path / "ran", tmp_path / "trap"
    trap.write_bytes(pickle.dumps(Trap(mark)))
    pickle.loads(trap.read_bytes())
    assert mark.exists()  # so the trap works
    mark.unlink()
    fitted.save(fit(name), tmp_path)
    trap.replace(tmp_path / MODEL)
    with pytest.raises((UnsafeModelFile, DamagedArtifact), match=str(tmp_path)):
        fitted.load(tmp_path)
    assert not mark.exists()


WEIGHTS_REPEAT = "check_sample_weight_equivalence_on_dense_data"
CLASS_WEIGHTS = "check_class_weight_classifiers"
FAILING: dict[str, dict[str, str]] = {
    "NeuralHead": {WEIGHTS_REPEAT: "batches are drawn by chance"},
    "CentroidHead": {WEIGHTS_REPEAT: "of two equal rows only one is left out"},
    "AttentiveHead": {WEIGHTS_REPEAT: "batches are drawn by chance"},
    "CalibratedSVM": {WEIGHTS_REPEAT: "rows are divided by chance"},
    "LinearSVMHead": {WEIGHTS_REPEAT: "rows are divided by chance"},
}


def failing(head: Any) -> dict[str, str]:
    """The checks that are known to fail for ``head``, and why."""
    known = FAILING.get(type(head).__name__, {})
    if getattr(head, "cosine", False):
        return known | {CLASS_WEIGHTS: "directions from the mean have no intercept"}
    return known


def checked(*estimators: Any) -> Any:
    """scikit-learn's own checks of an estimator, one test each."""
    return parametrize_with_checks(list(estimators), expected_failed_checks=failing)


@checked(
    NeuralHead(hidden=16, dropout=0.1, learning_rate=0.02, max_epochs=40),
    NeighbourHead(k=5),
    CalibratedSVM(SVC(), random_state=0),
    Components(2),
)
def test_an_estimator_of_each_kind_is_one_of_scikit_learn(estimator: Any, check: Any):
    check(estimator)


@pytest.mark.exhaustive
@checked(
    NeuralHead(hidden=0, learning_rate=0.05, max_epochs=40),
    NeuralHead(hidden=0, cosine=True, learning_rate=0.05, max_epochs=40),
    AttentiveHead(queries=2, values=8, learning_rate=0.02, max_epochs=40),
    DiscriminantHead(),
    CentroidHead(),
    LinearSVMHead(random_state=0),
)
def test_the_other_estimators_are_those_of_scikit_learn(estimator: Any, check: Any):
    check(estimator)


def test_the_weights_of_the_mlp_are_factors_of_the_loss():
    """Equal ones change nothing, and of others the ratios alone count."""
    embeddings, labels = rows(3, per_class=20)
    ones, some = np.ones(60), np.random.default_rng(0).uniform(0.1, 3, 60)

    def fitted_with(weights: np.ndarray | None) -> np.ndarray:
        head = NeuralHead(hidden=16, max_epochs=20, learning_rate=0.01)
        head.fit(embeddings.vectors, labels, sample_weight=weights)
        return head.predict_proba(embeddings.vectors)

    plain, weighed = fitted_with(None), fitted_with(some)
    np.testing.assert_allclose(fitted_with(4 * ones), plain, atol=1e-4)
    np.testing.assert_allclose(fitted_with(4 * some), weighed, atol=1e-4)
    assert np.abs(weighed - plain).max() > 0.01
    heavy = fitted_with(np.where(labels == "class 01", 50.0, 1.0))
    assert heavy[:, 1].mean() > plain[:, 1].mean() + 0.01


def test_the_weighted_moments_of_the_mlp_are_those_of_repeated_rows():
    embeddings, labels = rows(3, per_class=2000)
    weights = np.random.default_rng(0).integers(1, 4, 6000)
    head = NeuralHead(hidden=2, max_epochs=1)
    head.fit(embeddings.vectors, labels, sample_weight=weights)
    repeated = np.repeat(embeddings.vectors, weights, axis=0)
    np.testing.assert_allclose(head.mean_, repeated.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(head.scale_, repeated.std(axis=0), atol=1e-5)
