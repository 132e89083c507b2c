"""Downloads against a real server on the loopback that does everything a server should not."""

import hashlib
import http.server
import multiprocessing
import os
import resource
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from tests.weights.helpers import OFFLINE
from transept.errors import TranseptError, UsageError
from transept.weights.catalogue.records import CHECKPOINTS
from transept.weights.fetch.download import fetch
from transept.weights.fetch.keeping import local_path

DATA = bytes(range(256)) * 4000 + b"the end"
SHA256 = hashlib.sha256(DATA).hexdigest()


@dataclass
class Request:
    path: str
    range: str | None
    if_range: str | None
    host: str | None
    sent: int = 0


@dataclass
class Site:
    """A server and what it was asked for. `plan` has the answers of each path in turn; the last one is repeated."""

    server: http.server.ThreadingHTTPServer
    plan: dict[str, list[Callable[["Handler"], None]]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    go: threading.Event = field(default_factory=threading.Event)
    """What answers wait for that hang."""
    scheme: str = "http"

    def __call__(self, *answers: Callable[["Handler"], None], path: str = "/dir/weights.pth") -> str:
        """The URL under which `answers` will be given."""
        self.plan[path] = list(answers)
        return f"{self.scheme}://127.0.0.1:{self.server.server_port}{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site
    request_seen: Request

    def do_GET(self) -> None:
        heads = self.headers
        self.request_seen = Request(self.path, heads["Range"], heads["If-Range"], heads["Host"])
        self.site.requests.append(self.request_seen)
        answers = self.site.plan.get(self.path) or [status(404)]
        (answers.pop(0) if len(answers) > 1 else answers[0])(self)
        self.close_connection = True

    def head(self, code: int, **headers: object) -> None:
        self.send_response(code)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def send(self, data: bytes) -> None:
        self.wfile.write(data)
        self.request_seen.sent += len(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def status(code: int, **headers: object) -> Callable[[Handler], None]:
    return lambda handler: handler.head(code, Content_Length=0, Connection="close", **headers)


def file(
    data: bytes = DATA,
    *,
    etag: str | None = '"first"',
    modified: str | None = None,
    ranges: bool = True,
    conditions: bool = True,
    cut: int | None = None,
    reset: bool = False,
    hang: bool = False,
    announce: int = 0,
    connection: str | None = "close",
    **headers: object,
) -> Callable[[Handler], None]:
    """`data`, or the part asked for.

    Args:
        ranges: obeys Range; `conditions`: and If-Range.
        cut: so many bytes are sent; then the connection is closed, or `reset`, or `hang`s.
        announce: is added to the true length.
    """

    def answer(handler: Handler) -> None:
        asked, condition = handler.request_seen.range, handler.request_seen.if_range
        changed = conditions and condition is not None and condition not in (etag, modified)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and ranges and not changed else 0
        given = dict(ETag=etag, Last_Modified=modified, Connection=connection, **headers)
        if start >= len(data):
            handler.head(416, Content_Range=f"bytes */{len(data)}", Content_Length=0, **given)
            return
        body = data[start:]
        if start:
            given["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        handler.head(206 if start else 200, Content_Length=len(body) + announce, **given)
        handler.send(body[:cut])
        if hang:
            handler.site.go.wait(20)
        if reset:
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.connection.close()

    return answer


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Site]]:
    for name in os.environ:
        if name.upper() in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name)
        if name.startswith("TRANSEPT_"):
            monkeypatch.delenv(name)
    sites: list[Site] = []

    def start() -> Site:
        handler = type("SiteHandler", (Handler,), {})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.handle_error = lambda request, client_address: None  # clients that hang up are meant
        handler.site = Site(server)
        sites.append(handler.site)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return handler.site

    yield start
    for site in sites:
        site.go.set()
        site.server.shutdown()
        site.server.server_close()


