"""The handwritten digits that scikit-learn ships (UCI, Alpaydin & Kaynak 1998)."""

import gzip
import importlib.util
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from tl_pipeline.config.datasets import DigitsSpec
from tl_pipeline.errors import DatasetError
from tl_pipeline.inputs.images import as_ppm
from tl_pipeline.sources.entry import Entry, Source


class Digits(Source):
    """1,797 grey images of 8x8 pixels, ten classes, no declared split.

    An image is given as a binary PGM (see ``images.as_ppm``).
    """

    def __init__(self, spec: DigitsSpec) -> None:
        self._spec = spec

    def entries(self) -> Iterator[Entry]:
        """One entry per digit, in scikit-learn's order."""
        for index, row in enumerate(self._rows):
            yield Entry(uri=f"digits:{index:04d}", label=str(row[64]))

    def read(self, uri: str) -> bytes:
        """The digit as PGM, its 17 grey levels spread over 0..255."""
        index = int(uri.removeprefix("digits:"))
        if index not in range(len(self._rows)):
            raise FileNotFoundError(f"{uri}: there are {len(self._rows)} digits")
        levels = self._rows[index, :64]
        return as_ppm(np.rint(levels * 255 / 16).astype(np.uint8).reshape(8, 8))

    @cached_property
    def _rows(self) -> np.ndarray:
        # Importing scikit-learn takes a second, which `tl plan` has not got. The file
        # that load_digits reads is read here; a test compares the two.
        package = importlib.util.find_spec("sklearn")
        if package is None or package.origin is None:
            raise DatasetError("digits come with scikit-learn, which is not installed")
        file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
        with gzip.open(file, "rt") as lines:
            return np.loadtxt(lines, delimiter=",").astype(np.int64)
