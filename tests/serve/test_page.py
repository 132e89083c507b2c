"""The page as a browser and as a program sees it: a real server, HTTP, and a run of a few seconds."""

import base64
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image

from tests.serve.test_answers import detector, segmenter
from transept.cli.main import main
from transept.data.sets import load_splits
from transept.errors import TranseptError
from transept.serve.answers import Limits
from transept.tasks.classify import Classifier

gradio_client = pytest.importorskip("gradio_client", reason="the page needs the extra `serve`")
httpx = pytest.importorskip("httpx")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An epoch of digits: right more often than not."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    options = "--schedule.epochs 1 --schedule.warmup_epochs 0 --optimizer.lr 0.01"
    options += " --model.options.depth 1 --model.options.embed_dim 32"
    assert main(["train", "digits", "--out", str(folder), *options.split()]) == 0
    return folder


@pytest.fixture(scope="module")
def task(run: Path) -> Classifier:
    return Classifier.load(run / "best.safetensors")


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


def client(url: str) -> Any:
    return gradio_client.Client(url, verbose=False, analytics_enabled=False)


def labels_of(shown: dict[str, Any]) -> dict[str, float]:
    return {entry["label"]: entry["confidence"] for entry in shown["confidences"]}


def expected(task: Classifier, path: Path) -> dict[str, float]:
    with Image.open(path) as image:
        labels, scores = task.predict([image.convert("RGB")], 5)
    return {task.classes[label]: score for label, score in zip(labels[0].tolist(), scores[0].tolist(), strict=True)}


def test_labels_time_and_attention(url: str, task: Classifier, digits: list[Path]):
    asking = client(url)
    shown, line = asking.predict(gradio_client.handle_file(digits[0]), api_name="/look")
    assert labels_of(shown) == pytest.approx(expected(task, digits[0]))
    assert re.fullmatch(r"[\d.]+ ms on the (CPU|GPU)", line)
    sheets = [
        asking.predict(gradio_client.handle_file(digits[0]), *kind, api_name="/explain")
        for kind in ((), ("cross-covariance",))
    ]
    for sheet in sheets:
        with Image.open(sheet) as image:
            assert image.width > 500
            assert len(image.convert("RGB").getcolors(image.width * image.height) or []) > 200
    assert Path(sheets[0]).read_bytes() != Path(sheets[1]).read_bytes()


def test_twenty_at_once(url: str, task: Classifier, digits: list[Path]):
    asking = client(url)

    def ask(path: Path) -> dict[str, float]:
        shown, _ = asking.predict(gradio_client.handle_file(path), api_name="/look")
        asking.predict(gradio_client.handle_file(path), "class", api_name="/explain") if path is digits[0] else None
        return labels_of(shown)

    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(ask, digits))
    for path, answer in zip(digits, answers, strict=True):
        assert answer == pytest.approx(expected(task, path), abs=1e-6)


def test_bad_files_are_answered_in_words(url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    asking = client(url)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "drawing.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    Image.new("L", (64, 64)).save(tmp_path / "half.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "half.png").read_bytes()[:70])
    Image.new("1", (1200, 1000)).save(tmp_path / "many.png")
    words = {
        "text.png": "'text.png' is no picture of a known format",
        "drawing.svg": "'drawing.svg' is no picture of a known format",
        "half.png": "'half.png' is damaged or truncated",
        "many.png": "'many.png' has 1200 x 1000 pixels, 1.2 megapixels; at most 1 are taken",
    }
    for name, sentence in words.items():
        for api_name in ("/look", "/explain"):
            with pytest.raises(gradio_client.exceptions.AppError) as raised:
                asking.predict(gradio_client.handle_file(tmp_path / name), api_name=api_name)
            assert raised.value.message.startswith(sentence)
    Image.new("L", (64, 64)).save(tmp_path / "whole.png")
    with pytest.raises(gradio_client.exceptions.AppError, match="no attention of .* is called 'x'"):
        asking.predict(gradio_client.handle_file(tmp_path / "whole.png"), "x", api_name="/explain")
    assert "Traceback" not in "".join(capfd.readouterr())


def test_what_is_too_large_is_not_kept(url: str):
    answer = httpx.post(f"{url}gradio_api/upload", files={"files": ("large.png", bytes(600_000))})
    assert answer.status_code == 413
    assert "maximum allowed size of 500000 bytes" in answer.text


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
    assert config["is_space"] is False
    assert "digits\\_run" in json.dumps(config, ensure_ascii=False).replace("\\\\", "\\")
    loaded = re.findall(r'(?:src|href)="(https?://[^"]+)"', page)
    assert [address for address in loaded if not address.startswith(url)] == []


