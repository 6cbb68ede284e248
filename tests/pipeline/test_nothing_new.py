"""A run that finds nothing new: what it does not pay for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tl_pipeline.config.specs import RunSpec
from tl_pipeline.pipeline import wiring
from tl_pipeline.store.artifacts import Store

AGAIN = """
import sys
from tl_pipeline.cli.main import main

try:
    main()
finally:
    print("IMPORTED", *sys.modules)
"""
HEAVY = {"jinja2", "mlflow", "sklearn", "torch", "torchvision"}
HEAVY |= {f"scipy.{part}" for part in ("cluster", "linalg", "optimize", "stats")}


@pytest.mark.usefixtures("catalogue")
def test_what_computes_and_draws_is_not_imported(folder: Path, store: Store):
    spec = RunSpec.model_validate({"dataset": str(folder), "heads": ["ridge:alpha=1"]})
    wiring.run(wiring.prepare(spec, store))
    pages = sorted((store.root / "reports").rglob("*.html"))
    arguments = ["run", str(folder), "--head", "ridge:alpha=1", "--runner", "direct"]
    done = subprocess.run(
        [sys.executable, "-c", AGAIN, *arguments],
        env={**os.environ, "TL_STORE": str(store.root)},
        capture_output=True,
        text=True,
        check=True,
    )
    _, _, imported = done.stdout.rpartition("IMPORTED ")
    assert HEAVY & set(imported.split()) == set()
    assert sorted((store.root / "reports").rglob("*.html")) == pages
    assert len(pages) == 2
