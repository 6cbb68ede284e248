"""``tl sql`` on a terminal: a query after another, with history and completion."""

import contextlib
import re
import readline
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from tl_pipeline.errors import TransferLearningError

HISTORY = Path("~/.tl_sql_history")
_LINES = 10_000
_GREETING = (
    "End a query with ; and leave by Ctrl-D. FROM help(); lists what there is.\n"
)
_WORDS = (
    "SELECT FROM WHERE JOIN USING GROUP BY ORDER BY HAVING LIMIT DISTINCT COUNT AVG "
    "DESCRIBE SUMMARIZE ASC DESC NULL"
)


def converse(answer: Callable[[str], None], known: Iterable[Mapping[str, Any]]) -> None:
    """Read queries and have each answered, until the input ends; a fault ends none.

    Args:
        answer: prints the rows of a query.
        known: what ``FROM help()`` gives, whose names are completed.
    """
    names = words(known)
    readline.set_completer(lambda text, number: match(names, text, number))
    readline.set_completer_delims(" \t\n\"'`()[]{},;=<>+-*/|.")
    libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
    readline.set_history_length(_LINES)
    file = HISTORY.expanduser()
    with contextlib.suppress(OSError):
        readline.read_history_file(file)
    sys.stdout.write(_GREETING)
    try:
        _answer_each(answer)
    finally:
        with contextlib.suppress(OSError):  # a home that cannot be written to
            readline.write_history_file(file)


def words(known: Iterable[Mapping[str, Any]]) -> list[str]:
    """The views, their columns, the macros and SQL's own words."""
    found = {*_WORDS.split()}
    for row in known:
        found.add(re.sub(r"\(.*", "(", row["name"]))
        found.update(column["name"] for column in row["columns"] or ())
    return sorted(found)


def match(names: Iterable[str], text: str, number: int) -> str | None:
    """The name of that number that begins with ``text``, in any case."""
    fitting = [name for name in names if name.lower().startswith(text.lower())]
    return fitting[number] if number < len(fitting) else None


def _answer_each(answer: Callable[[str], None]) -> None:
    text = ""
    while True:
        try:
            text += input("tl> " if not text else "... ") + "\n"
            if not text.strip():
                text = ""
            elif text.rstrip().endswith(";"):
                asked, text = text, ""
                answer(asked)
        except TransferLearningError as fault:
            sys.stdout.write(f"{type(fault).__name__}: {fault}\n")
        except KeyboardInterrupt:
            sys.stdout.write("\n")
            text = ""
        except EOFError:
            sys.stdout.write("\n")
            return
