"""The page and `predict` under load: `python benchmarks/load.py page`, `latency`, `idle` or `predict`.

page: 50 clients upload a picture, each another, and ask about it, again and again for ten minutes, while others upload
a byte a second: memory each minute, answers, and the files left once the server has ended.
latency: the page and a bare `gradio.Interface` of timm's same model, in turns, under the same clients.
idle: clients that wait between uploads for as long as a pool of connections keeps one, some five seconds, on the page
and on the bare one: how many uploads a connection closed meanwhile has broken.
predict: 2,000 and 20,000 pictures, one in a hundred of which is bad in one of ten ways: which are named, and memory.

The model is XCiT-N12/16 with random weights. Clients work on the same machine. Written to results/load.json.
"""

import argparse
import asyncio
import io
import json
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from PIL import Image

import transept
from transept.data.classification.transforms import Preprocessing
from transept.tasks.classify import Classifier

RESULTS = Path(__file__).parent / "results" / "load.json"
MODEL = "xcit_nano_12_p16_224"
CLASSES = [f"class {i}" for i in range(1000)]


def picture(number: int, size: int = 320) -> bytes:
    """A JPEG file of its own for each number, some 20 kB."""
    draw = np.random.default_rng(number)
    coarse = Image.fromarray(draw.integers(0, 255, (size // 8, size // 8, 3), dtype=np.uint8))
    file = io.BytesIO()
    coarse.resize((size, size), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def classifier(file: Path, side: int = 224) -> Path:
    torch.manual_seed(0)
    model = transept.create_model(MODEL, num_classes=len(CLASSES))
    Classifier(model, CLASSES, Preprocessing(img_size=(side, side))).save(file)
    return file


def serve_bare(port: int) -> None:
    """What one writes with gradio and timm in a few lines."""
    import gradio as gr
    import timm
    from timm.data import create_transform, resolve_data_config

    model = timm.create_model(MODEL).eval()
    transform: Any = create_transform(**resolve_data_config({}, model=model))

    @torch.inference_mode()
    def look(image: Image.Image) -> dict[str, float]:
        best = model(transform(image)[None]).softmax(1)[0].topk(5)
        return {CLASSES[i]: float(score) for score, i in zip(best.values, best.indices, strict=True)}

    page = gr.Interface(look, gr.Image(type="pil"), gr.Label(), api_name="look", flagging_mode="never")
    page.launch(server_port=port, share=False, quiet=True)


@contextmanager
def server(command: Sequence[str], port: int, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A page in a process of its own, whose files lie in `folder`, once it answers."""
    environment = os.environ | {"TMPDIR": str(folder), "GRADIO_TEMP_DIR": str(folder / "gradio"), "HF_HUB_OFFLINE": "1"}
    environment |= {"GRADIO_ANALYTICS_ENABLED": "False"}
    with subprocess.Popen([sys.executable, *command], env=environment, stdout=subprocess.DEVNULL) as process:
        try:
            while True:
                assert process.poll() is None, f"{command} ended"
                try:
                    httpx.get(f"http://127.0.0.1:{port}/config", timeout=5).raise_for_status()
                    break
                except httpx.HTTPError:
                    time.sleep(0.2)
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def resident(process: int) -> float:
    """MiB."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@dataclass
class Load:
    """What clients of one page saw."""

    seconds: list[float] = field(default_factory=list)
    """Of each question, from the upload to the answer."""
    failures: list[str] = field(default_factory=list)
    sent: int = 0
    paused: float = 0.0
    """Seconds in which this process stood still, as where another measurement stops it."""

    def about(self, wall: float) -> dict[str, Any]:
        times = sorted(self.seconds)
        return {
            "answers": len(times),
            "per_second": round(len(times) / wall, 2),
            "median_s": round(statistics.median(times), 3),
            "p99_s": round(times[int(0.99 * (len(times) - 1))], 3),
            "paused_s": round(self.paused, 1),
            "failures": len(self.failures),
            "first_failure": self.failures[0] if self.failures else None,
        }


async def ask(client: httpx.AsyncClient, load: Load) -> None:
    """One question, as gradio's own client asks it."""
    load.sent += 1
    data = picture(random.randrange(2**40))
    start = time.perf_counter()
    (path,) = (await client.post("upload", files={"files": ("picture.jpg", data)})).raise_for_status().json()
    sent = {"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}]}
    event = (await client.post("call/look", json=sent)).raise_for_status().json()["event_id"]
    answer = (await client.get(f"call/look/{event}")).raise_for_status().text
    load.seconds.append(time.perf_counter() - start)
    if "event: complete" not in answer or '"confidences"' not in answer:
        load.failures.append(answer[:200])


async def crawl(port: int, until: float) -> None:
    """An upload of a byte a second."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    head = "POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n"
    writer.write(f"{head}Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n".encode())
    while time.perf_counter() < until:
        await writer.drain()
        await asyncio.sleep(1)
        writer.write(b"C")
    writer.close()


async def press(port: int, clients: int, crawlers: int, seconds: float, each_minute: Callable[[], None]) -> Load:
    load, end = Load(), time.perf_counter() + seconds

    async def customer() -> None:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}/gradio_api/", timeout=120) as client:
            while time.perf_counter() < end:
                try:
                    await ask(client, load)
                except httpx.HTTPError as error:
                    load.failures.append(f"{type(error).__name__}: {error}"[:200])

    async def clock() -> None:
        due = time.perf_counter() + 60
        while (before := time.perf_counter()) < end:
            await asyncio.sleep(1)
            load.paused += passed if (passed := time.perf_counter() - before - 1) > 3 else 0
            if time.perf_counter() >= due:
                due += 60
                each_minute()

    await asyncio.gather(clock(), *(customer() for _ in range(clients)), *(crawl(port, end) for _ in range(crawlers)))
    return load


def files_in(folder: Path) -> tuple[int, float]:
    """Of the pages' own, not of compilers."""
    sizes = [file.stat().st_size for file in folder.glob("transept-*/**/*") if file.is_file()]
    return len(sizes), round(sum(sizes) / 2**20, 1)


def page(options: argparse.Namespace, root: Path) -> dict[str, Any]:
    file, folder, port = classifier(root / "model.safetensors"), root / "served", find_free_network_port()
    folder.mkdir()
    memory: list[float] = []
    kept: list[tuple[int, float]] = []
    # Eager, since compiling for five minutes in a thread of the server takes memory, too.
    command = ["-m", "transept", "serve", str(file), "--port", str(port), "--form", "eager"]
    with server(command, port, folder) as process:

        def look() -> None:
            memory.append(round(resident(process.pid), 1))
            kept.append(files_in(folder))
            print(f"{memory[-1]} MiB, {kept[-1][0]} files of {kept[-1][1]} MiB", flush=True)

        start = time.perf_counter()
        load = asyncio.run(press(port, options.clients, options.crawlers, options.minutes * 60, look))
        wall = time.perf_counter() - start
    growth = memory[-1] / memory[0] - 1
    about = {"clients": options.clients, "uploads_of_a_byte_a_second": options.crawlers, "minutes": options.minutes}
    after = {"files_each_minute": kept, "files_after_the_end": files_in(folder)[0]}
    return about | load.about(wall) | {"resident_mib_each_minute": memory, "growth": round(growth, 4)} | after


def latency(options: argparse.Namespace, root: Path) -> dict[str, Any]:
    file, ports = (
        classifier(root / "model.safetensors"),
        {"transept": find_free_network_port(), "bare": find_free_network_port()},
    )
    commands = {
        "transept": ["-m", "transept", "serve", str(file), "--port", str(ports["transept"]), "--form", "eager"],
        "bare": [__file__, "bare", "--port", str(ports["bare"])],
    }
    about: dict[str, Any] = {"seconds_each": options.seconds}
    loads: dict[str, list[Load]] = {}
    with (
        server(commands["transept"], ports["transept"], root),
        server(commands["bare"], ports["bare"], root),
    ):
        part = options.seconds / 2
        turns = [("transept", 50, 0), ("bare", 50, 0), ("transept, 1 client", 1, 0)]
        turns += [("transept, 1 client and 20 of a byte a second", 1, 20)]
        for _ in range(2):
            for name, clients, crawlers in turns:
                port = ports["bare" if name == "bare" else "transept"]
                loads.setdefault(name, []).append(asyncio.run(press(port, clients, crawlers, part, lambda: None)))
    for name, each in loads.items():
        whole = Load([s for load in each for s in load.seconds], [f for load in each for f in load.failures])
        about[name] = whole.about(options.seconds)
        print(name, about[name], flush=True)
    return about


async def upload_and_wait(port: int, seconds: float) -> Counter[str]:
    """What a hundred clients saw. httpx keeps an idle connection for five seconds."""
    seen: Counter[str] = Counter()
    data, end = picture(0), time.perf_counter() + seconds

    async def customer() -> None:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}/gradio_api/", timeout=600) as client:
            while time.perf_counter() < end:
                try:
                    answer = await client.post("upload", files={"files": ("picture.jpg", data)})
                    seen[str(answer.status_code)] += 1
                except httpx.HTTPError as error:
                    seen[type(error).__name__] += 1
                await asyncio.sleep(random.uniform(4.98, 5.02))

    await asyncio.gather(*(customer() for _ in range(100)))
    return seen


def idle(options: argparse.Namespace, root: Path) -> dict[str, Any]:
    file = classifier(root / "model.safetensors")
    about: dict[str, Any] = {"clients": 100, "seconds_each": options.seconds}
    for name, words in {
        "transept": ["-m", "transept", "serve", str(file), "--form", "eager"],
        "bare": [__file__, "bare"],
    }.items():
        port = find_free_network_port()
        with server([*words, "--port", str(port)], port, root):
            about[name] = dict(asyncio.run(upload_and_wait(port, options.seconds)))
        print(name, about[name], flush=True)
    return about


def damaged(number: int, whole: bytes) -> bytes:
    """A file that is no picture, in one of ten ways."""
    png = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(png, "PNG")
    return [
        lambda: b"",
        lambda: whole[: len(whole) // 2],
        lambda: whole[:3],
        lambda: b"no picture at all",
        lambda: b"<html><body>404 Not Found</body></html>",
        lambda: bytes(5000),
        lambda: png.getvalue()[:-30],
        lambda: png.getvalue().replace(b"\0\0\0\x40\0\0\0\x40", b"\0\1\0\0\0\1\0\0", 1),  # 65536 x 65536 pixels
        lambda: b"GIF89a" + whole[6:],
        lambda: whole[:20] + bytes(len(whole) - 20),
    ][number % 10]()


def pictures(folder: Path, count: int) -> set[str]:
    """That many files, and the names of the bad ones, one in a hundred."""
    folder.mkdir()
    good = []
    for number in range(50):
        good.append(folder.with_name(f"{folder.name}-{number}.jpg"))
        good[-1].write_bytes(picture(number))
    bad = {f"{number:05d}.jpg" for number in random.Random(0).sample(range(count), count // 100)}
    for number in range(count):
        name = f"{number:05d}.jpg"
        if name in bad:
            (folder / name).write_bytes(damaged(len(bad) + number, picture(number)))
        else:
            (folder / name).hardlink_to(good[number % 50])
    return bad


def predict(options: argparse.Namespace, root: Path) -> dict[str, Any]:
    file = classifier(root / "model.safetensors", side=64)
    about: dict[str, Any] = {}
    for count in options.counts:
        folder = root / f"pictures-{count}"
        bad = pictures(folder, count)
        command = [sys.executable, "-m", "transept", "predict", str(file), str(folder), "--json"]
        command += (
            ["--out", str(root / f"answers-{count}.csv")] if options.table else ["--out", str(root / "sheet.png")]
        )
        start, most, peak_at = time.perf_counter(), 0.0, 0.0
        with (root / "out.json").open("wb") as out, (root / "err.txt").open("wb") as err:
            process = subprocess.Popen(command, stdout=out, stderr=err)
            while process.poll() is None:
                try:
                    now = resident(process.pid)
                except (OSError, IndexError):
                    break
                most, peak_at = max((most, peak_at), (now, time.perf_counter() - start))
                time.sleep(0.2)
        code, wall = process.wait(), time.perf_counter() - start
        answer = json.loads((root / "out.json").read_text())
        named = {Path(each["path"]).name for each in answer["skipped"]}
        lines = (root / "err.txt").read_text().splitlines()
        said = {line.split("'")[1].rpartition("/")[2] for line in lines if line.startswith("transept: skipped ")}
        about[str(count)] = {
            "exit_code": code,
            "bad": len(bad),
            "named_exactly": named == bad == said,
            "answered": len(answer["images"]),
            "peak_mib": round(most, 1),
            "peak_at_s": round(peak_at, 1),
            "seconds": round(wall, 1),
        }
        print(count, about[str(count)], sorted(bad ^ named)[:5], flush=True)
        shutil.rmtree(folder)
    peaks = [each["peak_mib"] for each in about.values()]
    return about | {"growth": round(peaks[-1] / peaks[0] - 1, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["page", "latency", "idle", "predict", "bare"])
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--crawlers", type=int, default=20, help="clients that upload a byte a second")
    parser.add_argument("--minutes", type=int, default=10)
    parser.add_argument("--seconds", type=int, default=40, help="of each kind in `latency` and `idle`")
    parser.add_argument("--counts", type=int, nargs="+", default=[2_000, 20_000])
    parser.add_argument("--table", action="store_true", help="of `predict`: a table in place of a sheet")
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that servers are ended
    if options.part == "bare":
        serve_bare(options.port)
        return
    with tempfile.TemporaryDirectory() as root:
        found = {"page": page, "latency": latency, "idle": idle, "predict": predict}[options.part](options, Path(root))
    name = f"{options.part}{'-table' if options.table else ''}"
    kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    versions = {each: version(each) for each in ("torch", "gradio", "timm", "transept")}
    kept["machine"] = {"cores": os.cpu_count(), "python": platform.python_version()} | versions
    RESULTS.write_text(json.dumps(kept | {name: found}, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
