"""The documents as tests read them: their blocks, their names, and what they show.

A page is Markdown. Of its fenced blocks

- ``sh`` is typed as a whole, ``console`` line by line: ``$ command`` and its output,
- ``python`` and ``sql`` are run, ``yaml`` is written to the file that its first comment
  names (``# photos.yaml``),
- ``text`` after one of these is what it printed,

unless ``<!-- not executed: REASON -->`` or ``<!-- not output -->`` stands before it.
"""

import importlib
import itertools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl_pipeline.cli.main import app

_BLOCK = re.compile(
    r"(?:<!-- not (?P<what>executed|output)(?:: (?P<reason>[^>]+?))? -->\n)?"
    r"^```(?P<kind>\w*)\n(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
ROOT = Path(__file__).parents[1]
RUN = ("sh", "console", "python", "sql")
SOURCES = (".py", ".sh", ".toml", ".md")
ROOTS = {"tl_pipeline", "flows", "tests", "benchmarks", "scripts", "docs", ".ci"}

# What differs from run to run, and what a whole number or a rounded one may differ by.
_TIME = re.compile(r"\d[\d.,]*\s?(?:ms|s|min|h|MB|kB|GB)\b|\d{4}-\d\d-\d\d[T \d:.Z+-]*")
_HASH = re.compile(r"\b(?=\w*\d)[0-9a-f]{8,}\b|\b[0-9a-f]{6}\u2026")
_RUN = re.compile(r"\b\d{8}T\d{6,}(?:-[0-9a-f]+)?")
_NUMBER = re.compile(r"(?<![\w.])[+-]?\d[\d,]*(?:\.\d+)?(?![\w])")
_RULES = re.compile(r"[\s\u2500-\u257f]+")
POINTS, SHARE = 3.0, 0.05  # of numbers with a point: as percent, or of themselves


@dataclass(frozen=True)
class Block:
    """A fenced block; ``reason`` tells why it is not executed."""

    kind: str
    code: str
    line: int
    reason: str = ""
    output: bool = True


def blocks(page: str) -> list[Block]:
    """The fenced blocks of ``page``."""
    return [
        Block(
            found["kind"],
            found["code"],
            page.count("\n", 0, found.start("kind")) + 1,
            (found["reason"] or "no reason") if found["what"] == "executed" else "",
            found["what"] != "output",
        )
        for found in _BLOCK.finditer(page)
    ]


def prose(page: str) -> str:
    """``page`` without its fenced blocks."""
    return _BLOCK.sub("", page)


def commands(code: str) -> Iterator[list[str]]:
    """The words of each command of a block, its comments left out."""
    lines = re.sub(r"\\\n", " ", code)
    # a quoted argument may go over several lines
    for line in re.findall(r"(?:\"[^\"]*\"|'[^']*'|[^\"'\n])+", lines):
        yield shlex.split(line.removeprefix("$ "), comments=True)


def typed(code: str) -> list[tuple[str, str]]:
    """(command, what the page says it prints) of a ``console`` block."""
    said: list[tuple[str, list[str]]] = []
    for line in code.splitlines():
        if line.startswith("$ "):
            said.append((line.removeprefix("$ "), []))
        elif line.startswith("> ") and said and not said[-1][1]:
            said[-1] = (f"{said[-1][0]}\n{line.removeprefix('> ')}", [])
        else:
            said[-1][1].append(line)
    return [(command, "\n".join(lines)) for command, lines in said]


def unlike(shown: str, printed: str) -> list[str]:
    """The lines of ``shown`` that are not found, in their order, in ``printed``.

    Numbers with a point may differ a little, durations, sizes, dates and hashes as they
    like; whole numbers may not. ``...`` stands for anything, also in a line.
    """
    left, missing = printed.splitlines(), []
    for line in shown.splitlines():
        if not _plain(line) or line.strip() in ("...", "…"):
            continue
        at = next((i for i, other in enumerate(left) if like(line, other)), None)
        if at is None:
            missing.append(line)
        else:
            left = left[at + 1 :]
    return missing


def like(shown: str, printed: str) -> bool:
    """Whether a printed line is one that is shown."""
    shown, printed = _plain(shown), _plain(printed)
    pattern = "".join(
        "(.*)"
        if part in ("...", "…")
        else f"({_NUMBER.pattern})"
        if _NUMBER.fullmatch(part)
        else re.escape(part)
        for part in re.split(rf"(\.\.\.|…|{_NUMBER.pattern})", shown)
    )
    found = re.fullmatch(pattern, printed)
    if not found:
        return False
    parts = re.findall(rf"\.\.\.|…|{_NUMBER.pattern}", shown)
    return all(
        part in ("...", "…") or _near(part, number)
        for part, number in zip(parts, found.groups(), strict=True)
    )


def _near(shown: str, printed: str) -> bool:
    one, other = (float(n.replace(",", "")) for n in (shown, printed))
    if "." not in shown:
        return one == other
    return abs(one - other) <= max(SHARE * abs(one), POINTS if abs(one) > 1 else SHARE)


def _plain(line: str) -> str:
    line = _HASH.sub("HASH", _TIME.sub("TIME", _RUN.sub("RUN", line)))
    return _RULES.sub(" ", line).strip()


def changed(page: str, printed: str) -> list[str]:
    """A pair of lines, as ``diff`` shows it, wherever ``printed`` is not ``page``."""
    pairs = itertools.zip_longest(page.splitlines(), printed.splitlines())
    return [
        f"-{shown}\n+{found}"
        for shown, found in pairs
        if shown is None or found is None or not like(shown, found)
    ]


def without_chance(text: str, place: Path) -> str:
    """``text`` with a word for each duration, size, date, hash and folder."""
    text = text.replace(str(place), "PLACE").replace(str(ROOT), "PACKAGE")
    return _HASH.sub("HASH", _TIME.sub("TIME", _RUN.sub("RUN", text)))


def options() -> dict[str, set[str]]:
    """Command -> its options; of ``tl`` itself and of groups there are none."""
    found: dict[str, set[str]] = {}

    def walk(command: Any, path: tuple[str, ...]) -> None:
        default = command.default_command
        arguments = command.assemble_argument_collection() if default else []
        found[" ".join(path)] = {n for each in arguments for n in each.names}
        for name in command:
            if not name.startswith("-"):
                walk(command[name], (*path, name))

    walk(app, ())
    return found


def names(page: str, packages: set[str]) -> set[str]:
    """The paths and dotted names of this project that ``page`` mentions.

    Dotted names begin with ``tl_pipeline`` or one of its ``packages``. Paths are links,
    and in the prose what ends as a file of source, or begins as a folder of it.
    """
    found = set(re.findall(r"\b(?:tl_pipeline|flows|tests)(?:\.\w+)+", page))
    found -= {name for name in found if name.endswith(SOURCES)}
    text = prose(page)
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text)
    for code in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text):
        first = re.split(r"[./]", code)[0]
        file = re.fullmatch(r"[\w./-]+", code) and code.endswith(SOURCES)
        folder = re.fullmatch(r"[\w-]+(/[\w-]+)*/", code)
        if file or (folder and first in packages | ROOTS):
            found.add(code)
        elif re.fullmatch(r"\w+(\.\w+)+", code) and first in packages:
            found.add(f"tl_pipeline.{code}")
    return found | {f"link:{target}" for target in links}


def exists(name: str, page: Path, root: Path) -> bool:
    """Whether what a page calls ``name`` is in the tree below ``root``."""
    if name.startswith("link:"):
        return (page.parent / name.removeprefix("link:")).exists()
    if "/" in name or name.endswith(SOURCES):
        if (root / name).exists() or (root / "tl_pipeline" / name).exists():
            return True
        folders = (root / folder for folder in ROOTS)
        return "/" not in name and any(any(f.rglob(name)) for f in folders)
    module, attributes = name, []
    while True:
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError:
            module, _, attribute = module.rpartition(".")
            attributes.insert(0, attribute)
            if not module:
                return False
        else:
            break
    for attribute in attributes:
        if not hasattr(found, attribute):
            return False
        found = getattr(found, attribute)
    return True
