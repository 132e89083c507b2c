"""Published files to local ones: resumed, checked, and never half there.

The standard library does the talking: huggingface-hub's HTTP client has changed twice within the range of versions
we accept. These variables of the environment change the rest:

    TRANSEPT_OFFLINE, HF_HUB_OFFLINE   1: nothing is asked of the network (offline.py)
    TRANSEPT_MIRROR                    a prefix: with https://mirror.example/transept, https://host/dir/file.pth is
                                       asked for as https://mirror.example/transept/host/dir/file.pth
    TRANSEPT_TIMEOUT                   seconds to wait for a connection and for each piece of an answer (30)
    TRANSEPT_RETRIES                   attempts after one that failed; 256 KiB of progress start the count anew (4)
    TRANSEPT_BACKOFF                   seconds before the first of them; each further wait is twice as long (1)
    HTTP_PROXY, HTTPS_PROXY, NO_PROXY  as everywhere
    TORCH_HOME                         the parent of torch's hub cache, where the files are kept
"""

import math
import os
import re
import socket
import ssl
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPResponse, IncompleteRead, InvalidURL
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from transept.errors import TranseptError, UsageError, is_live
from transept.weights.fetch.keeping import WEB_PAGE, AttemptError, Edition, Part, alone, is_kept, local_path
from transept.weights.fetch.offline import offline_variable

_PIECE = 2**18
"""Most bytes held in memory, and the fewest that count as progress."""
_PATIENCE = 120.0
"""Seconds that a server's Retry-After may ask for, and the longest wait of our own."""
_PASSING = {408, 425, 429, 500, 502, 503, 504}
"""HTTP statuses after which the same request may succeed."""


def fetch(url: str, *, sha256: str | None = None, progress: bool | None = None) -> Path:
    """The local copy of a published file, downloaded into torch's hub cache on first use.

    A download that was cut off goes on where it stopped, also in a later process; one that another process has
    begun is waited for. The file has its name only when it is whole and its hash is right.

    Args:
        url: http or https; a redirect from https to http is refused.
        sha256: of the whole file, in hexadecimal; its first eight digits or more suffice. A file that lies in the
            cache is checked too.
        progress: a bar on stderr; default: where that is a terminal.

    Raises:
        UsageError: `url`, `sha256` or a variable of the environment is malformed.
        TranseptError: the file cannot be had, is not the one published, or cannot be kept; one sentence says why
            and where to put it by hand.
    """
    path = local_path(url)
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{8,64}", sha256):
        raise UsageError(f"sha256={sha256!r} is no SHA-256; give 8 to 64 hexadecimal digits")
    if is_kept(path, url, sha256):
        return path
    if variable := offline_variable():
        raise TranseptError(
            f"{url} has not been downloaded yet and {variable} forbids to; unset it, or fetch the file by hand to "
            f"{str(path)!r}, or go on without published weights"
        )
    settings = _Settings.of_environment()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _bar(path.name, progress) as show, alone(path, lambda note: show(0, None, note)):
            if not is_kept(path, url, sha256):  # by a process that had the lock
                _download(url, path, sha256, settings, show)
    except OSError as error:  # of the disk: those of the network are troubles by now
        raise TranseptError(
            f"cannot keep {url} in {str(path.parent)!r} ({error.strerror or error}); give it room and the right to "
            "write, or set TORCH_HOME to another folder"
        ) from error
    return path


@dataclass(frozen=True, slots=True)
class _Settings:
    mirror: str
    timeout: float
    retries: int
    backoff: float

    @classmethod
    def of_environment(cls) -> "_Settings":
        mirror = os.environ.get("TRANSEPT_MIRROR", "").strip().rstrip("/")
        if mirror and not re.match(r"https?://[^/@]+", mirror):
            raise UsageError(
                f"TRANSEPT_MIRROR={mirror!r} is no prefix of an http or https address; correct or unset it"
            )
        timeout = _number("TRANSEPT_TIMEOUT", 30, "a positive number of seconds", lowest=1e-3)
        retries = _number("TRANSEPT_RETRIES", 4, "a number of attempts")
        return cls(mirror, timeout, int(retries), _number("TRANSEPT_BACKOFF", 1, "a number of seconds"))

    def source_of(self, url: str) -> str:
        """Where `url` is asked for: itself, or prefix/host/path on the mirror."""
        if not self.mirror or url.startswith(f"{self.mirror}/"):
            return url
        address = urlsplit(url)
        return f"{self.mirror}/{address.netloc}{address.path}" + (f"?{address.query}" if address.query else "")


