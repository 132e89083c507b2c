"""The page as a browser and as a program sees it: a real server, HTTP, and a run of a few seconds."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.serve.browser import Browser
from tests.serve.trained import FEW, classifier, detector, picture, segmenter
from transept.cli.main import main
from transept.data.classification.sets import load_splits
from transept.errors import TranseptError
from transept.serve.answers import Limits
from transept.tasks.classify import Classifier

gradio_client = pytest.importorskip("gradio_client", reason="the page needs the extra `serve`")
httpx = pytest.importorskip("httpx")


@pytest.fixture(scope="module")
def task() -> Classifier:
    return classifier()


@pytest.fixture(scope="module")
def url(task: Classifier) -> Iterator[str]:
    from transept.serve.page import serving

    with serving(task, "digits_run", limits=Limits(megabytes=0.5, megapixels=1)) as url:
        yield url


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    held_out = load_splits("digits").val
    folder = tmp_path_factory.mktemp("digits")
    for i in range(20):
        held_out[i][0].save(folder / f"{i}.png")
    return [folder / f"{i}.png" for i in range(20)]


@pytest.fixture
def bad_files(tmp_path: Path) -> dict[Path, str]:
    """Files that are no picture, or too much of one, and how the page's answer begins."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "half.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "half.jpg").read_bytes()[:900])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").touch()
    (tmp_path / "drawing.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    for name, side in (("many.png", 8_000), ("bomb.png", 10_000)):
        (tmp_path / name).write_bytes(black(side))
    words = {
        "half.jpg": "'half.jpg' is damaged or truncated",
        "text.png": "'text.png' is no picture of a known format",
        "empty.png": "'empty.png' is empty",
        "drawing.svg": "'drawing.svg' is no picture of a known format",
        "many.png": "'many.png' has 8000 x 8000 pixels, 64.0 megapixels; at most 1 are taken",
        "bomb.png": "'bomb.png' declares more than 89 megapixels",
    }
    return {tmp_path / name: sentence for name, sentence in words.items()}


def black(side: int) -> bytes:
    """A PNG file of a black square, a thousandth of its pixels in bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)

    header = side.to_bytes(4) * 2 + bytes([1, 0, 0, 0, 0])
    rows = zlib.compress(bytes(side // 100 * (side // 8 + 1)))  # the first hundredth; nobody should read so far
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def client(url: str) -> Any:
    return gradio_client.Client(url, verbose=False, analytics_enabled=False)


def labels_of(shown: dict[str, Any]) -> dict[str, float]:
    return {entry["label"]: entry["confidence"] for entry in shown["confidences"]}


def expected(task: Classifier, path: Path) -> dict[str, float]:
    with Image.open(path) as image:
        (best,) = task.predict([image.convert("RGB")])
    return {item.label: item.score for item in task.items(best)}


def test_labels_time_and_attention(url: str, task: Classifier, digits: list[Path]):
    asking = client(url)
    shown, line = asking.predict(gradio_client.handle_file(digits[0]), api_name="/look")
    assert labels_of(shown) == pytest.approx(expected(task, digits[0]))
    assert re.fullmatch(r"[\d.]+ m?s on the (CPU|GPU)", line)
    with Image.open(asking.predict(gradio_client.handle_file(digits[0]), "class", api_name="/explain")) as sheet:
        assert sheet.width > 500
        assert len(sheet.convert("RGB").getcolors(sheet.width * sheet.height) or []) > 200


def test_twenty_at_once(url: str, task: Classifier, digits: list[Path]):
    asking = client(url)

    def ask(path: Path) -> dict[str, float]:
        if path is digits[0]:
            asking.predict(gradio_client.handle_file(path), "class", api_name="/explain")
        shown, _ = asking.predict(gradio_client.handle_file(path), api_name="/look")
        return labels_of(shown)

    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(ask, digits, timeout=120))
    for path, answer in zip(digits, answers, strict=True):
        assert answer == pytest.approx(expected(task, path), abs=1e-6)


def test_bad_files_are_answered_in_words(
    url: str, bad_files: dict[Path, str], digits: list[Path], capfd: pytest.CaptureFixture[str]
):
    asking = client(url)
    for file, sentence in bad_files.items():
        for api_name in ("/look", "/explain"):
            with pytest.raises(gradio_client.exceptions.AppError) as raised:
                asking.predict(gradio_client.handle_file(file), api_name=api_name)
            assert raised.value.message.startswith(sentence)
    with pytest.raises(gradio_client.exceptions.AppError, match="no attention of .* is called 'x'"):
        asking.predict(gradio_client.handle_file(digits[0]), "x", api_name="/explain")
    assert "Traceback" not in "".join(capfd.readouterr())


def test_what_is_too_large_is_not_kept(url: str):
    answer = httpx.post(f"{url}gradio_api/upload", files={"files": ("large.png", bytes(600_000))})
    assert answer.status_code == 413
    assert "maximum allowed size of 500000 bytes" in answer.text


def test_visitors_who_leave_in_the_middle_of_an_upload(
    task: Classifier, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    """Nothing of theirs is left after a while, nor a traceback; and each session is not remembered for ever."""
    from transept.serve import page

    monkeypatch.setattr(page, "CLEANING", 0.2)
    monkeypatch.setattr(page, "KEPT", 0.5)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n' + bytes(100_000)
    head = "POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 200000\r\n"
    head += "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    with page.serving(task, "x") as url:
        examples = {file for file in tmp_path.rglob("*") if file.is_file()}
        assert len(examples) == 8
        with closing(socket.create_connection(("127.0.0.1", httpx.URL(url).port))) as visitor:
            visitor.sendall(head.encode() + body)
            wait_until(lambda: {file for file in tmp_path.rglob("*") if file.is_file()} > examples)
        wait_until(lambda: {file for file in tmp_path.rglob("*") if file.is_file()} == examples)
        assert httpx.get(url).status_code == 200
    assert list(tmp_path.iterdir()) == []
    assert "Traceback" not in "".join(capfd.readouterr())


def test_idle_connections_stay_open_longer_than_clients_keep_them(task: Classifier, monkeypatch: pytest.MonkeyPatch):
    """So that no question meets a connection that closes at the same moment; httpx keeps one for five seconds."""
    from transept.serve import page

    assert page._KEEP_ALIVE > 60
    monkeypatch.setattr(page, "_KEEP_ALIVE", 0.5)
    with (
        page.serving(task, "x") as url,
        closing(socket.create_connection(("127.0.0.1", httpx.URL(url).port), timeout=3)) as visitor,
    ):
        visitor.sendall(b"GET /gradio_api/startup-events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        start = time.monotonic()
        while visitor.recv(65536):
            continue
        assert time.monotonic() - start >= 0.5


def wait_until(holds: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_files_of_the_machine_and_other_servers_stay_out_of_reach(url: str):
    def ask(path: str) -> str:
        sent = {"path": path, "meta": {"_type": "gradio.FileData"}}
        event = httpx.post(f"{url}gradio_api/call/look", json={"data": [sent]}).json()["event_id"]
        return httpx.get(f"{url}gradio_api/call/look/{event}", timeout=60).text

    assert "not its address" in ask("http://127.0.0.1:9/picture.png")
    for file in (__file__, "/etc/hostname"):
        assert "event: error" in ask(file)
        assert httpx.get(f"{url}gradio_api/file={file}").status_code == 403
    elsewhere = httpx.post(f"{url}gradio_api/call/look", json={"data": [None]}, headers={"Origin": "http://a.example"})
    assert "access-control-allow-origin" not in elsewhere.headers


def test_the_page_calls_nobody(url: str):
    page = httpx.get(url).text
    config = httpx.get(f"{url}config").json()
    assert config["analytics_enabled"] is False
    assert "digits\\_run" in json.dumps(config, ensure_ascii=False).replace("\\\\", "\\")
    loaded = re.findall(r'(?:src|href)="(https?://[^"]+)"', page)
    assert [address for address in loaded if not address.startswith(url)] == []


def test_addresses_that_cannot_be_had(task: Classifier):
    from transept.serve.page import serving

    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(TranseptError, match=f"cannot serve at 127.0.0.1:{port} .Address already in use.; give"),
            serving(task, "x", port=port),
        ):
            pass
    with (
        pytest.raises(TranseptError, match="cannot serve at no-host.invalid "),
        serving(task, "x", host="no-host.invalid"),
    ):
        pass


@pytest.mark.parametrize("make", [pytest.param(detector, marks=pytest.mark.slow), segmenter])
def test_dense_tasks(make: Any, tmp_path: Path):
    from transept.serve.page import serving

    path = picture(tmp_path, 120, 80)
    with serving(make(), "scenes") as url:
        asking = client(url)
        settings = [FEW] if make is detector else []
        drawing, found, line = asking.predict(gradio_client.handle_file(path), *settings, api_name="/look")
        (kept,) = httpx.post(f"{url}gradio_api/upload", files={"files": path.open("rb")}).json()
        assert Path(kept).is_file()
    assert not Path(kept).exists()
    assert "s on the " in line
    assert Image.open(drawing).width >= 480
    if make is detector:
        assert found["headers"] == ["object", "score", "x1", "y1", "x2", "y2"]
        assert len(found["data"]) > 0
    else:
        assert 0.9 < sum(labels_of(found).values()) <= 1 + 1e-6  # without the smallest shares


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_the_command(task: Classifier, tmp_path: Path, ending: signal.Signals):
    task.save(tmp_path / "digits.safetensors")
    command = [sys.executable, "-m", "transept", "serve", str(tmp_path / "digits.safetensors"), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        url = json.loads(process.stdout.readline())["url"]
        assert url.startswith("http://127.0.0.1:")
        assert httpx.get(url).status_code == 200
        process.send_signal(ending)
        assert process.wait(60) == 0
        assert process.stderr.read() == ""


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    if not chromium:
        pytest.skip("needs chromium on the PATH")
    with closing(Browser(chromium, tmp_path / "profile")) as browser:
        yield browser


@pytest.mark.parametrize("refused", [1, pytest.param(6, marks=pytest.mark.slow)])  # all of them by the client, above
def test_in_a_browser(
    url: str,
    task: Classifier,
    browser: Browser,
    digits: list[Path],
    bad_files: dict[Path, str],
    tmp_path: Path,
    refused: int,
):
    """A person takes an example, drops a picture of their own, and one that is none."""
    upload, example = "#picture input[type=file]", "document.querySelectorAll('.gallery button, .gallery-item')"
    browser.open(url)
    browser.wait(f"{example}.length === 8")
    browser.run(f"{example}[3].click()")
    browser.wait("document.querySelector('#attention img')?.naturalWidth > 500")
    assert "s on the " in browser.run("document.querySelector('#time').innerText")
    best = max(expected(task, digits[3]).items(), key=lambda entry: entry[1])[0]
    assert browser.run("document.querySelector('#labels').innerText").split()[1] == best
    browser.screenshot(tmp_path / "answer.png")
    with Image.open(tmp_path / "answer.png") as shot:
        assert shot.width == 1280
        assert len(shot.convert("RGB").getcolors(2**24) or []) > 500
    browser.resize(400)
    assert browser.run("document.documentElement.scrollWidth") <= 400
    browser.resize(1280)
    large = tmp_path / "large.png"
    large.write_bytes(bytes(600_000))
    for file, sentence in [*list(bad_files.items())[:refused], (large, "large.png")]:
        browser.open(url)
        browser.send_file(upload, file)
        browser.wait("document.querySelector('.toast-body') !== null")
        assert sentence in browser.run("document.querySelector('.toast-body').innerText")
    browser.open(url)
    browser.send_file(upload, digits[5])
    browser.wait("document.querySelector('#time')?.innerText.includes('s on the ')")
    outside = browser.run("performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [address for address in outside if not address.startswith((url, "data:", "blob:"))] == []


def violations(browser: Browser) -> list[Any]:
    """What axe-core finds wrong with the page as it stands."""
    axe = pytest.importorskip("axe_playwright_python", reason="brings axe-core")
    browser.run(Path(axe.__file__).with_name("axe.min.js").read_text() + ";1")
    found = "found.violations.map(each => [each.id, each.nodes.map(node => node.html.slice(0, 200))])"
    return json.loads(browser.run(f"axe.run().then(found => JSON.stringify({found}))"))


def open_tab(browser: Browser, name: str) -> None:
    tabs = "[...document.querySelectorAll('button[role=tab]')]"
    browser.wait(f"{tabs}.length === 3")
    browser.run(f"{tabs}.find(tab => tab.innerText.trim() === {name!r}).click()")


@pytest.mark.parametrize("width", [pytest.param(1280, marks=pytest.mark.slow), 400])
def test_the_tabs(browser: Browser, task: Classifier, digits: list[Path], tmp_path: Path, width: int):
    """Two models side by side, several pictures in a table, pictures of the run; no fault for a screen reader."""
    from transept.serve.page import serving

    Image.new("RGB", (640, 480), "white").save(tmp_path / "confusion.png")
    (tmp_path / "bad.png").write_text("no picture")
    browser.resize(width)
    with serving(task, "first", compared=("second", task), report=[tmp_path / "confusion.png"]) as url:
        browser.open(url)
        browser.send_file("#picture input[type=file]", digits[3])
        browser.wait("document.querySelector('#time-1')?.innerText.includes('s on the ')")
        best = max(expected(task, digits[3]).items(), key=lambda entry: entry[1])[0]
        for which in ("#labels", "#labels-1"):
            assert browser.run(f"document.querySelector('{which}').innerText").split()[1] == best
        browser.wait("document.querySelector('#attention img')?.naturalWidth > 500")
        browser.run("document.querySelector('.label-wrap').click()")
        browser.wait("document.querySelectorAll('#history img').length === 1")
        assert browser.run("document.querySelector('#history').getBoundingClientRect().height") < 200  # a row, no more
        assert violations(browser) == []
        assert browser.run("document.documentElement.scrollWidth") <= width

        open_tab(browser, "Several pictures")
        browser.send_file("#files input[type=file]", digits[3], digits[4], tmp_path / "bad.png")
        browser.wait("document.querySelector('#table').innerText.includes('not read: is no picture')")
        browser.wait("document.querySelector('a[download] #download, #download')?.disabled === false")
        text = browser.run("document.querySelector('#table').innerText")
        assert all(file.name in text for file in (digits[3], digits[4]))
        assert violations(browser) == []

        open_tab(browser, "The run")
        browser.wait("[...document.querySelectorAll('img')].some(image => image.naturalWidth === 640)")
        assert "What is taken for what" in browser.run("document.body.innerText")
        assert violations(browser) == []
        browser.screenshot(tmp_path / "run.png")
        with Image.open(tmp_path / "run.png") as shot:
            assert shot.width == width


def test_a_second_model_must_be_of_the_same_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    classifier().save(tmp_path / "classifier.safetensors")
    segmenter().save(tmp_path / "segmenter.safetensors")
    words = [str(tmp_path / f"{name}.safetensors") for name in ("classifier", "segmenter")]
    assert main(["serve", words[0], "--compare", words[1]]) == 2
    assert "is a segmenter, and " in capsys.readouterr().err
