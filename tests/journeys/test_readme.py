"""The README is executed: every block that is not marked with a reason."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.forking import forking_tl
from tests.prefect_server import Server
from tl_pipeline.config import catalog

BLOCK = re.compile(
    r"(?:<!-- not executed: (?P<reason>[^>]+) -->\n)?"
    r"```(?P<kind>\w+)\n(?P<code>.*?)```",
    re.DOTALL,
)
README = (REPOSITORY / "README.md").read_text()


def blocks() -> list[tuple[str, str]]:
    """(kind, code) of every block to execute, in order; ``make`` is for CI."""
    return [
        (found["kind"], found["code"])
        for found in BLOCK.finditer(README)
        if not found["reason"] and not found["code"].startswith("make ")
    ]


@pytest.mark.timeout(600)
def test_readme_works_from_top_to_bottom(folder: Path, tmp_path: Path):
    """In a folder with ``photos``, a reader types every line."""
    place = tmp_path / "reader"
    place.mkdir()
    shutil.copytree(folder, place / "photos")
    # Without it every run would start a server for itself; test_cli.py sees that.
    server = Server(tmp_path / "prefect")
    server.start("server", "start", "--host", "127.0.0.1", "--port", str(server.port))
    server.wait_until_up()
    environment = {
        **{k: v for k, v in server.environment.items() if not k.startswith("TL_")},
        "PYTHONPATH": str(REPOSITORY),
    }
    try:
        with forking_tl(environment) as bin_folder:
            environment["PATH"] = f"{bin_folder}:{os.environ['PATH']}"
            executed = sum(
                carried_out(kind, code, place, environment) for kind, code in blocks()
            )
    finally:
        server.stop()
    assert executed >= 6


def carried_out(kind: str, code: str, place: Path, environment: dict[str, str]) -> bool:
    """Whether a block was a program, which ended well; a file is written."""
    if kind == "yaml":
        name = "data_catalog" if "version" in code else "comparison"
        (place / f"{name}.yaml").write_text(code)
    if kind not in ("sh", "python"):
        return False
    command = ["sh", "-e"] if kind == "sh" else [sys.executable, "-"]
    done = subprocess.run(
        command,
        input=code,
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
    return True


def test_what_is_not_executed_says_why():
    reasons = [found["reason"] for found in BLOCK.finditer(README) if found["reason"]]
    assert sorted(reasons) == ["needs a cluster", "needs a server", "needs weights"]


def test_documented_options_and_commands_exist():
    """A command of the README that was renamed is found here."""
    told = set(re.findall(r"\btl ([a-z]+)", README))
    shown = subprocess.run(
        [sys.executable, "-m", "tl_pipeline.cli", "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
    ).stdout
    assert {command for command in told if command not in shown} <= {"is"}


def test_shipped_catalogue_is_valid():
    assert "digits" in catalog.load(REPOSITORY / "data_catalog.yaml")
