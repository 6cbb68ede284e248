"""``tl`` as somebody types it: in this process, or in one of its own.

A process of its own pays seconds of imports. It is for claims about processes: exit
codes as a shell sees them, what libraries print, a server that starts. Anything else
is asked of the same ``main`` here.
"""

import contextlib
import io
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Protocol

import pytest

from tests.conftest import REPOSITORY
from tl_pipeline.cli import main


class Tl(Protocol):
    """Types ``tl`` and these words, and waits for the end."""

    def __call__(self, *words: object) -> subprocess.CompletedProcess[str]:
        """The exit code, and what was printed."""
        ...


def in_this_process(place: Path, monkeypatch: pytest.MonkeyPatch, **more: str) -> Tl:
    """``tl`` typed in the folder ``place``, with ``more`` in the environment."""
    for name in [name for name in os.environ if name.startswith("TL_")]:
        monkeypatch.delenv(name)
    for name, value in _environment(place, more).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(place)

    def tl(*words: object) -> subprocess.CompletedProcess[str]:
        typed = ["tl", *map(str, words)]
        out, err = io.StringIO(), io.StringIO()
        monkeypatch.setattr(sys, "argv", typed)
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            warnings.catch_warnings(),
        ):
            # Cyclopts takes an app that reads sys.argv in a test for an oversight.
            warnings.filterwarnings("ignore", "Cyclopts application invoked")
            try:
                main.main()
                code = 0
            except SystemExit as ended:
                code = ended.code or 0
        assert isinstance(code, int)
        return subprocess.CompletedProcess(typed, code, out.getvalue(), err.getvalue())

    return tl


def in_its_own_process(place: Path, **more: str) -> Tl:
    """``tl`` typed in the folder ``place``, as ``in_this_process``."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TL_")}

    def tl(*words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tl_pipeline.cli", *map(str, words)],
            cwd=place,
            env={**kept, "PYTHONPATH": str(REPOSITORY), **_environment(place, more)},
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )

    return tl


def _environment(place: Path, more: dict[str, str]) -> dict[str, str]:
    """No weights of the user's, and room for a line."""
    return {"TORCH_HOME": str(place / "torch"), "COLUMNS": "160", **more}
