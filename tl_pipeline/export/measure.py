"""What an exported folder says of files: python -I -B measure.py FOLDER GIVEN.

Run by ``checking`` in a process of its own that has no part of this package. ``GIVEN``
holds files by number, and ``pixels.npy`` as the pipeline prepares them; it gets
``found.npz``.
"""

import sys
import time
from pathlib import Path

import numpy as np

ALONE = 32  # images of which each is timed

folder, given = sys.argv[1:]
sys.path.insert(0, folder)
import predict  # noqa: E402 # pyright: ignore[reportMissingImports]

classifier = predict.Classifier(folder)
pixels = np.load(Path(given) / "pixels.npy")
step = 16
parts = [pixels[at : at + step] for at in range(0, len(pixels), step)]
as_pixels = np.concatenate([classifier.network(part) for part in parts])
as_files = np.full_like(as_pixels, np.nan)
seconds, why = [], ""
for number in range(len(pixels)):
    data = (Path(given) / str(number)).read_bytes()
    started = time.perf_counter()
    try:
        as_files[number] = classifier(data)
    except (OSError, ValueError, SyntaxError) as fault:
        why = f"{fault}"
    seconds.append(time.perf_counter() - started)
np.savez(
    Path(given) / "found.npz",
    as_pixels=as_pixels,
    as_files=as_files,
    milliseconds=1000 * np.median(seconds[-ALONE:]),
    why=why,
    alone=not any(name.startswith("tl_pipeline") for name in sys.modules),
)
