"""Downloads by other libraries: a line tells each, and none waits for ever."""

import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from tl_pipeline import progress
from tl_pipeline.config.locations import redacted
from tl_pipeline.errors import TransferLearningError

SILENCE = 60.0  # seconds without a byte that are waited for


class _Watch(urllib.request.BaseHandler):
    """Tells each file that urllib fetches, and lets no request wait for ever."""

    def __init__(self) -> None:
        self.url = ""

    def http_request(self, request: urllib.request.Request) -> urllib.request.Request:
        self.url = redacted(request.full_url)
        if not isinstance(request.timeout, int | float):  # none was asked for
            request.timeout = SILENCE
        return request

    def http_response(self, request: urllib.request.Request, response: Any) -> Any:
        if response.status == 200 and request.get_method() == "GET":
            size = response.headers.get("Content-Length")
            megabytes = f" ({int(size) / 1e6:,.1f} MB)" if size else ""
            progress.notice(f"downloading {redacted(request.full_url)}{megabytes}")
        return response

    https_request, https_response = http_request, http_response


@contextmanager
def watched() -> Iterator[None]:
    """Tell what is downloaded in the block; an error of it tells what it waited for.

    torch and torchvision download by urllib, which waits for ever by default; so
    the opener of the process is another in the block. What downloads otherwise has time
    limits of its own.

    Raises:
        TransferLearningError: what the block raises, and what was waited for if nothing
            came from there any more.
    """
    before = getattr(urllib.request, "_opener", None)
    watch = _Watch()
    urllib.request.install_opener(urllib.request.build_opener(watch))
    try:
        with redirect_stdout(sys.stderr):  # they print there what nobody asked for
            yield
    except TransferLearningError as error:
        if not is_timeout(error):
            raise
        raise type(error)(f"{error}. {silence(watch.url or 'the server')}") from None
    finally:
        urllib.request.install_opener(before)  # pyright: ignore[reportArgumentType]


def is_timeout(error: BaseException | None) -> bool:
    """Whether ``error``, or what it came of, is that nothing came in time."""
    while error is not None:
        reason = getattr(error, "reason", None)  # of urllib's
        if any("timeout" in type(e).__name__.lower() for e in (error, reason)):
            return True
        error = error.__cause__ or error.__context__
    return False


def silence(url: str) -> str:
    """That ``url`` was waited for in vain, and what may help."""
    return (
        f"nothing came from {url} for {SILENCE:g} s: does a proxy or firewall hold the "
        "connection? See that https_proxy is right, or bring the file from another "
        "machine"
    )
