"""RESULTS.md: one section a benchmark, replaced when it is measured again."""

import os
import platform
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

# Instructions that make bf16 or int8 fast, as /proc/cpuinfo names them.
_FAST = ("avx512_bf16", "amx_bf16", "avx512_vnni", "amx_int8")
FILE = Path(__file__).with_name("RESULTS.md")


def machine(packages: Sequence[str] = ("prefect", "torch", "pillow")) -> str:
    """Where and when, for the reader of a figure."""
    libraries = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} shared cores "
        f"{platform.machine()}, Python {platform.python_version()}, {libraries}"
    )


def processor() -> str:
    """Model of the processor, and whether it is fast at bf16 (Linux tells)."""
    file = Path("/proc/cpuinfo")
    if not file.exists():
        return platform.processor() or platform.machine()
    found = dict(
        re.findall(r"^(model name|flags)\s*: (.*)$", file.read_text(), re.MULTILINE)
    )
    flags = set(found.get("flags", "").split())
    said = ", ".join(name for name in _FAST if name in flags)
    return f"{found.get('model name', platform.machine())} ({said or 'no bf16'})"


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
