"""Which JPEGs the hardware of a GPU can be given, by their bytes. Without torch."""

from tl_pipeline.inputs import images
from tl_pipeline.inputs.headers import baseline

Size = tuple[int, int]  # height, width
Sampling = tuple[int, int]  # of luma for one of chroma: down, across

_END = b"\xff\xd9"
_PADDING = 64  # bytes that may follow the end of an image


def size(data: bytes, samplings: frozenset[Sampling]) -> Size | None:
    """The size of a JPEG that is whole, upright, of colour and of one of ``samplings``.

    None of anything else.
    """
    header = baseline(data)
    if header is None or header.sampling not in samplings:
        return None
    if _END not in data[-_PADDING:]:
        return None
    if header.exif and images.orientation(data):
        return None
    return header.height, header.width
