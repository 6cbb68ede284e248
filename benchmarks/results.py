"""RESULTS.md: one section a benchmark, replaced when it is measured again."""

import os
import platform
import re
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

FILE = Path(__file__).with_name("RESULTS.md")


def machine() -> str:
    """Where and when, for the reader of a figure."""
    libraries = ", ".join(
        f"{name} {metadata.version(name)}" for name in ("prefect", "torch", "pillow")
    )
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} shared cores "
        f"{platform.machine()}, Python {platform.python_version()}, {libraries}"
    )


def record(title: str, text: str) -> None:
    """Replace the section ``title`` by ``text``, and print it."""
    section = f"## {title}\n\n{text.strip()}\n\n"
    before = FILE.read_text() if FILE.exists() else "# Results\n\n"
    pattern = re.compile(
        rf"## {re.escape(title)}\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE
    )
    after = pattern.sub(lambda _: section, before)
    FILE.write_text(after if pattern.search(before) else before + section)
    print(section)
