"""All C and folds of `logistic` against scikit-learn's GridSearchCV.

``.venv/bin/python benchmarks/heads.py [digits] [gtsrb] [wide]`` runs 8 C x 3 folds and
a refit at the best C in processes of their own, in turn, and records medians of
seconds, the best accuracy and peak memory in RESULTS.md; then how far from the optimum
both end, and the folds' scores by ``fold_tol``. gtsrb needs the folder of shared data,
at $TL_SHARED or ../shared; without it that row says so.

scikit-learn stops by the gradient, which is small where the penalty is weak, wherever
one is. So GridSearchCV also runs at a tolerance of its own (``CLOSE``), at which its
losses are within 1e-3 of the least; those of `logistic` are within 1e-6.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import scipy.fft
import scipy.special
import sklearn
from results import machine, processor, record
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tl_pipeline.config.specs import EncoderSpec, HeadSpec, RunSpec
from tl_pipeline.pipeline import wiring
from tl_pipeline.store.artifacts import Store

HERE = Path(__file__).parent
SHARED = Path(os.environ.get("TL_SHARED", HERE.parent.parent / "shared"))
CS = np.logspace(-4, 1, 8)
FOLDS = 3
WEIGHTS = SHARED / "weights/squeezenet1_0-imagenet-deepcompression.pth"
CATALOG = f"""
version: 1
datasets:
  digits: {{type: digits}}
  gtsrb:
    type: torchvision
    dataset: GTSRB
    path: {SHARED / "data/gtsrb-root"}
    split: {{strategy: group}}
"""
USUAL, CLOSE = 1e-4, 1e-8  # of LogisticRegression: its default, and see above
WEAK = (1e2, 1e3, 1e4)
FOLD_TOLS = (1e-9, 1e-8, 1e-7, 1e-6, 1e-5)
TOLERANCES = "Folds of `logistic` scored at a looser tolerance"
TITLE = "A grid of linear heads: 8 C x 3 folds and a refit"
EXCESS = "How far from the optimum linear heads end"


def synthetic(n: int, width: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Correlated features whose classes differ in directions of every variance.

    Variances fall with the number of the direction to the power -1.6; a cosine
    transform mixes the directions into features.
    """
    chance = np.random.default_rng(0)
    spread = (np.arange(1, width + 1) ** -0.8).astype(np.float32)
    spread *= chance.choice([-1, 1], width).astype(np.float32)
    centres = chance.standard_normal((classes, width), np.float32) * 10 / width**0.5
    y = chance.integers(classes, size=n)
    x = np.empty((n, width), np.float32)
    for first in range(0, n, 4096):
        rows = slice(first, first + 4096)
        noise = chance.standard_normal((len(y[rows]), width), np.float32)
        x[rows] = scipy.fft.dct((noise + centres[y[rows]]) * spread, norm="ortho")
    return x, y


def folds(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The fold of each row, as GridSearchCV draws them."""
    found = np.empty(len(y), int)
    for fold, (_, held) in enumerate(StratifiedKFold(FOLDS).split(x, y)):
        found[held] = fold
    return found


def grid_search(x: np.ndarray, y: np.ndarray, tol: float = USUAL) -> dict[str, object]:
    """scikit-learn's, as its users search C."""
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000, tol=tol))
    search = GridSearchCV(
        model, {"logisticregression__C": CS}, cv=FOLDS, n_jobs=2, refit=True
    ).fit(x, y)
    scores = search.cv_results_["mean_test_score"]
    last = search.best_estimator_[-1]
    return {"accuracy": scores.tolist(), "iterations": int(last.n_iter_[0])}


