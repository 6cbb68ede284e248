"""What kind of file some bytes begin, to say it where another kind was expected."""

import re

from tl_pipeline.inputs import refusals as inputs

_STARTS = {
    b"\x28\xb5\x2f\xfd": "compressed by Zstandard",
    b"\x1f\x8b": "compressed by gzip",
    b"BZh": "compressed by bzip2",
    b"\xfd7zXZ": "compressed by xz",
    b"\x04\x22\x4d\x18": "compressed by LZ4",
    b"LZIP": "compressed by lzip",
    b"\x1f\x9d": "compressed by compress (.Z)",
    b"PK\7\x08": "one of several volumes of a zip archive",
    b"MZ": "a Windows program, perhaps an archive that unpacks itself",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"SQLite format 3": "an SQLite database",
    b"\xd0\xcf\x11\xe0": "an old Excel or Word file",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x89PNG": "a PNG image",
}
_HTML = re.compile(rb"(?is)(<!--.*?-->\s*)*<(!doctype\s+html|html|head)\b")
_MARKUP = {
    b"<": "XML, perhaps an error message",
    b"{": "JSON, perhaps an error message",
}
LENGTH = 1024  # bytes that are looked at


def kind_of(head: bytes) -> str | None:
    """What the file is that begins with ``head``, with its article; None: not known."""
    if not head:
        return "empty"
    for start, kind in _STARTS.items():
        if head.startswith(start):
            return kind
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if _HTML.match(text):
        return "an HTML page: a download page was saved in place of the file"
    return _MARKUP.get(text[:1]) or inputs.kind_of(head)
