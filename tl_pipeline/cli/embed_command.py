"""``tl embed``: the embeddings of new files."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tl_pipeline.cli import row_formats
from tl_pipeline.cli.request import StoreOption


def embed(
    files: list[Path],
    /,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    encoder: str | None = None,
    store: StoreOption = "tl_store",
) -> None:
    """Write the embeddings of new files, as a run would make them; none are stored.

    Those of a dataset are in the store: `tl sql --output` writes them.

    Args:
        files: images, texts in UTF-8, or vectors as .npy.
        output: the file to write, .parquet, .csv, .json or .jsonl: file and embedding.
        encoder: its name, key or backbone in the view encoders. Default: the only
            trained one.
        store: folder or URL of all artifacts.
    """
    import pyarrow as pa

    from tl_pipeline.query import Reader
    from tl_pipeline.store.artifacts import Store

    form = row_formats.chosen(None, output)
    vectors = Reader(Store.open(store)).embed(files, encoder)
    flat = pa.array(vectors.reshape(-1))
    embeddings = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    names = pa.array(map(str, files), pa.string())
    rows = pa.table({"file": names, "embedding": embeddings})
    row_formats.write(rows, form, output)
