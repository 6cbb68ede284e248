"""All C and folds of `linear` against scikit-learn's GridSearchCV of `logistic`.

``.venv/bin/python benchmarks/heads.py [digits] [gtsrb] [wide]`` runs 8 C x 3 folds and
a refit at the best C in two processes, in turn, and records seconds, the best accuracy
and peak memory in RESULTS.md; then the folds' scores by ``fold_tol``. gtsrb needs the
folder of shared data, at $TL_SHARED or ../shared; without it that row says so.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import scipy.fft
import sklearn
from results import machine, record
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tl_pipeline import pipeline
from tl_pipeline.artifacts import Store
from tl_pipeline.specs import EncoderSpec, HeadSpec, RunSpec

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
WEAK = (1e2, 1e3, 1e4)
FOLD_TOLS = (1e-9, 1e-8, 1e-7, 1e-6, 1e-5)
TOLERANCES = "Folds of `linear` scored at a looser tolerance"
TITLE = "A grid of linear heads: 8 C x 3 folds and a refit"


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


def grid_search(x: np.ndarray, y: np.ndarray) -> dict[str, object]:
    """The head `logistic`, as users search its C."""
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    search = GridSearchCV(
        model, {"logisticregression__C": CS}, cv=FOLDS, n_jobs=2, refit=True
    ).fit(x, y)
    scores = search.cv_results_["mean_test_score"]
    last = search.best_estimator_[-1]
    return {"accuracy": scores.tolist(), "iterations": int(last.n_iter_[0])}


def linear(x: np.ndarray, y: np.ndarray) -> dict[str, object]:
    """Our path, and the refit."""
    from tl_pipeline.heads.linear import LinearClassifier  # noqa: PLC0415
    from tl_pipeline.heads.softmax_path import fit_path  # noqa: PLC0415

    path = fit_path(x, y, CS, folds(x, y))
    scores = path.accuracy.mean(axis=1)
    LinearClassifier(path.cs[int(scores.argmax())]).fit(x, y)
    iterations = max(head.iterations for head in path.heads)
    gap = max(head.gap for head in path.heads)
    return {"accuracy": scores.tolist(), "iterations": iterations, "gap": gap}


METHODS = {"GridSearchCV": grid_search, "linear": linear}


def tolerances(x: np.ndarray, y: np.ndarray) -> list[dict[str, float]]:
    """How scores of folds differ from those at 1e-9, at worst over CS and WEAK."""
    from tl_pipeline.heads.softmax_path import fit_path  # noqa: PLC0415

    found, scores = [], []
    for tol in FOLD_TOLS:
        started = time.perf_counter()
        path = fit_path(x, y, [*CS, *WEAK], folds(x, y), fold_tol=tol)
        seconds = time.perf_counter() - started
        scores.append((path.accuracy.mean(axis=1), path.log_loss.mean(axis=1)))
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


def peak() -> float:
    """Peak memory of this process in MB, without its parent's (so not getrusage)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1000


def child(method: str, folder: Path) -> None:
    """Measure ``method`` on the arrays in ``folder``, and print what was found."""
    if method == "tolerances":
        x, y = np.load(folder / "x.npy"), np.load(folder / "y.npy")
        print(json.dumps(tolerances(x, y)))
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
        pipeline.run(pipeline.prepare(spec, Store(store), catalog_file=catalog))
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


def case(name: str, folder: Path, store: Path | None) -> tuple[str, str]:
    """Both methods on one case: its rows of both tables, or why there are none."""
    if name == "wide":
        x, y = synthetic(40_000, 4096, 43)
    elif name == "gtsrb" and store is None and not WEIGHTS.exists():
        return f"| {name} | skipped: no shared data |", ""
    else:
        encoder = EncoderSpec(backbone="lenet5")
        if name == "gtsrb":
            encoder = EncoderSpec(backbone="squeezenet1_0", weights=str(WEIGHTS))
        x, y = embedded(name, encoder, store or folder / f"store-{name}")
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)
    shape = f"{len(x):,} x {x.shape[1]:,}, {len(set(y))} classes"
    del x, y
    before = load_average()
    found = {method: measure(method, folder) for method in METHODS}
    print(name, json.dumps(found, indent=1))
    theirs, ours = found["GridSearchCV"], found["linear"]
    cells = [
        f"{name}: {shape}",
        f"{theirs['seconds']:.1f}",
        f"{ours['seconds']:.1f}",
        f"{theirs['seconds'] / ours['seconds']:.1f}",
        f"{max(theirs['accuracy']):.4f} / {max(ours['accuracy']):.4f}",
        f"{theirs['iterations']} / {ours['iterations']}",
        f"{theirs['times_data']:.1f} / {ours['times_data']:.1f}",
        f"{before} - {load_average()}",
    ]
    by_tol = measure("tolerances", folder)
    print(name, json.dumps(by_tol, indent=1))
    rows = [
        f"| {name} | {row['tol']:.0e} | {row['accuracy']:.4f} | "
        f"{100 * row['log_loss']:.2f} % | {row['iterations']} | "
        f"{row['left']} | {row['seconds']:.1f} |"
        for row in by_tol
    ]
    return "| " + " | ".join(cells) + " |", "\n".join(rows)


def main() -> None:
    """Measure each case and write RESULTS.md."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("cases", nargs="*", default=["digits", "gtsrb", "wide"])
    arguments.add_argument("--store", type=Path, help="a store with the embeddings")
    arguments.add_argument("--child", choices=[*METHODS, "tolerances"])
    arguments.add_argument("--folder", type=Path)
    given = arguments.parse_args()
    if given.child:
        child(given.child, given.folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = [case(name, Path(folder), given.store) for name in given.cases]
    text = "\n".join(row for row, _ in rows)
    tols = "\n".join(by_tol for _, by_tol in rows if by_tol)
    record(
        TITLE,
        f"`python benchmarks/heads.py {' '.join(given.cases)}`, one round, the two in "
        f"turn; {machine()}, scikit-learn {sklearn.__version__}.\n\n"
        "| | GridSearchCV(n_jobs=2), s | `linear`, s | ratio | best accuracy | "
        "iterations | memory / data | load |\n"
        f"|---|---|---|---|---|---|---|---|\n{text}\n\n"
        f"C = {', '.join(f'{c:.1e}' for c in CS)}. GridSearchCV runs StandardScaler "
        "and LogisticRegression(max_iter=5000) at its default tolerance, `linear` goes "
        "on to a relative gap of 1e-7 for folds and 1e-9 for the refit. Both ran on "
        "300 other rows before clock and memory are read: neither counts the start of "
        "libraries, threads and workers. Iterations: those of scikit-learn's refit at "
        "its best C, and the most of any of our heads. Memory: the peak beyond what it "
        "was then, over the size of the float32 rows; GridSearchCV without its "
        "workers. Load: the machine's load average before and after.",
    )
    record(
        TOLERANCES,
        f"The same rows, folds and C, and C = {', '.join(f'{c:g}' for c in WEAK)}; the "
        "greatest difference of any C's mean score from that at 1e-9. The default of "
        "`fold_tol` is 1e-7.\n\n"
        "| | `fold_tol` | accuracy | log loss | iterations, all heads | "
        f"not converged | s |\n|---|---|---|---|---|---|---|\n{tols}",
    )


if __name__ == "__main__":
    main()
