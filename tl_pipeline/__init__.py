"""Transfer learning on images as a pipeline that runs every night.

``config`` says what is wanted; ``sources``, ``encoders.backbones`` and ``heads`` are
the families one adds to; ``pipeline.stages`` holds one verb a file, ``pipeline.wiring``
puts them in order, and ``store`` keeps what they wrote. Nothing in here imports
Prefect: the flow lives in the package ``flows``, and the command line starts it.
"""

TYPE_CHECKING = False  # typing itself would be most of what this import costs
if TYPE_CHECKING:
    import os

    from tl_pipeline.query import Reader

__all__ = ["open"]


def open(store: "str | os.PathLike[str]" = "tl_store") -> "Reader":  # noqa: A001 - as webbrowser.open
    """Open a store, a folder or URL, to read it in Python.

    Raises:
        StoreError: it cannot be used.
    """
    from tl_pipeline.query import Reader  # noqa: PLC0415 - seconds
    from tl_pipeline.store.artifacts import Store  # noqa: PLC0415

    return Reader(Store.open(store))
