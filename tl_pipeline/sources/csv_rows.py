"""The rows of a text file, such as CSV, whose cells are parted by a character."""

import codecs
import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from tl_pipeline.errors import DatasetError
from tl_pipeline.sources.file_kinds import LENGTH, kind_of

_LONGEST_CELL = 1 << 26  # characters; Python's csv stops at 128 KiB
_CURE = "say 'encoding: {}' in its entry in data_catalog.yaml"
Row = tuple[str | None, ...]  # the cells of the columns asked for; None for nothing


def text_rows(
    file: Path | str, source: IO[bytes], names: Row, mark: str, encoding: str | None
) -> Iterator[Row]:
    """The columns ``names`` of a file whose cells are parted by ``mark``.

    Without an ``encoding`` it is what a byte order mark says, else UTF-8.

    Raises:
        DatasetError: a column is missing or there twice, a row has too few or too many
            cells, a quote joins rows, or the text is in another encoding.
        ValueError: it is no such text.
    """
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_CELL))
    head = source.read(LENGTH)
    source.seek(0)
    encoding = encoding or _marked_encoding(head)
    with io.TextIOWrapper(source, encoding=encoding, newline="") as text:
        lines = _Lines(text, mark)
        try:
            yield from _cells(file, lines, names, mark)
        except UnicodeError:
            raise _undecodable(file, text.buffer, encoding) from None
        except DatasetError:
            kind = kind_of(head)
            if kind is None:
                raise
            raise ValueError(f"it is {kind}") from None


def _cells(file: Path | str, lines: "_Lines", names: Row, mark: str) -> Iterator[Row]:
    rows = csv.reader(lines, delimiter=mark, strict=True)
    found = [name.strip("\ufeff ") for name in _next(file, rows) or []]
    if "\0" in "".join(found):
        raise UnicodeError
    lines.end_row(rows.line_num, len(found))
    check_columns(file, names, found)
    places = [None if name is None else found.index(name) for name in names]
    while (cells := _next(file, rows)) is not None:
        first = lines.end_row(rows.line_num, len(found))
        if not cells:
            continue
        if len(cells) != len(found):
            raise DatasetError(
                f"{file}:{first}: {len(cells)} cells where the header has "
                f"{len(found)}; a cell that holds {mark!r} must stand in quotes"
            )
        yield tuple(None if p is None else cells[p] or None for p in places)
    if lines.joined:
        first, last = lines.joined[0]
        raise DatasetError(
            f"{file}:{first}: a quoted cell runs on to line {last}, though each of "
            "these lines is a row by itself: a quote that was not meant? Remove it, or "
            "double it inside of quotes; Parquet holds cells with whole rows in them"
        )


def _next(file: Path | str, rows: Any) -> list[str] | None:
    """The next row, None at the end."""
    start = rows.line_num + 1
    try:
        return next(rows, None)
    except csv.Error as error:
        raise DatasetError(
            f"{file}:{start}: a quote that opens in this row is not closed as it must "
            f"be ({error} in line {rows.line_num}). Remove it, or double it inside of "
            "quotes"
        ) from None


class _Lines:
    """Lines of a text, which remember where a quoted cell joined what are rows.

    In a file that nobody meant to have line breaks in its cells a stray quote makes one
    cell of many rows, and the next stray quote closes it: each of the lines then has as
    many cells as the header. Where breaks are meant, few or no cells look like that, so
    ``joined`` (first and last lines) is empty if others are as many.
    """

    def __init__(self, lines: Iterable[str], mark: str) -> None:
        self._lines, self._mark = iter(lines), mark
        self._widths: list[int] = []
        self._joined: list[tuple[int, int]] = []
        self._broken = 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self._widths.append(line.count(self._mark) + 1)
        return line

    def end_row(self, line: int, width: int) -> int:
        """A row ended in ``line``, where ``width`` cells are usual: its first line."""
        widths, self._widths = self._widths, []
        first = line - len(widths) + 1
        if len(widths) > 1:
            if all(found == width for found in widths):
                self._joined.append((first, line))
            else:
                self._broken += 1
        return first

    @property
    def joined(self) -> list[tuple[int, int]]:
        """The lines of each cell that seems to hold rows."""
        return self._joined if len(self._joined) > self._broken else []


def _marked_encoding(head: bytes) -> str:
    marks = {
        codecs.BOM_UTF32_LE: "utf-32",
        codecs.BOM_UTF32_BE: "utf-32",
        codecs.BOM_UTF16_LE: "utf-16",
        codecs.BOM_UTF16_BE: "utf-16",
    }
    return next((marks[m] for m in marks if head.startswith(m)), "utf-8-sig")


def _undecodable(
    file: Path | str, source: IO[bytes], encoding: str
) -> DatasetError | ValueError:
    """What is wrong with a text that is not in ``encoding``, and what it may be in."""
    source.seek(0)
    head = source.read(LENGTH)
    zeros = [head[start::2].count(0) for start in (0, 1)]
    if max(zeros) > len(head) // 4:
        likely = "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
        return DatasetError(f"{file}:1: not in UTF-8; {_CURE.format(likely)}")
    if 0 in head:
        return ValueError("it is no text")
    source.seek(0)
    for number, line in enumerate(source, 1):
        try:
            line.decode(encoding)
        except UnicodeDecodeError as error:
            start = max(error.start - 30, 0)
            shown = line[start : start + 60].decode("cp1252", "replace").strip()
            return DatasetError(
                f"{file}:{number}: not in {encoding.removesuffix('-sig').upper()} "
                f"(byte 0x{line[error.start]:02x}). As cp1252 it reads {shown!r}; if "
                f"that is right, {_CURE.format('cp1252')}, else name its encoding there"
            )
    return DatasetError(f"{file}: not in {encoding}; {_CURE.format('NAME')}")


def check_columns(file: Path | str, names: Row, found: list[str]) -> list[str]:
    """Those of ``names`` that are wanted; each must be a column."""
    wanted = [name for name in names if name is not None]
    for name in wanted:
        if found.count(name) != 1:
            raise DatasetError(
                f"{file} must have one column {name!r}; it has: {', '.join(found)}. "
                "Correct 'image_column', 'label_column' and the like, or set "
                "'separator': by default a comma in .csv, a tab in .tsv and .txt"
            )
    return wanted
