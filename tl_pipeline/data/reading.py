"""The bytes of inputs, if they are still those that ingest saw."""

from collections.abc import Callable

from tl_pipeline.data.identity import image_id
from tl_pipeline.inputs.images import RefusedImage
from tl_pipeline.store.embeddings import RETRIED

# Refusals that say nothing about the image itself: the next run tries again.
UNREADABLE, CHANGED = RETRIED

Read = Callable[[str], bytes]
ImageRef = tuple[str, str]  # image_id, uri
Refusal = tuple[str, str, str]  # image_id, reason, detail


def checked(image: ImageRef, read: Read) -> bytes:
    """The bytes of ``image``.

    Raises:
        RefusedImage: they cannot be read, or are others.
    """
    expected, uri = image
    try:
        data = read(uri)
    except OSError as error:
        raise RefusedImage(UNREADABLE, f"{error}") from None
    if image_id(data) != expected:
        raise RefusedImage(CHANGED, f"{uri} changed since it was ingested")
    return data
