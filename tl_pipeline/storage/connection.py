"""Connects to what fsspec knows, with credentials out of the environment."""

import base64
import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin

import fsspec

from tl_pipeline.config.locations import StorageSpec, on_web, redacted, scheme
from tl_pipeline.errors import DatasetError
from tl_pipeline.storage import downloads

_EXTRAS = {"s3": "s3", "gs": "gcs", "https": "http", "http": "http"}
_QUERY = re.compile(r"\?[^\s'\")]*=[^\s'\")]*")
# What a server, or the disk here, would answer again.
_LASTING = {
    *(errno.EINVAL, errno.ENOSYS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.EROFS, errno.EMFILE),
}
_DENIED = re.compile(r"credential|refresherror|tokenretrieval|unauthor", re.IGNORECASE)


def connect(
    url: str,
    spec: StorageSpec,
    allowed: Callable[[str], bool] | None = None,
    *,
    write: bool = False,
) -> Any:
    """The fsspec file system for ``url``. Nothing is asked for yet.

    Raises:
        DatasetError: its library is not installed, or a variable is not set.
    """
    kind = scheme(url)
    secrets = {name: _secret(name, v) for name, v in spec.credentials.items()}
    options = {"s3": _s3, "gs": _gs}.get(kind)
    try:
        given = options(spec, secrets) if options else _web(secrets, allowed)
        if write and kind == "gs":
            given["access"] = "read_write"
        # Neither credentials nor listings may outlive this run in fsspec's caches.
        uncached = {"skip_instance_cache": True, "use_listings_cache": False}
        return fsspec.filesystem(kind, **given, **uncached)
    except ImportError as error:
        raise DatasetError(
            f"{kind}:// needs a library that is not installed ({error}): "
            f"pip install 'tl-pipeline[{_EXTRAS[kind]}]'"
        ) from None


def _secret(name: str, variable: str) -> str:
    value = os.environ.get(variable, "")
    if not value:
        raise DatasetError(
            f"the environment variable {variable} is not set, which "
            f"storage.credentials.{name} names; set it, or correct the catalogue"
        )
    return value


def _s3(spec: StorageSpec, secrets: dict[str, str]) -> dict[str, Any]:
    client = {"endpoint_url": spec.endpoint_url, "region_name": spec.region}
    return {
        **secrets,
        "anon": spec.anonymous,
        "client_kwargs": {name: value for name, value in client.items() if value},
        "max_concurrency": 1,  # more would ask for the size before every read
    }


def _gs(spec: StorageSpec, secrets: dict[str, str]) -> dict[str, Any]:
    token = "anon" if spec.anonymous else secrets.get("token")
    # What is no file gcsfs would send to Google as if it were a token.
    if "token" in secrets and not Path(secrets["token"]).is_file():
        raise DatasetError(
            f"the environment variable {spec.credentials['token']} must hold the path "
            "of a service account's JSON file; there is no such file"
        )
    given = {"token": token, "endpoint_url": spec.endpoint_url}
    read = {"access": "read_only"}
    return read | {name: value for name, value in given.items() if value}


def _web(
    secrets: dict[str, str], allowed: Callable[[str], bool] | None
) -> dict[str, Any]:
    import aiohttp  # noqa: PLC0415 - an extra

    async def look(_session: Any, _context: Any, asked: Any) -> None:
        header = asked.response.headers.get("Location", "")
        target = urljoin(str(asked.response.url), header)
        if allowed is not None and not allowed(target):
            raise PermissionError(
                f"redirected to {redacted(target)}, which neither 'root' nor "
                "'allowed_urls' covers"
            )

    redirects = aiohttp.TraceConfig()
    redirects.on_request_redirect.append(look)
    headers = {"Accept-Encoding": "identity"}  # or ranges would be of packed bytes
    if "token" in secrets:
        headers["Authorization"] = f"Bearer {secrets['token']}"
    if "user" in secrets:
        pair = f"{secrets['user']}:{secrets['password']}".encode()
        headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
    # By default a download of more than five minutes is broken off.
    times = aiohttp.ClientTimeout(
        total=None, sock_connect=10, sock_read=downloads.SILENCE
    )
    client = {"headers": headers, "timeout": times, "trace_configs": [redirects]}
    return {"client_kwargs": client}


def is_transient(error: Exception) -> bool:
    """Whether asking again may help."""
    cause = _cause(error)
    status = getattr(cause, "status", None)
    if status is not None:
        return status == 429 or status >= 500
    lasting = (FileNotFoundError, PermissionError, ValueError, ImportError)
    known = isinstance(cause, lasting) or getattr(cause, "errno", None) in _LASTING
    return not known


def fault(
    url: str, error: Exception, spec: StorageSpec, cure: str | None = None
) -> OSError:
    """What went wrong with ``url``, without any secret.

    It is a ``ConnectionError`` where asking again may help.
    ``cure`` is what helps where access is denied; by default what the catalogue can.
    """
    cause = _cause(error) if on_web(url) else error
    status = getattr(cause, "status", None) or vars(cause).get("code")
    said = _scrubbed(str(cause) or type(cause).__name__, spec)
    if (
        status in (401, 403)
        or isinstance(cause, PermissionError)
        or _DENIED.search(type(cause).__name__)
        or said.startswith("Forbidden")  # gcsfs
    ):
        return PermissionError(
            f"{url}: access denied ({said}); {cure or _cure(url, spec)}"
        )
    if status in (404, 410) or isinstance(cause, FileNotFoundError):
        reason = f" ({said})" if " " in said else ""  # or it is the name again
        return FileNotFoundError(f"{url}: nothing is there{reason}")
    if on_web(url) and downloads.is_timeout(cause):
        said = f"{said}; {downloads.silence('there')}"
    kind = ConnectionError if is_transient(error) else OSError
    return kind(f"{url}: {said}")


def _cause(error: Exception) -> Exception:
    """Of HTTP fsspec says "not found", whatever happened, and keeps what did."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and isinstance(cause, Exception):
        return cause
    return error


def _scrubbed(text: str, spec: StorageSpec) -> str:
    for variable in spec.credentials.values():
        if value := os.environ.get(variable):
            text = text.replace(value, "***").replace(quote(value, safe=""), "***")
    return _QUERY.sub("?...", " ".join(text.split()))


def _cure(url: str, spec: StorageSpec) -> str:
    named = ", ".join(spec.credentials.values())
    if named:
        return f"look at what {named} hold and may read"
    if on_web(url):
        return "name variables under 'storage.credentials'"
    return (
        "log in as usual, name variables under 'storage.credentials', or say "
        "'storage: {anonymous: true}' of what is public"
    )
