"""README and docs are executed, and show what comes out; the names they use are there.

What is not executed says why; ``tests/documents.py`` tells how a page is read. Runs are
``--runner direct``: test_flow.py types one that is a flow.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import documents
from tests.conftest import REPOSITORY
from tests.documents import Block
from tests.forking import forking_tl
from tl_pipeline.config import catalog

# docs/reference.md is made from the code, and decisions tell of what was then.
PAGES = [
    REPOSITORY / "README.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
WRITTEN = [page for page in PAGES if page.name != "reference.md"]
EXECUTED = [
    page
    for page in WRITTEN
    for blocks in [documents.blocks(page.read_text())]
    if any(block.kind in documents.RUN and not block.reason for block in blocks)
]
PACKAGES = {
    path.parent.name for path in (REPOSITORY / "tl_pipeline").glob("*/__init__.py")
}


def every_page(pages: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "page", [pytest.param(p, id=str(p.relative_to(REPOSITORY))) for p in pages]
    )


@dataclass(frozen=True)
class Reader:
    """Somebody who types what a page says, in a folder with ``photos``."""

    place: Path
    environment: dict[str, str]

    def carry_out(self, block: Block) -> str:
        """Do what a block says; what is printed."""
        match block.kind:
            case "sh":
                return self.type(block.code)
            case "python":
                return self._run([sys.executable, "-"], block.code)
            case "sql":
                return self._run(["tl", "sql", block.code])
            case _:
                raise ValueError(block.kind)

    def type(self, commands: str) -> str:
        """Type lines of a shell; what is printed."""
        return self._run(["sh", "-e"], _direct(commands))

    def write(self, block: Block) -> None:
        """Write a file: as its first comment names it, or as what it is."""
        first = block.code.partition("\n")[0].removeprefix("# ")
        name = "data_catalog.yaml" if "datasets:" in block.code else "comparison.yaml"
        (self.place / (first if first.endswith(".yaml") else name)).write_text(
            block.code
        )

    def _run(self, command: list[str], code: str = "") -> str:
        done = subprocess.run(
            command,
            input=code,
            cwd=self.place,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{code}\n{done.stdout}"
        return done.stdout


def _direct(code: str) -> str:
    """``make demo`` is the command that it ends with; CI does the rest."""
    demo = f"cp {REPOSITORY}/data_catalog.yaml .; tl run digits"
    lines = code.replace("make demo", demo).splitlines()
    kept = "\n".join(line for line in lines if not line.startswith("make "))
    return re.sub(r"\btl run\b", "tl run --runner direct", kept)


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """Where ``tl`` is a fork."""
    words = {
        **{k: v for k, v in os.environ.items() if not k.startswith("TL_")},
        "PYTHONPATH": str(REPOSITORY),
    }
    with forking_tl(words) as folder:
        yield words | {"PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.mark.timeout(1200)
@every_page(EXECUTED)
def test_a_page_works_from_top_to_bottom_and_shows_what_comes_out(
    page: Path, environment: dict[str, str], folder: Path, tmp_path: Path
):
    """A reader types every line in a folder that has ``photos``."""
    place = tmp_path / "reader"
    shutil.copytree(folder, place / "photos")
    reader, printed = Reader(place, environment), ""
    for block in documents.blocks(page.read_text()):
        where = f"{page.name}:{block.line}"
        if block.reason:
            printed = ""
        elif block.kind == "yaml":
            reader.write(block)
        elif block.kind == "console":
            for command, shown in documents.typed(block.code):
                printed = reader.type(command)
                assert documents.unlike(shown, printed) == [], f"{where}\n{printed}"
        elif block.kind in documents.RUN:
            printed = reader.carry_out(block)
        elif block.kind == "text" and block.output and printed:
            assert documents.unlike(block.code, printed) == [], f"{where}\n{printed}"


@every_page([*PAGES, REPOSITORY / "ARCHITECTURE.md"])
def test_every_path_and_name_of_a_page_is_in_the_tree(page: Path):
    found = documents.names(page.read_text(), PACKAGES)
    gone = {name for name in found if not documents.exists(name, page, REPOSITORY)}
    assert gone == set()


@every_page(WRITTEN)
def test_every_command_and_option_of_a_page_exists(page: Path):
    """Also of those that are not executed."""
    known = documents.options()
    for block in documents.blocks(page.read_text()):
        if block.kind not in ("sh", "console"):
            continue
        code = block.code
        if block.kind == "console":
            code = "\n".join(command for command, _ in documents.typed(code))
        for words in documents.commands(code):
            if words[:1] != ["tl"]:
                continue
            path = " ".join(words[1:3]) if " ".join(words[1:3]) in known else words[1]
            assert path in known, f"{page.name}:{block.line}: {words}"
            given = {word.partition("=")[0] for word in words if word.startswith("--")}
            assert given - known[path] == set(), f"{page.name}:{block.line}: {words}"


SHOWN = """\
         encoder             head  validation  test [95 % interval]
*        lenet5/c5 LETTERS   mlp   98.2 %      98.9 % [97.1, 99.6]
...
digits: test accuracy 98.9 % on 356 images
embedding: 1,797 in 3.1 s; ...
model      tl_store/models/0123456789abcdef
"""


def test_what_is_printed_is_what_is_shown_but_for_chance_time_and_width():
    printed = """\
          encoder            head      validation  test [95 % interval]
*         lenet5/c5 LETTERS  mlp       97.2 %      98.1 % [96.0, 99.2]
control   lenet5/c5 LETTERS  majority  10.4 %      6.5 % [4.3, 9.5]
digits: test accuracy 98.1 % on 356 images
embedding: 1,797 in 12 s; the network worked 4 % of the time
model      tl_store/models/fedcba9876543210
"""
    assert documents.unlike(SHOWN, printed) == []


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ("mlp ", "knn "),
        ("98.2", "88.2"),
        ("356", "357"),
        ("1,797", "1,796"),
        ("[97.1, 99.6]", ""),
        ("tl_store/models", "tl_store/heads"),
        ("test accuracy", "accuracy"),
    ],
)
def test_a_line_that_shows_something_else_is_found(was: str, becomes: str):
    changed = SHOWN.replace(was, becomes)
    assert changed != SHOWN
    assert len(documents.unlike(changed, SHOWN)) == 1


def test_lines_in_another_order_are_found():
    assert documents.unlike("b\na\n", "a\nb\n") == ["a"]


def test_names_that_are_not_there_are_found():
    page = (
        "See [it](tests/nowhere.md), `data/scan.py`, `stages/gone.py`, `embedding/`, "
        "`heads/gone/`, `store.artifacts`, `store.Gone`, `photos/flower/0.jpg`, "
        "[this](tests/documents.py).\n"
        "```python\nfrom tl_pipeline.registry.nowhere import x\n```\n"
    )
    found = documents.names(page, PACKAGES)
    gone = {n for n in found if not documents.exists(n, REPOSITORY / "x", REPOSITORY)}
    assert gone == {
        "link:tests/nowhere.md",
        "stages/gone.py",
        "heads/gone/",
        "tl_pipeline.store.Gone",
        "tl_pipeline.registry.nowhere",
    }
    assert len(found) == 9


def test_shipped_catalogue_is_valid():
    assert "digits" in catalog.load(REPOSITORY / "data_catalog.yaml")
