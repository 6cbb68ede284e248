"""Write docs/reference.md: the commands, heads and catalogue entries, from the code.

python scripts/reference.py           # writes it
python scripts/reference.py --check   # exit code 1 if it is not what would be written
"""

import sys
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from tl_pipeline import heads
from tl_pipeline.cli.main import app
from tl_pipeline.config import datasets
from tl_pipeline.config.finetune_specs import FinetuneSpec

FILE = Path(__file__).parents[1] / "docs" / "reference.md"
HEAD = """# Reference

Written by `make reference` from the code; a test compares.

"""


def entries() -> str:
    """Every kind of dataset entry with its fields."""
    kinds = get_args(get_args(datasets.DatasetSpec)[0])
    common = set.intersection(*(set(kind.model_fields) for kind in kinds))
    lines = ["## Entries of `data_catalog.yaml`", "", "### Fields of every entry", ""]
    lines += fields(kinds[0], sorted(common - {"type", "name"}))
    for kind in kinds:
        (label,) = get_args(kind.model_fields["type"].annotation)
        lines += ["", f"### `type: {label}`", "", summary(kind), ""]
        lines += fields(kind, [n for n in kind.model_fields if n not in common])
    return "\n".join(lines)


def summary(kind: type[BaseModel]) -> str:
    """The first paragraph of the class's docstring, in one line."""
    return " ".join((kind.__doc__ or "").split("\n\n")[0].split())


def fields(kind: type[BaseModel], names: list[str]) -> list[str]:
    """A table of some fields."""
    if not names:
        return []
    lines = ["| field | default | meaning |", "|---|---|---|"]
    for name in names:
        field = kind.model_fields[name]
        default = "required" if field.is_required() else shown(field.get_default())
        lines.append(f"| `{name}` | {default} | {field.description or ''} |")
    return lines


def shown(value: Any) -> str:
    """A default as people write it."""
    if isinstance(value, BaseModel):
        set_to = {n: v for n, v in value.model_dump(mode="json").items() if v}
        value = ", ".join(f"{n}: {v}" for n, v in set_to.items())
    return f"`{value}`" if value not in (None, "", ()) else ""


def all_heads() -> str:
    """Every head with its parameters."""
    lines = ["## Heads", ""]
    for name in heads.HEADS:
        lines += ["", f"### `{name}`", "", "| parameter | default | values | meaning |"]
        lines += ["|---|---|---|---|"]
        lines += [
            f"| `{row['parameter']}` | `{row['default']}` | {row['values']} "
            f"| {row['meaning']} |"
            for row in heads.describe(name)
        ]
    return "\n".join(lines)


def fine_tuning() -> str:
    """What ``--finetune`` takes."""
    words = "`--finetune` takes `all`, `head` or `blocks=N`"
    lines = ["## Fine-tuning", "", f"{words}, and after commas what differs.", ""]
    return "\n".join(lines + fields(FinetuneSpec, list(FinetuneSpec.model_fields)))


def page() -> str:
    """The whole page."""
    commands = app.generate_docs(output_format="markdown").replace("\n#", "\n##")
    parts = [f"#{commands.strip()}", all_heads(), fine_tuning(), entries()]
    return "\n".join([HEAD, "\n\n".join(parts), ""])


def main() -> int:
    """Write the page, or compare it."""
    text = page()
    if "--check" in sys.argv:
        return int(FILE.read_text() != text)
    FILE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