@pytest.fixture
def site(serve: Callable[[], Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("TRANSEPT_BACKOFF", "0.01")
    monkeypatch.setenv("TRANSEPT_TIMEOUT", "10")
    return serve()


def left(path: Path) -> list[str]:
    """The files in the cache, but for locks."""
    return sorted(file.name for file in path.parent.iterdir() if not file.name.startswith("."))


def test_once(site: Site, capsys: pytest.CaptureFixture[str]):
    url = site(file())
    path = fetch(url, sha256=SHA256)
    assert path == local_path(url)
    assert path.read_bytes() == DATA
    assert left(path) == [path.name]
    assert fetch(url) == fetch(url, sha256=SHA256[:8].upper()) == path
    assert len(site.requests) == 1
    assert capsys.readouterr().err == ""  # no terminal, no bar


def test_names_tell_addresses_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    published = "https://dl.fbaipublicfiles.com/xcit/xcit_nano_12_p16_224.pth"
    assert local_path(published) == tmp_path / "hub" / "checkpoints" / "xcit_nano_12_p16_224.pth"
    urls = {checkpoint.url for checkpoint in CHECKPOINTS if checkpoint.url}
    assert len({local_path(url) for url in urls}) == len(urls)
    hub = "https://huggingface.co/timm/{}/resolve/main/model.safetensors"
    first, second = local_path(hub.format("one")), local_path(hub.format("two"))
    assert first != second
    assert first.name.startswith("huggingface.co_timm_one_resolve_main_model-")
    assert first.suffix == ".safetensors"
    assert local_path("https://a.example/weights.pth?v=1") != local_path("https://a.example/weights.pth?v=2")
    assert local_path("https://a.example/S24_224.pth").name != "S24_224.pth"
    odd = local_path(f"https://a.example/%2e%2e%2f{'x' * 400}/we%20ights.p%2ft%5ch")
    assert odd.parent == first.parent
    assert len(odd.name) < 200
    assert not set(odd.name) & set("/\\% ")


@pytest.mark.parametrize("how", ["closed", "reset"])
def test_goes_on_after_a_cut(site: Site, how: str):
    url = site(file(cut=300_000, reset=how == "reset"), file(cut=1000), file())
    assert fetch(url).read_bytes() == DATA
    first, second, third = site.requests
    assert (first.range, second.if_range, third.if_range) == (None, '"first"', '"first"')
    if how == "closed":  # what a reset lets through is chance
        assert (second.range, third.range) == ("bytes=300000-", "bytes=301000-")
        assert [request.sent for request in site.requests] == [300_000, 1000, len(DATA) - 301_000]


def test_a_line_that_always_breaks_but_brings_something(site: Site, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRANSEPT_RETRIES", "1")
    url = site(file(cut=270_000))
    assert fetch(url, sha256=SHA256).read_bytes() == DATA
    assert len(site.requests) == 4
    with pytest.raises(TranseptError, match="ended after 2000 of the 1024007 bytes announced, tried 2 times"):
        fetch(site(file(cut=1000), path="/crumbs.pth"))


def test_goes_on_in_a_later_call(site: Site, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRANSEPT_RETRIES", "0")
    url = site(file(cut=200_000), file())
    with pytest.raises(
        TranseptError, match=r"ended after 200000 of the 1024007 bytes announced\); call again to go on"
    ):
        fetch(url)
    path = local_path(url)
    assert not path.exists()
    assert fetch(url, sha256=SHA256) == path
    assert site.requests[1].sent == len(DATA) - 200_000
    assert left(path) == [path.name]


@pytest.mark.parametrize("etag", ['W/"weak"', None])
def test_goes_on_without_a_strong_tag(site: Site, etag: str | None):
    url = site(file(etag=etag, cut=1000), file(etag=etag))
    assert fetch(url).read_bytes() == DATA
    assert (site.requests[1].range, site.requests[1].if_range) == ("bytes=1000-", None)


def test_goes_on_by_date(site: Site):
    date = formatdate(1e9, usegmt=True)
    url = site(file(etag=None, modified=date, cut=1000), file(etag=None, modified=date))
    assert fetch(url).read_bytes() == DATA
    assert site.requests[1].if_range == date


def test_a_server_without_ranges(site: Site):
    url = site(file(cut=300_000), file(ranges=False))
    assert fetch(url, sha256=SHA256).read_bytes() == DATA
    assert [request.sent for request in site.requests] == [300_000, len(DATA)]


def test_a_server_without_ranges_that_always_cuts_at_one_place(site: Site, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRANSEPT_RETRIES", "2")
    url = site(file(ranges=False, cut=5000))
    with pytest.raises(TranseptError, match="ended after 5000 of the 1024007 bytes announced, tried 3 times"):
        fetch(url)


OTHER = DATA[::-1]


@pytest.mark.parametrize(
    ("data", "answer", "requests"),
    [
        (OTHER, dict(etag='"second"'), 1),  # If-Range brings the whole
        (OTHER, dict(etag='"second"', conditions=False), 2),  # a range of another edition
        (OTHER + b"longer", dict(etag=None, conditions=False), 2),  # told by its length alone
        (OTHER[:2000], dict(etag='"second"', conditions=False), 2),  # shorter than what is here: 416
    ],
)
def test_a_changed_file_starts_over(
    site: Site, data: bytes, answer: dict[str, Any], requests: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TRANSEPT_RETRIES", "0")
    url = site(file(cut=5000), file(data, **answer))
    with pytest.raises(TranseptError, match="call again to go on after 5000 bytes"):
        fetch(url)
    monkeypatch.setenv("TRANSEPT_RETRIES", "1")
    assert fetch(url).read_bytes() == data
    assert len(site.requests) == 1 + requests
    assert site.requests[-1].sent == len(data)


def test_pieces_of_two_editions_are_told_by_the_hash(site: Site):
    blind = dict(etag=None, conditions=False)
    url = site(file(OTHER, cut=5000, **blind), file(**blind))
    assert fetch(url, sha256=SHA256).read_bytes() == DATA
    assert [request.range for request in site.requests] == [None, "bytes=5000-", None]


def test_a_length_that_is_too_great(site: Site, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRANSEPT_RETRIES", "2")
    url = site(file(announce=10))
    with pytest.raises(TranseptError, match="could not download .*; fetch it by hand to"):
        fetch(url)
    assert not local_path(url).exists()


@pytest.mark.parametrize("sha256", [None, SHA256])
def test_a_length_that_is_too_small(site: Site, sha256: str | None):
    url = site(file(announce=-10))
    with pytest.raises(TranseptError, match="sends more than the 1023997 bytes that it announces"):
        fetch(url, sha256=sha256)
    assert left(local_path(url)) == []


def test_a_range_of_another_length(site: Site, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRANSEPT_RETRIES", "1")
    url = site(file(cut=24_007), file(announce=-10))
    with pytest.raises(TranseptError, match="announces 999990 bytes for a range of 1000000"):
        fetch(url)
    assert not local_path(url).exists()


def test_a_connection_that_stays_open(site: Site):
    """The end is where the length says, and is not waited for."""
    url = site(file(connection="keep-alive", cut=len(DATA), hang=True))
    start = time.perf_counter()
    assert fetch(url).read_bytes() == DATA
    assert time.perf_counter() - start < 5


def chunked(handler: Handler) -> None:
    handler.head(200, Transfer_Encoding="chunked", ETag='"first"')
    for start in range(0, len(DATA), 100_000):
        piece = DATA[start : start + 100_000]
        handler.send(b"%x\r\n%b\r\n" % (len(piece), piece))
    handler.send(b"0\r\n\r\n")


def chunked_cut(handler: Handler) -> None:
    handler.head(200, Transfer_Encoding="chunked", ETag='"first"')
    handler.send(b"%x\r\n%b\r\n" % (100_000, DATA[:100_000]))


def nameless_cut(handler: Handler) -> None:
    handler.head(200, Transfer_Encoding="chunked")
    handler.send(b"%x\r\n%b\r\n" % (100_000, OTHER[:100_000]))


def endless(handler: Handler) -> None:
    handler.head(200, Connection="close")
    handler.send(DATA)


def test_no_length(site: Site):
    assert fetch(site(chunked)).read_bytes() == DATA
    assert fetch(site(chunked_cut, file(), path="/cut.pth")).read_bytes() == DATA
    assert site.requests[-1].range == "bytes=100000-"
    assert fetch(site(nameless_cut, file(), path="/nameless.pth")).read_bytes() == DATA
    assert site.requests[-1].range is None
    with pytest.raises(TranseptError, match="does not say how long the file is"):
        fetch(site(endless, path="/endless.pth"))
    assert fetch(site(endless, path="/endless.pth"), sha256=SHA256).read_bytes() == DATA


def test_a_wrong_hash_leaves_nothing(site: Site):
    url = site(file())
    with pytest.raises(
        TranseptError, match=f"begins with {SHA256[:8]}, the published one with 01234567; what came was removed"
    ):
        fetch(url, sha256="01234567")
    assert left(local_path(url)) == []
    assert len(site.requests) == 1
    with pytest.raises(UsageError, match="give 8 to 64 hexadecimal digits"):
        fetch(url, sha256="1234567")


def test_a_cached_file_of_another_hash_stays(site: Site):
    path = fetch(site(file()))
    with pytest.raises(TranseptError, match="is not the file published at .*; move it away"):
        fetch(site(file()), sha256="f" * 64)
    assert path.read_bytes() == DATA
    assert len(site.requests) == 1


def test_redirects(site: Site, serve: Callable[[], Site], monkeypatch: pytest.MonkeyPatch):
    other = serve()
    target = other(file(cut=1000), file(), path="/there.bin")
    for code in (301, 302, 303, 307, 308):
        other.plan["/there.bin"] = [file(cut=1000), file()]
        url = site(status(code, Location="/near"), path=f"/{code}.pth")
        site(status(302, Location=target), path="/near")
        assert fetch(url).read_bytes() == DATA
        assert other.requests[-1].range == "bytes=1000-"
    url = site(status(302, Location="/dir/weights.pth"))
    with pytest.raises(TranseptError, match="answers 302: .*infinite loop"):
        fetch(url)
    for location in ("file:///etc/passwd", "ftp://127.0.0.1/weights.pth"):
        before = len(site.requests)
        with pytest.raises(TranseptError, match="could not download .*(file:|ftp:).*; fetch it by hand"):
            fetch(site(status(302, Location=location)))
        assert len(site.requests) == before + 1


def test_https(site: Site, tmp_path: Path, serve: Callable[[], Site], monkeypatch: pytest.MonkeyPatch):
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=127.0.0.1"
    extension = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", *words.split(), *extension], check=True, capture_output=True)
    safe = serve()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    safe.server.socket = context.wrap_socket(safe.server.socket, server_side=True)
    safe.scheme = "https"
    with pytest.raises(TranseptError, match="certificate verify failed"):
        fetch(safe(file()))
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert fetch(safe(file())).read_bytes() == DATA
    plain = site(file(), path="/plain.pth")
    with pytest.raises(TranseptError, match=f"redirects from https to {plain}, which is refused"):
        fetch(safe(status(302, Location=plain), path="/down.pth"))
    assert site.requests == []
    assert fetch(site(status(302, Location=safe(file())), path="/up.pth")).read_bytes() == DATA


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_answers_that_stay(site: Site, code: int):
    url = site(status(code))
    with pytest.raises(TranseptError) as caught:
        fetch(url)
    reason = http.HTTPStatus(code).phrase
    path = local_path(url)
    assert str(caught.value) == (
        f"could not download {url} (the server answers {code} {reason}); fetch it by hand to {str(path)!r}, "
        "name a mirror in TRANSEPT_MIRROR, or go on without published weights"
    )
    assert len(site.requests) == 1
    assert left(path) == []


def test_busy_servers(site: Site, monkeypatch: pytest.MonkeyPatch):
    start = time.perf_counter()
    assert fetch(site(status(503, Retry_After=1), status(500), file())).read_bytes() == DATA
    assert 1 <= time.perf_counter() - start < 5
    date = formatdate(time.time() + 2, usegmt=True)
    start = time.perf_counter()
    assert fetch(site(status(429, Retry_After=date), file(), path="/date.pth")).read_bytes() == DATA
    assert 0.9 <= time.perf_counter() - start < 5
    before = len(site.requests)
    with pytest.raises(TranseptError, match="answers 503 Service Unavailable, tried 5 times"):
        fetch(site(status(503), path="/always.pth"))
    assert len(site.requests) == before + 5
    with pytest.raises(TranseptError, match="asks to come back in 3600 s"):
        fetch(site(status(503, Retry_After=3600), path="/later.pth"))
    assert len(site.requests) == before + 6


def test_backoff_doubles(site: Site, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRANSEPT_BACKOFF", "0.2")
    monkeypatch.setenv("TRANSEPT_RETRIES", "3")
    start = time.perf_counter()
    with pytest.raises(TranseptError, match="tried 4 times"):
        fetch(site(status(503)))
    assert 1.4 <= time.perf_counter() - start < 4  # 0.2 + 0.4 + 0.8


@pytest.mark.parametrize(
    "page",
    [
        file(b"<p>Sign in</p>", Content_Type="text/html; charset=utf-8"),
        file(b"\xef\xbb\xbf\n<!DOCTYPE html>\n<html>Sign in", Content_Type="application/octet-stream"),
        file(b"<HTML>Sign in"),
    ],
)
def test_a_page_instead_of_the_file(site: Site, page: Callable[[Handler], None]):
    url = site(page)
    with pytest.raises(TranseptError, match="the server sent a web page, .*; open the address in a browser"):
        fetch(url, sha256=SHA256)
    assert left(local_path(url)) == []


def test_other_answers_that_are_no_file(site: Site):
    with pytest.raises(TranseptError, match="sent an empty file"):
        fetch(site(status(200)))
    with pytest.raises(TranseptError, match="packs the file as 'gzip'"):
        fetch(site(file(Content_Encoding="gzip")))
    with pytest.raises(TranseptError, match="answers 206"):
        fetch(site(status(206, Content_Range="bytes 0-9/10")))


@pytest.mark.parametrize("after", [0, 1000])
def test_a_server_that_falls_silent(site: Site, monkeypatch: pytest.MonkeyPatch, after: int):
    monkeypatch.setenv("TRANSEPT_TIMEOUT", "0.3")
    monkeypatch.setenv("TRANSEPT_RETRIES", "1")
    hangs = file(cut=after, hang=True) if after else lambda handler: handler.site.go.wait(20)
    url = site(hangs)
    start = time.perf_counter()
    with pytest.raises(TranseptError, match=r"nothing came for 0.3 s, tried"):
        fetch(url)
    assert time.perf_counter() - start < 5
    site.plan["/dir/weights.pth"] = [file()]
    assert fetch(url).read_bytes() == DATA
    assert site.requests[-1].sent == len(DATA) - 2 * after


def test_nobody_there(monkeypatch: pytest.MonkeyPatch, site: Site):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(TranseptError, match="Connection refused, tried 5 times"):
            fetch(f"http://127.0.0.1:{port}/weights.pth")


@pytest.mark.parametrize(("spelling", "offline"), OFFLINE.items())
def test_spellings_of_offline(site: Site, monkeypatch: pytest.MonkeyPatch, spelling: str, offline: bool):
    monkeypatch.setenv("TRANSEPT_OFFLINE", spelling)
    url = site(file())
    if offline:
        with pytest.raises(TranseptError, match="TRANSEPT_OFFLINE forbids to"):
            fetch(url)
    else:
        assert fetch(url).read_bytes() == DATA
    assert bool(site.requests) is not offline


@pytest.mark.parametrize("variable", ["TRANSEPT_OFFLINE", "HF_HUB_OFFLINE"])
def test_a_spelling_that_means_nothing(site: Site, monkeypatch: pytest.MonkeyPatch, variable: str):
    monkeypatch.setenv(variable, "perhaps")
    with pytest.raises(UsageError) as caught:
        fetch(site(file()))
    assert str(caught.value) == (
        f"{variable}='perhaps' is neither of 1, true, yes, on, y, t nor of 0, false, no, off, n, f; correct or unset it"
    )
    assert site.requests == []


@pytest.mark.parametrize("variable", ["TRANSEPT_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline(site: Site, monkeypatch: pytest.MonkeyPatch, variable: str):
    monkeypatch.setenv(variable, "1")
    url = site(file())
    path = local_path(url)
    with pytest.raises(TranseptError) as caught:
        fetch(url)
    assert str(caught.value) == (
        f"{url} has not been downloaded yet and {variable} forbids to; unset it, or fetch the file by hand to "
        f"{str(path)!r}, or go on without published weights"
    )
    assert not path.parent.exists()
    path.parent.mkdir(parents=True)
    path.write_bytes(DATA)  # by hand
    assert fetch(url, sha256=SHA256) == path
    assert site.requests == []
    monkeypatch.setenv(variable, "0")
    path.unlink()
    assert fetch(url).read_bytes() == DATA


def test_mirror(site: Site, monkeypatch: pytest.MonkeyPatch):
    prefix = site(path="/transept/")
    monkeypatch.setenv("TRANSEPT_MIRROR", prefix)
    site(file(), path="/transept/published.example/dir/weights.pth?version=2")
    url = "https://published.example/dir/weights.pth?version=2"
    assert fetch(url).read_bytes() == DATA
    assert fetch(url) == local_path(url)
    assert [request.path for request in site.requests] == ["/transept/published.example/dir/weights.pth?version=2"]
    with pytest.raises(
        TranseptError, match=f"could not download https:.* from the mirror as {prefix}published.* .*404"
    ):
        fetch(f"{url}0")
    direct = f"{prefix}published.example/dir/weights.pth?version=2"
    assert fetch(direct).read_bytes() == DATA
    monkeypatch.setenv("TRANSEPT_MIRROR", "mirror.example")
    with pytest.raises(UsageError, match="TRANSEPT_MIRROR='mirror.example' is no prefix"):
        fetch(f"{url}1")


def test_a_part_from_another_source_is_not_gone_on_with(site: Site, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRANSEPT_RETRIES", "0")
    url = site(file(OTHER, cut=1000))
    with pytest.raises(TranseptError, match="call again"):
        fetch(url)
    host = url.split("/")[2]
    site(file(), path=f"/mirror/{host}/dir/weights.pth")
    monkeypatch.setenv("TRANSEPT_MIRROR", f"http://{host}/mirror")
    assert fetch(url).read_bytes() == DATA
    assert site.requests[-1].range is None


def test_proxy(site: Site, monkeypatch: pytest.MonkeyPatch):
    url = "http://published.example/dir/weights.pth"
    proxy = site(file(cut=1000), file(), path=url).removesuffix(url)  # a proxy is asked for whole addresses
    monkeypatch.setenv("HTTP_PROXY", proxy)
    monkeypatch.setenv("NO_PROXY", "other.example")
    assert fetch(url).read_bytes() == DATA
    assert {(request.path, request.host) for request in site.requests} == {(url, "published.example")}
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    direct = site(file())
    monkeypatch.setenv("TRANSEPT_RETRIES", "0")
    with pytest.raises(TranseptError, match="Connection refused"):
        fetch(direct)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert fetch(direct).read_bytes() == DATA


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a.example/w.pth",
        "file:///etc/passwd",
        "http://",
        "https://a.example/",
        "https://a.example/dir/",
        "http://[1/w.pth",
        "http://me:secret@a.example/w.pth",
    ],
)
def test_bad_addresses(url: str):
    with pytest.raises(UsageError) as caught:
        fetch(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("variable", ["TRANSEPT_TIMEOUT", "TRANSEPT_RETRIES", "TRANSEPT_BACKOFF"])
@pytest.mark.parametrize("value", ["soon", "-1", "nan"])
def test_bad_numbers(site: Site, monkeypatch: pytest.MonkeyPatch, variable: str, value: str):
    monkeypatch.setenv(variable, value)
    with pytest.raises(UsageError, match=f"{variable}='{value}' is not a .*; correct or unset it"):
        fetch(site(file()))


def test_a_cache_that_cannot_be_written(site: Site, tmp_path: Path):
    (tmp_path / "torch" / "hub").mkdir(parents=True)
    (tmp_path / "torch" / "hub" / "checkpoints").touch()
    with pytest.raises(TranseptError, match=r"cannot keep http.* in '.*checkpoints' \(File exists\); .* TORCH_HOME"):
        fetch(site(file()))
    assert site.requests == []
    (tmp_path / "torch" / "hub" / "checkpoints").unlink()
    url = site(file())
    local_path(url).mkdir(parents=True)
    with pytest.raises(TranseptError, match=r"cannot keep http.* \(Is a directory\)"):
        fetch(url)


@pytest.mark.parametrize("notes", ["", "[]", '{"source": 1}', None])
def test_a_part_of_unknown_origin_is_not_gone_on_with(site: Site, notes: str | None):
    url = site(file())
    path = local_path(url)
    path.parent.mkdir(parents=True)
    path.with_name(f"{path.name}.part").write_bytes(OTHER[:1000])
    if notes is not None:
        path.with_name(f"{path.name}.part.json").write_text(notes)
    assert fetch(url).read_bytes() == DATA
    assert site.requests[0].range is None
    assert left(path) == [path.name]


def test_progress(site: Site, capsys: pytest.CaptureFixture[str]):
    path = fetch(site(file(cut=1000), file()), progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert path.name[:20] in err
    assert "1.0/1.0 MB" in err


def test_memory_is_bounded(site: Site):
    data = DATA * 40
    url = site(file(data))
    tracemalloc.start()
    try:
        path = fetch(url, sha256=hashlib.sha256(data).hexdigest())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert path.stat().st_size == len(data) > 40e6
    assert peak - len(data) < 4e6  # the server's own copy is this process's, too


# Processes: a server that has imported torch once and forks is quicker than an interpreter each.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["transept.weights.fetch.download"])


def _fetch_elsewhere(url: str, environment: dict[str, str], room: int | None, outcome: Connection) -> None:
    os.environ.clear()
    os.environ.update(environment)
    if room is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    outcome.send("begun")
    try:
        outcome.send(str(fetch(url)))
    except TranseptError as error:
        outcome.send(error)


def start_process(url: str, room: int | None = None) -> tuple[Any, Connection]:
    """Another process that fetches `url` and can write files of `room` bytes; and its end of a pipe."""
    ours, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(target=_fetch_elsewhere, args=(url, dict(os.environ), room, theirs), daemon=True)
    process.start()
    theirs.close()
    assert ours.recv() == "begun"
    return process, ours


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "nothing happened for a minute"
        time.sleep(0.02)


def test_two_processes_share_one_download(site: Site):
    url = site(file(cut=len(DATA), hang=True))  # the first holds the lock until we let it go
    both = [start_process(url) for _ in range(2)]
    wait_for(lambda: len(site.requests) == 1)
    assert not both[0][1].poll(1)
    assert not both[1][1].poll(0)
    site.go.set()
    for process, outcome in both:
        assert outcome.recv() == str(local_path(url))
        process.join()
        assert process.exitcode == 0
    assert local_path(url).read_bytes() == DATA
    assert len(site.requests) == 1


def test_a_killed_process_is_taken_over_from(site: Site):
    url = site(file(cut=600_000, hang=True), file())
    path = local_path(url)
    part = path.with_name(f"{path.name}.part")
    process, _ = start_process(url)
    wait_for(lambda: part.exists() and part.stat().st_size == 600_000)
    process.kill()
    process.join()
    assert process.exitcode == -9
    assert not path.exists()
    other, outcome = start_process(url)
    assert outcome.recv() == str(path)
    other.join()
    assert path.read_bytes() == DATA
    assert [request.range for request in site.requests] == [None, "bytes=600000-"]
    assert site.requests[1].sent == len(DATA) - 600_000
    assert left(path) == [path.name]


def test_a_full_disk(site: Site):
    url = site(file())
    path = local_path(url)
    process, outcome = start_process(url, room=500_000)
    error = outcome.recv()
    process.join()
    assert process.exitcode == 0
    assert isinstance(error, TranseptError)
    assert str(error).startswith(f"cannot keep {url} in {str(path.parent)!r} (File too large); give it room")
    assert not path.exists()
    assert len(site.requests) == 1
    assert fetch(url, sha256=SHA256).read_bytes() == DATA  # once there is room, it goes on
    assert site.requests[1].range == "bytes=500000-"