def _number(variable: str, default: float, wanted: str, lowest: float = 0.0) -> float:
    text = os.environ.get(variable, "").strip()
    try:
        value = float(text or default)
    except ValueError:
        value = math.nan
    if not lowest <= value <= 1e6:  # not a number is outside too
        raise UsageError(f"{variable}={text!r} is not {wanted}; correct or unset it")
    return value


class _Show(Protocol):
    def __call__(self, done: int, total: int | None, note: str = "") -> None: ...


@contextmanager
def _bar(name: str, progress: bool | None) -> Iterator[_Show]:
    """A progress bar on stderr, or nothing. The function yielded takes bytes."""
    if not (is_live() if progress is None else progress):
        yield lambda done, total, note="": None
        return
    # Only a bar on a terminal needs it.
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=None)

        def show(done: int, total: int | None, note: str = "") -> None:
            bar.update(task, completed=done, total=total, description=f"{name}: {note}" if note else name)

        yield show


def _download(url: str, path: Path, sha256: str | None, settings: _Settings, show: _Show) -> None:
    part = Part(path, settings.source_of(url))
    opener = _opener()
    attempts = failures = 0
    furthest = part.size
    while True:
        attempts += 1
        try:
            _attempt(opener, part, settings.timeout, hashed=sha256 is not None, show=show)
            part.finish(path, sha256)
            return
        except AttemptError as trouble:
            # A line that breaks every minute still brings the file; what was had before is no progress.
            failures = 0 if part.size - furthest >= _PIECE else failures + 1
            furthest = max(furthest, part.size)
            if not trouble.again or failures > settings.retries:
                mirrored = f" from the mirror as {part.source}" if part.source != url else ""
                often = f", tried {attempts} times" if attempts > 1 else ""
                go_on = f"call again to go on after {part.size} bytes, or " if trouble.again and part.size else ""
                raise TranseptError(
                    f"could not download {url}{mirrored} ({trouble}{often}); {go_on}fetch it by hand to {str(path)!r}, "
                    f"{'' if mirrored else 'name a mirror in TRANSEPT_MIRROR, '}or go on without published weights"
                ) from trouble
            wait = settings.backoff * 2 ** max(failures - 1, 0) if trouble.wait is None else trouble.wait
            show(
                part.size,
                part.edition.length if part.edition else None,
                f"{trouble}, again in {min(wait, _PATIENCE):.0f} s",
            )
            time.sleep(min(wait, _PATIENCE))


def _attempt(opener: urllib.request.OpenerDirector, part: Part, timeout: float, *, hashed: bool, show: _Show) -> None:
    """One request for what is missing, appended to `part`."""
    known = part.edition
    start = part.size if known and known.resumable else 0
    request = urllib.request.Request(part.source, headers={"User-Agent": "transept"})
    if known and start == known.length:
        return
    if known and start:
        request.add_header("Range", f"bytes={start}-")
        if known.validator:
            request.add_header("If-Range", known.validator)
    with _answer(opener, request, timeout) as response:
        if start and response.status == 416:
            part.discard()
            raise _changed()
        _check(response, (200, 206) if start else (200,))
        if response.status == 206:
            expected = _continue(part, response)
        else:
            start, expected = 0, response.length
            _begin(part, response, hashed)
        total = part.edition.length if part.edition else None
        with part.file.open("ab") as file:
            for piece in _pieces(response, expected, timeout):
                file.write(piece)
                start += len(piece)
                show(start, total)
        if expected is not None and _goes_on(response):
            part.discard()
            raise AttemptError(f"the server sends more than the {total or expected} bytes that it announces")
    if total is not None and start < total:
        raise AttemptError(f"the connection ended after {start} of the {total} bytes announced", again=True)


def _changed() -> AttemptError:
    return AttemptError("the file has changed on the server since a part of it was downloaded", again=True, wait=0)


def _check(response: HTTPResponse, wanted: tuple[int, ...]) -> None:
    """The answer brings a file."""
    status, headers = response.status, response.headers
    if status not in wanted:
        seconds = _retry_after(headers.get("Retry-After"))
        late = f", and asks to come back in {seconds:.0f} s" if seconds and seconds > _PATIENCE else ""
        again = status in _PASSING and not late
        raise AttemptError(f"the server answers {status} {response.reason}{late}", again=again, wait=seconds)
    if headers.get_content_type() == "text/html":
        raise AttemptError(WEB_PAGE)
    if (coding := headers.get("Content-Encoding", "identity").lower()) != "identity":
        raise AttemptError(f"the server packs the file as {coding!r} although asked not to")


