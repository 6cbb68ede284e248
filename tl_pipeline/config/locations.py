"""Where data lies, as values: local paths, URLs, how to get at them. Nothing is opened.

A URL is a string, a local path a ``Path``.
"""

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TypeGuard
from urllib.parse import parse_qsl, quote, unquote

from pydantic import BeforeValidator, ConfigDict, Field, PlainValidator

from tl_pipeline.config.specs import Spec

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_WEB = ("https", "http")
SCHEMES = ("s3", "gs", *_WEB)
# What ``StorageSpec`` may say of each.
_OPTIONS = {
    "s3": {"endpoint_url", "region", "anonymous", "key", "secret", "token"},
    "gs": {"endpoint_url", "anonymous", "token"},
    "https": {"token", "user", "password"},
    "http": {"token", "user", "password"},
}
_PAIRS = ({"key", "secret"}, {"user", "password"})
_SIGNED = re.compile(
    r"x-(amz|goog)-.*|.*(signature|token|password|secret|credential).*|sig"
    r"|api_?key|awsaccesskeyid"
)
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
_KEY_ID = re.compile(r"(AKIA|ASIA)[A-Z0-9]{8,}")


def is_url(value: object) -> TypeGuard[str]:
    """Whether this is text of the form ``scheme://...``, of whatever scheme."""
    return isinstance(value, str) and _URL.match(value) is not None


def scheme(url: str) -> str:
    """What stands before ``://``, in lower case."""
    return url.partition("://")[0].lower()


def on_web(url: str) -> bool:
    """Whether it is of HTTP, which has no folders and gives every host its own say."""
    return scheme(url) in _WEB


def parts(url: str) -> list[str]:
    """Scheme, host or bucket, and the names that lead to what is there.

    Those of a web address without its query, and with percent-encoding undone.
    """
    head, host, path = scheme(url), *_split(url)
    if on_web(url):
        host, path = host.lower(), unquote(path)
    return [head, *filter(None, [host, *path.split("/")])]


def covers(place: str, url: str) -> bool:
    """Whether ``url`` is ``place`` or lies below it; never one with ``..`` in it."""
    outer, inner = parts(place), parts(url)
    return inner[: len(outer)] == outer and ".." not in inner and "\\" not in url


def below(folder: str, name: str) -> str | None:
    """The URL of a relative path in a folder; None where it would leave it."""
    names = PurePosixPath(name).parts
    if name.startswith("/") or ".." in names or not names:
        return None
    path = "/".join(names)
    return f"{folder.rstrip('/')}/{quote(path) if on_web(folder) else path}"


def folder_of(url: str) -> str:
    """The URL without its last name and without its query."""
    host, path = _split(url)
    return f"{scheme(url)}://{host}{path.rpartition('/')[0]}"


def name_of(place: Path | str) -> str:
    """The last name of a path or a URL."""
    return place.name if isinstance(place, Path) else parts(place)[-1]


def redacted(url: str) -> str:
    """``url`` without the credentials that it may hold; a harmless one as it is."""
    if not on_web(url):
        return url
    host, path = _split(url)
    plain = f"{scheme(url)}://{host.rpartition('@')[2]}{path}"
    query = parse_qsl(url.partition("?")[2].partition("#")[0], keep_blank_values=True)
    if "@" in host or any(_SIGNED.fullmatch(name.lower()) for name, _ in query):
        return f"{plain}?..."
    return url


def _split(url: str) -> tuple[str, str]:
    """Host or bucket, and path, of which only a web address has a query."""
    rest = url.partition("://")[2]
    if on_web(url):
        rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    host, slash, path = rest.partition("/")
    return host, slash + path


def _location(value: Any) -> Path | str:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str):
        raise ValueError("must be a path or a URL")  # noqa: TRY004 - for pydantic
    return _url(value) if is_url(value) else Path(value)


def _url(value: Any, *, host: bool = True) -> str:
    choices = ", ".join(f"{name}://" for name in SCHEMES)
    if not is_url(value) or scheme(value) not in SCHEMES:
        raise ValueError(f"must be a local path or begin with one of {choices}")
    if redacted(value) != value:
        raise ValueError(
            "a URL must not hold credentials; name the environment variables that "
            "hold them under storage.credentials"
        )
    if re.search(r"[\s\\]", value.partition("://")[2].partition("/")[0]):
        raise ValueError("the URL's host or bucket must hold no space or backslash")
    if host and len(parts(value)) < 2:
        raise ValueError("the URL must name a host or a bucket")
    return scheme(value) + "://" + value.partition("://")[2]


def _local(value: Any) -> Any:
    if is_url(value):
        raise ValueError(
            "must be a local path: of the datasets only image_folder, table, archive "
            "and webdataset are read from URLs; download it first"
        )
    return value


def _variable(value: Any) -> str:
    text = value if isinstance(value, str) else ""
    if not _VARIABLE.fullmatch(text) or _KEY_ID.fullmatch(text):
        raise ValueError(
            "must be the name of an environment variable, such as MY_SECRET, that "
            "holds the value; never the value itself"
        )
    return text


_SHOWN: dict[str, Any] = {
    "type": "string",
    "description": "a path, or s3://, gs://, https://, http://",
}
Location = Annotated[
    Path | str, BeforeValidator(_location), Field(json_schema_extra=_SHOWN)
]
LocalPath = Annotated[Path, BeforeValidator(_local)]
UrlPrefix = Annotated[str, BeforeValidator(lambda value: _url(value, host=False))]
Variable = Annotated[
    str,
    PlainValidator(_variable, json_schema_input_type=str),
    Field(json_schema_extra={"pattern": f"^{_VARIABLE.pattern}$"}),
]
Secret = Literal["key", "secret", "token", "user", "password"]


class StorageSpec(Spec):
    """How to get at the URLs of one dataset; by default as their libraries do.

    ``credentials`` maps what is needed to the *names* of environment variables: s3
    ``key``, ``secret`` and perhaps ``token``; gs ``token`` (which holds the path of a
    service account's JSON file); https ``token`` (a bearer's), or ``user`` and
    ``password``. ``anonymous`` asks without any.
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    endpoint_url: UrlPrefix | None = None
    region: str | None = Field(default=None, pattern=r"^[a-z0-9-]+$")
    anonymous: bool = False
    credentials: dict[Secret, Variable] = Field(default_factory=dict)

    def check(self, places: Iterable[object]) -> None:
        """See that all this can be said of those ``places`` that are URLs.

        Raises:
            ValueError: of what cannot.
        """
        said = {name for name, value in self if value and name != "credentials"}
        said |= self.credentials.keys()
        if not said:
            return
        schemes = {scheme(place) for place in places if is_url(place)}
        if len(schemes) != 1:
            raise ValueError(
                "storage is how to get at URLs of one kind; those of this entry: "
                f"{', '.join(sorted(schemes)) or 'none'}"
            )
        (kind,) = schemes
        if wrong := said - _OPTIONS[kind]:
            raise ValueError(
                f"storage: {', '.join(sorted(wrong))} says nothing of {kind}://; "
                f"known: {', '.join(sorted(_OPTIONS[kind]))}"
            )
        if self.endpoint_url and not on_web(self.endpoint_url):
            raise ValueError("storage.endpoint_url must begin with https:// or http://")
        if any(len(pair & said) == 1 for pair in _PAIRS):
            raise ValueError("storage.credentials: key needs secret, user password")
        if self.credentials and self.anonymous:
            raise ValueError("storage: 'anonymous' asks without 'credentials'")