def scored(path: Any, x: np.ndarray, y: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Mean accuracy and log loss over the folds ``of`` (n,), (C, 2)."""
    targets = np.unique(y, return_inverse=True)[1]
    found = np.zeros((len(path.cs), FOLDS, 2))
    for head in path.heads:
        held = of == head.fold
        logits = head.decision_function(x[held].astype(np.float64))
        own = logits[np.arange(held.sum()), targets[held]]
        losses = scipy.special.logsumexp(logits, axis=1) - own
        right = logits.argmax(axis=1) == targets[held]
        found[path.cs.index(head.c), head.fold] = right.mean(), losses.mean()
    return found.mean(axis=1)


def logistic(x: np.ndarray, y: np.ndarray) -> dict[str, object]:
    """Our path, and the refit."""
    from tl_pipeline.heads.linear.logistic import LogisticHead  # noqa: PLC0415
    from tl_pipeline.heads.linear.regularization_path import fit_path  # noqa: PLC0415

    of = folds(x, y)
    path = fit_path(x, y, CS, of)
    scores = scored(path, x, y, of)[:, 0]
    LogisticHead(path.cs[int(scores.argmax())]).fit(x, y)
    iterations = max(head.iterations for head in path.heads)
    gap = max(head.gap for head in path.heads)
    return {"accuracy": scores.tolist(), "iterations": iterations, "gap": gap}


METHODS = {
    "GridSearchCV": grid_search,
    "GridSearchCV, close": partial(grid_search, tol=CLOSE),
    "logistic": logistic,
}


def excess(x: np.ndarray, y: np.ndarray) -> list[dict[str, float]]:
    """Of each C, trained without the first fold: how much the loss is above the least.

    Relative, penalty included. The least is that of `logistic` at 1e-10.
    """
    from tl_pipeline.heads.linear.regularization_path import PathHead, fit_path  # noqa: PLC0415

    fold = np.where(folds(x, y) == 0, 0, -1)
    train = fold < 0
    rows = StandardScaler().fit_transform(x[train].astype(np.float64))
    targets = np.unique(y[train], return_inverse=True)[1]

    def loss(c: float, coef: np.ndarray, intercept: np.ndarray) -> float:
        logits = rows @ coef.T.astype(np.float64) + intercept
        own = logits[np.arange(len(targets)), targets]
        losses = scipy.special.logsumexp(logits, axis=1) - own
        return c * losses.sum() + np.square(coef, dtype=np.float64).sum() / 2

    def of_path(tol: float) -> list[float]:
        heads: list[PathHead] = fit_path(x, y, CS, fold, tol=tol, fold_tol=tol).heads
        return [loss(head.c, head.coef, head.intercept) for head in heads]

    def of_scikit_learn(tol: float) -> list[float]:
        fitted = [
            LogisticRegression(C=c, max_iter=5000, tol=tol).fit(
                rows.astype(np.float32), targets
            )
            for c in CS
        ]
        return [loss(one.C, one.coef_, one.intercept_) for one in fitted]

    least = of_path(1e-10)
    found = {
        "usual": of_scikit_learn(USUAL),
        "close": of_scikit_learn(CLOSE),
        "logistic": of_path(1e-7),
    }
    return [
        {"c": c, **{name: losses[at] / least[at] - 1 for name, losses in found.items()}}
        for at, c in enumerate(CS)
    ]


def tolerances(x: np.ndarray, y: np.ndarray) -> list[dict[str, float]]:
    """How scores of folds differ from those at 1e-9, at worst over CS and WEAK."""
    from tl_pipeline.heads.linear.regularization_path import fit_path  # noqa: PLC0415

    found, scores, of = [], [], folds(x, y)
    for tol in FOLD_TOLS:
        started = time.perf_counter()
        path = fit_path(x, y, [*CS, *WEAK], of, fold_tol=tol)
        seconds = time.perf_counter() - started
        scores.append(scored(path, x, y, of).T)
        found.append(
            {
                "tol": tol,
                "accuracy": np.abs(scores[-1][0] - scores[0][0]).max().item(),
                "log_loss": np.abs(scores[-1][1] / scores[0][1] - 1).max().item(),
                "seconds": seconds,
                "iterations": sum(head.iterations for head in path.heads),
                "left": sum(not head.converged for head in path.heads),
            }
        )
    return found


TABLES: dict[str, Callable[[np.ndarray, np.ndarray], list[dict[str, float]]]] = {
    "excess": excess,
    "tolerances": tolerances,
}


def peak() -> float:
    """Peak memory of this process in MB, without its parent's (so not getrusage)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1000


def child(method: str, folder: Path) -> None:
    """Measure ``method`` on the arrays in ``folder``, and print what was found."""
    if method in TABLES:
        x, y = np.load(folder / "x.npy"), np.load(folder / "y.npy")
        print(json.dumps(TABLES[method](x, y)))
        return
    warnings.simplefilter("error")
    # the code of the libraries and their threads and workers are no data
    METHODS[method](*synthetic(300, 16, 4))
    before = peak()
    x, y = np.load(folder / "x.npy"), np.load(folder / "y.npy")
    started = time.perf_counter()
    found = METHODS[method](x, y)
    found["seconds"] = time.perf_counter() - started
    found["times_data"] = (peak() - before) / (x.nbytes / 1e6)
    print(json.dumps(found))


def measure(method: str, folder: Path) -> Any:
    """``child`` in a process of its own."""
    command = (sys.executable, __file__, "--child", method, "--folder", str(folder))
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def embedded(
    dataset: str, encoder: EncoderSpec, store: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings and labels of the training and validation images of ``dataset``.

    Read from the ``store`` of an earlier run, else made by a run in it.
    """
    tables = store / "catalog.duckdb"
    if not tables.exists():
        catalog = store.with_suffix(".yaml")
        catalog.write_text(CATALOG)
        spec = RunSpec(
            dataset=dataset,
            backbones=(encoder,),
            heads=(HeadSpec.parse("ridge:alpha=100"),),
        )
        wiring.run(wiring.prepare(spec, Store(store), catalog_file=catalog))
    with duckdb.connect(str(tables), read_only=True) as connection:
        rows = connection.execute(
            "SELECT e.embedding, i.label FROM embeddings e JOIN encoders USING "
            "(encoder_key) JOIN images i USING (image_id) WHERE i.dataset = ? AND "
            "backbone = ? AND weights NOT LIKE 'random%' AND i.split <> 'test' "
            "ORDER BY image_id",
            [dataset, encoder.backbone],
        ).fetchnumpy()
    return np.stack(rows["embedding"]).astype(np.float32), rows["label"].astype(str)


def load_average() -> str:
    """Of the last minute: on two cores more than 2 means that others compute too."""
    return f"{os.getloadavg()[0]:.1f}"


def case(name: str, folder: Path, store: Path | None, rounds: int) -> dict[str, str]:
    """Rows of each table for one case, by its title, or why there are none."""
    if name == "wide":
        x, y = synthetic(40_000, 4096, 43)
    elif name == "gtsrb" and store is None and not WEIGHTS.exists():
        return {TITLE: f"| {name} | skipped: no shared data |"}
    else:
        encoder = EncoderSpec(backbone="lenet5")
        if name == "gtsrb":
            encoder = EncoderSpec(backbone="squeezenet1_0", weights=str(WEIGHTS))
        x, y = embedded(name, encoder, store or folder / f"store-{name}")
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)
    shape = f"{name}: {len(x):,} x {x.shape[1]:,}, {len(set(y))} classes"
    del x, y
    # what takes ten minutes as it is would take an hour
    methods = [m for m in METHODS if name != "wide" or m != "GridSearchCV, close"]
    before = load_average()
    found: dict[str, list[dict[str, Any]]] = {method: [] for method in methods}
    for _ in range(rounds):
        for method, runs in found.items():
            runs.append(measure(method, folder))
            print(name, method, json.dumps(runs[-1]), flush=True)
    load = f"{before} - {load_average()}"
    rows = {TITLE: "\n".join(_compared(shape, m, found, load) for m in methods)}
    if name != "wide":
        rows[EXCESS] = "\n".join(
            f"| {name} | {row['c']:.1e} | {row['usual']:.0e} | {row['close']:.0e} | "
            f"{row['logistic']:.0e} |"
            for row in measure("excess", folder)
        )
    rows[TOLERANCES] = "\n".join(
        f"| {name} | {row['tol']:.0e} | {row['accuracy']:.4f} | "
        f"{100 * row['log_loss']:.2f} % | {row['iterations']} | "
        f"{row['left']} | {row['seconds']:.1f} |"
        for row in measure("tolerances", folder)
    )
    return rows


def _compared(
    shape: str, method: str, found: dict[str, list[dict[str, Any]]], load: str
) -> str:
    """The row of one method: medians, and how many times ours it takes."""

    def median(name: str, value: str) -> float:
        return statistics.median(run[value] for run in found[name])

    seconds = median(method, "seconds")
    first = found[method][0]
    cells = [
        *(shape, method, f"{seconds:.1f}"),
        f"{seconds / median('logistic', 'seconds'):.1f}",
        *(f"{max(first['accuracy']):.4f}", f"{first['iterations']}"),
        *(f"{median(method, 'times_data'):.1f}", load),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure each case and write RESULTS.md."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("cases", nargs="*", default=["digits", "gtsrb", "wide"])
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--store", type=Path, help="a store with the embeddings")
    arguments.add_argument("--child", choices=[*METHODS, *TABLES])
    arguments.add_argument("--folder", type=Path)
    given = arguments.parse_args()
    if given.child:
        child(given.child, given.folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        found = [case(c, Path(folder), given.store, given.rounds) for c in given.cases]
    for title, text in (
        (TITLE, _said(given.cases, given.rounds)),
        (EXCESS, SAID_OF_EXCESS),
        (TOLERANCES, SAID_OF_TOLERANCES),
    ):
        record(title, text.format("\n".join(rows.get(title, "") for rows in found)))


def _said(cases: list[str], rounds: int) -> str:
    return (
        f"`python benchmarks/heads.py {' '.join(cases)} --rounds {rounds}`, in turn, "
        f"medians; {machine()}, scikit-learn {sklearn.__version__}; {processor()}.\n\n"
        "| | | s | times `logistic` | best accuracy | iterations | memory / data "
        "| load |"
        "\n|---|---|---|---|---|---|---|---|\n{}\n\n"
        f"C = {', '.join(f'{c:.1e}' for c in CS)}. GridSearchCV(n_jobs=2) runs "
        "StandardScaler and LogisticRegression(max_iter=5000) at its default tolerance "
        f"of {USUAL:g}; `close` at {CLOSE:g}, which brings its losses to within 1e-3 "
        "of the least (next table). `logistic` goes on to a relative gap of 1e-7 for "
        "folds and 1e-9 for the refit. All ran on 300 other rows before clock and "
        "memory are read: none counts the start of libraries, threads and workers. "
        "Iterations: those of scikit-learn's refit at its best C, and the most of any "
        "of our heads. Memory: the peak beyond what it was then, over the size of the "
        "float32 rows; GridSearchCV without its workers. Load: the machine's load "
        "average before and after."
    )


SAID_OF_EXCESS = (
    "Trained without the first fold: how much larger than the least the penalised loss "
    "is, relative. scikit-learn gets float32, as in the pipeline.\n\n"
    f"| | C | LogisticRegression, tol={USUAL:g} | tol={CLOSE:g} | `logistic`, 1e-7 |\n"
    "|---|---|---|---|---|\n{}"
)
SAID_OF_TOLERANCES = (
    f"The same rows, folds and C, and C = {', '.join(f'{c:g}' for c in WEAK)}; the "
    "greatest difference of any C's mean score from that at 1e-9. The default of "
    "`fold_tol` is 1e-7.\n\n"
    "| | `fold_tol` | accuracy | log loss | iterations, all heads | "
    "not converged | s |\n|---|---|---|---|---|---|---|\n{}"
)


if __name__ == "__main__":
    main()