def _begin(part: Part, response: HTTPResponse, hashed: bool) -> None:
    """The answer is the whole file."""
    if response.length is None and not response.chunked and not hashed:
        raise AttemptError("the server does not say how long the file is, so nobody could tell whether it is whole")
    if response.length == 0:
        raise AttemptError("the server sent an empty file")
    part.begin(_edition(part, response, response.length))


def _continue(part: Part, response: HTTPResponse) -> int:
    """The answer is a range of the file, of so many bytes."""
    first, last, total = _content_range(response.headers.get("Content-Range"))
    if part.edition is None or first != part.size or not part.edition.may_be(_edition(part, response, total)):
        part.discard()
        raise _changed()
    size = last - first + 1
    if response.length not in (None, size):
        raise AttemptError(f"the server announces {response.length} bytes for a range of {size}", again=True)
    part.pieced = True
    return size


def _edition(part: Part, response: HTTPResponse, length: int | None) -> Edition:
    return Edition(part.source, response.headers.get("ETag"), response.headers.get("Last-Modified"), length)


def _pieces(response: HTTPResponse, expected: int | None, timeout: float) -> Iterator[bytes]:
    """The body as it comes, but no more than `expected` bytes."""
    if response.will_close:
        response.length = None  # http.client would stop there and hide what follows
    while expected is None or expected > 0:
        try:
            piece = response.read1(_PIECE if expected is None else min(_PIECE, expected))
        except (OSError, HTTPException) as error:
            raise _trouble(error, timeout) from error
        if not piece:
            return
        if expected is not None:
            expected -= len(piece)
        yield piece


def _goes_on(response: HTTPResponse) -> bool:
    """The server sends more after the announced end. Where it keeps the connection, nobody can tell."""
    if not (response.will_close or response.chunked):
        return False
    try:
        return bool(response.read1(1))
    except (OSError, HTTPException):
        return False


def _content_range(header: str | None) -> tuple[int, int, int | None]:
    """First and last byte, and the whole's length, None where unknown."""
    fit = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", (header or "").strip())
    if fit is None:
        raise AttemptError(f"the server answers a range with Content-Range {header!r}")
    first, last, total = fit.groups()
    return int(first), int(last), None if total == "*" else int(total)


def _retry_after(header: str | None) -> float | None:
    """Seconds; the header holds those or a date."""
    if header is None:
        return None
    try:
        return max(
            0.0, float(header) if header.strip().isdigit() else parsedate_to_datetime(header).timestamp() - time.time()
        )
    except ValueError:
        return None


class _Answers(urllib.request.HTTPErrorProcessor):
    """Only redirects go to the other handlers; an answer that is an error is an answer still."""

    def http_response(self, request: urllib.request.Request, response: HTTPResponse) -> HTTPResponse:
        return super().http_response(request, response) if 300 <= response.status < 400 else response

    https_response = http_response


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        scheme = urlsplit(newurl).scheme
        if scheme not in ("http", "https") or (req.type == "https" and scheme == "http"):
            raise AttemptError(f"it redirects from {req.type} to {newurl}, which is refused as less safe")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """Web addresses only: `build_opener` would also follow to ftp. Proxies are those of the environment."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        _Answers(),
        urllib.request.UnknownHandler(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


def _answer(opener: urllib.request.OpenerDirector, request: urllib.request.Request, timeout: float) -> HTTPResponse:
    """The server's answer after redirects, whatever its status."""
    try:
        return opener.open(request, timeout=timeout)
    except HTTPError as error:  # a redirect that leads nowhere, or in a circle
        error.close()
        reason = str(error.reason).partition("\n")[0].rstrip(".")
        raise AttemptError(f"the server answers {error.code}: {reason}") from error
    except (OSError, HTTPException, UnicodeError) as error:
        raise _trouble(error, timeout) from error


def _trouble(error: Exception, timeout: float) -> AttemptError:
    """A failure of the network, in words. Certificates and missing names stay as they are when asked again."""
    reason = error.reason if isinstance(error, URLError) and isinstance(error.reason, Exception) else error
    if isinstance(reason, TimeoutError):
        return AttemptError(f"nothing came for {timeout:g} s", again=True)
    if isinstance(reason, IncompleteRead):
        return AttemptError("the connection ended before the file did", again=True)
    words = reason.strerror if isinstance(reason, OSError) and reason.strerror else str(reason)
    final = isinstance(reason, ssl.SSLCertVerificationError | InvalidURL | UnicodeError) or type(reason) is URLError
    unnamed = isinstance(reason, socket.gaierror) and reason.errno == socket.EAI_NONAME
    return AttemptError(words or type(reason).__name__, again=not (final or unnamed))