def test_taken_ports_and_files_that_go(task: Classifier):
    from transept.serve.page import serving

    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(TranseptError, match="the port is taken"), serving(task, "x", port=port):
            pass


@pytest.mark.parametrize("make", [detector, segmenter])
def test_dense_tasks(make: Any, tmp_path: Path):
    from transept.serve.page import serving

    noise = np.random.default_rng(0).integers(0, 255, (80, 120, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    with serving(make(), "scenes") as url:
        asking = client(url)
        settings = [0.06] if make is detector else []
        drawing, found, line = asking.predict(
            gradio_client.handle_file(tmp_path / "noise.png"), *settings, api_name="/look"
        )
    assert " ms on the " in line
    assert Image.open(drawing).width >= 480
    if make is detector:
        assert found["headers"] == ["object", "score", "x1", "y1", "x2", "y2"]
        assert len(found["data"]) > 0
    else:
        assert sum(labels_of(found).values()) == pytest.approx(1)


@pytest.mark.slow
def test_the_command(run: Path):
    command = [sys.executable, "-m", "transept", "serve", str(run), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        url = json.loads(process.stdout.readline())["url"]
        assert url.startswith("http://127.0.0.1:")
        assert httpx.get(url).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stderr.read() == ""


class Browser:
    """Headless Chromium, by the WebDriver protocol."""

    ELEMENT = "element-6066-11e4-a52e-4f735466cecf"

    def __init__(self, driver: str, chromium: str, port: int) -> None:
        self.process = subprocess.Popen([driver, f"--port={port}"], stdout=subprocess.DEVNULL)
        self.root = f"http://127.0.0.1:{port}"
        options = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--window-size=1280,1500",
        ]
        wanted = {"goog:chromeOptions": {"binary": chromium, "args": options}}
        for _ in range(100):
            try:
                session = self.ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
                break
            except ConnectionError:
                time.sleep(0.3)
            except OSError as error:  # urllib's, with the refusal inside
                if not isinstance(getattr(error, "reason", None), ConnectionError):
                    raise
                time.sleep(0.3)
        else:
            raise TimeoutError("the driver of Chromium does not answer")
        self.root += f"/session/{session['sessionId']}"

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = Request(self.root + path, data, {"Content-Type": "application/json"}, method=method)
        with urlopen(request, timeout=180) as answer:
            return json.load(answer)["value"]

    def find(self, selector: str) -> list[str]:
        found = self.ask("POST", "/elements", {"using": "css selector", "value": selector})
        return [element[self.ELEMENT] for element in found]

    def wait(self, selector: str, seconds: float = 120) -> str:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := self.find(selector):
                return found[0]
            time.sleep(0.3)
        raise TimeoutError(f"{selector} does not appear on the page")

    def text(self, selector: str) -> str:
        return self.ask("GET", f"/element/{self.wait(selector)}/text")

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.ask("GET", "/screenshot")))

    def close(self) -> None:
        try:
            self.ask("DELETE", "")
        finally:
            self.process.terminate()
            self.process.wait()


@pytest.fixture
def browser() -> Iterator[Browser]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs chromium and chromedriver")
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    with closing(Browser(driver, chromium, port)) as browser:
        yield browser


@pytest.mark.slow
def test_in_a_browser(url: str, browser: Browser, digits: list[Path], tmp_path: Path):
    """An example is clicked, its labels and attention appear; then a bad file is sent. Screenshots in `tmp_path`."""
    browser.ask("POST", "/url", {"url": url})
    browser.wait("#picture input[type=file]")
    examples = browser.find(".gallery-item, .gallery button, .examples-gallery button")
    assert len(examples) == 8
    browser.ask("POST", f"/element/{examples[3]}/click", {})
    browser.wait("#attention img")
    assert "%" in browser.text("#labels")
    assert " ms on the " in browser.text("#time")
    time.sleep(1)  # pictures fade in
    browser.screenshot(tmp_path / "answer.png")
    with Image.open(tmp_path / "answer.png") as shot:
        assert shot.width == 1280
        assert len(shot.convert("RGB").getcolors(2**24) or []) > 500
    (tmp_path / "text.png").write_text("no picture")
    browser.ask("POST", "/refresh", {})
    upload = browser.wait("#picture input[type=file]")
    browser.ask("POST", f"/element/{upload}/value", {"text": str(tmp_path / "text.png")})
    assert "'text.png' is no picture of a known format" in browser.text(".toast-body")
    browser.screenshot(tmp_path / "refusal.png")
    outside = browser.ask(
        "POST",
        "/execute/sync",
        {"script": "return performance.getEntriesByType('resource').map(entry => entry.name)", "args": []},
    )
    assert [address for address in outside if not address.startswith((url, "data:", "blob:"))] == []
