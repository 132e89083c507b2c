"""`predict` of videos and streams: what is drawn, what is listed, and what is no video."""

import csv
import json
import sys
import threading
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet

import transept
from tests.helpers import ctrl_c, fails
from transept.cli.main import main
from transept.data.classification.transforms import Preprocessing
from transept.data.detection.transforms import DetectionPreprocessing
from transept.data.segmentation.transforms import SegmentationPreprocessing
from transept.data.video import Video, is_video
from transept.draw.video import VideoWriter
from transept.errors import TranseptError, TranseptWarning
from transept.extras import install
from transept.tasks.classify import Classifier

WIDTH, HEIGHT, FRAMES = 128, 96, 10
SMALL = dict(embed_dims=(16, 16, 16, 16), depths=(1, 1, 1, 1), num_heads=(2, 2))
PALETTE = [(230, 60, 20), (30, 90, 240)]


def picture(number: int, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """The more, the brighter; its upper left corner is red."""
    pixels = np.full((height, width, 3), 20 * number, dtype=np.uint8)
    pixels[: height // 3, : width // 3] = (250, 20, 20)
    return Image.fromarray(pixels)


def write(
    path: Path, *, times: list[Fraction] | None = None, rotation: int = 0, size=(WIDTH, HEIGHT), **options
) -> Path:
    """FRAMES frames, 5 a second or at these times."""
    with av.open(path, "w", **options) as container:
        stream = container.add_stream("libx264", rate=5)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.options = {"crf": "5"}
        if rotation:
            stream.set_display_rotation(rotation)
        for i in range(FRAMES):
            frame = av.VideoFrame.from_image(picture(i, *size))
            frame.time_base = Fraction(1, 1000)
            frame.pts = round(1000 * (times[i] if times else Fraction(i, 5)))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def frames(path: Path) -> list[tuple[float, np.ndarray]]:
    with av.open(path) as container:
        return [(float(frame.time), frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("clips") / "clip ü.mp4")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    model = transept.create_model("cabvit_h_l1", img_size=32, num_classes=3, **SMALL)
    Classifier(model, ["ant", "bee", "cat"], Preprocessing(img_size=(32, 32))).save(root / "classifier.safetensors")
    segmenter = transept.create_segmenter(
        "semantic_fpn", backbone="cabvit_h_l1", num_classes=2, classes=["sky", "sea"], palette=PALETTE, width=16,
        preprocessing=SegmentationPreprocessing(scale=(64, 48)), **SMALL,
    )  # fmt: skip
    segmenter.save(root / "segmenter.safetensors")
    detector = transept.create_detector(
        "mask_rcnn", backbone="cabvit_h_l1", num_classes=2, classes=["ant", "bee"], width=32,
        preprocessing=DetectionPreprocessing(scale=(64, 48)), **SMALL,
    )  # fmt: skip
    torch.nn.init.normal_(detector.get_parameter("roi_head.bbox_head.fc_cls.weight"), std=0.5)
    detector.save(root / "detector.safetensors")
    return root


def test_what_is_a_video():
    videos = (
        "a.mp4 B.MOV /dev/video0 rtsp://camera/1 http://camera/video https://a.org/live.m3u8?key=a.jpg udp://1.2.3.4:5"
    )
    assert all(map(is_video, videos.split()))
    assert not any(map(is_video, "a.gif list.txt @list.txt - https://a.org/a.jpg s3://a/b.mp4 /dev/null mp4".split()))


def test_rows_of_each_task(models: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """What Python says of the same frames."""
    decoded = [Image.fromarray(pixels) for _, pixels in frames(clip)]
    for name, columns in (
        ("classifier", ["label_1", "score_1", "label_2", "score_2"]),
        ("detector", ["label", "score", "x1", "y1", "x2", "y2"]),
        ("segmenter", ["class", "share"]),
    ):
        model, out = models / f"{name}.safetensors", tmp_path / f"{name}.csv"
        options = ["--top", "2"] if name == "classifier" else []
        assert main(["predict", str(model), str(clip), "--out", str(out), "--json", *options]) == 0
        report = json.loads(capsys.readouterr().out)
        assert (report["frames"], report["labelled"], report["rate"]) == (FRAMES, FRAMES, 5.0)
        rows = list(csv.DictReader(out.open()))
        assert list(rows[0]) == ["frame", "seconds", *columns]
        task = transept.load(model)
        answers = transept.predict(task, decoded, **({"top": 2} if options else {}))
        expected = [(i, i / 5, *record) for i, answer in enumerate(answers) for record in task.records(answer)]
        assert len(rows) == len(expected) >= FRAMES
        for row, values in zip(rows, expected, strict=True):
            for text, value in zip(row.values(), values, strict=True):
                assert text == value if isinstance(value, str) else float(text) == pytest.approx(value, abs=1e-4)


def test_a_table_of_some_frames(models: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    argv = ["predict", str(models / "classifier.safetensors"), str(clip), "--out", str(tmp_path / "new/a.parquet")]
    assert main([*argv, "--every", "4"]) == 0
    assert f"a.parquet: 3 rows of {FRAMES - 1} frames, of which 3 were looked at" in capsys.readouterr().out
    table = parquet.read_table(tmp_path / "new/a.parquet")
    assert table["frame"].to_pylist() == [0, 4, 8]
    assert table["seconds"].to_pylist() == pytest.approx([0, 0.8, 1.6])


@pytest.mark.parametrize("name", ["classifier", "detector", "segmenter"])
def test_a_drawn_video(models: Path, clip: Path, tmp_path: Path, name: str):
    """As large, as long and as quick as the clip, and what is drawn is on it."""
    out = tmp_path / "new/out.mp4"
    assert main(["predict", str(models / f"{name}.safetensors"), str(clip), "--out", str(out)]) == 0
    assert [path.name for path in out.parent.iterdir()] == ["out.mp4"]
    drawn, plain = frames(out), frames(clip)
    assert [time for time, _ in drawn] == pytest.approx([time for time, _ in plain])
    assert drawn[0][1].shape == (HEIGHT, WIDTH, 3)
    with av.open(out) as container:
        assert container.streams.video[0].average_rate == 5
    for (_, one), (_, other) in zip(drawn, plain, strict=True):
        assert np.abs(one.astype(int) - other).max() > 60


def test_frames_between_show_the_answer_before(models: Path, clip: Path, tmp_path: Path):
    argv = ["predict", str(models / "segmenter.safetensors"), str(clip), "--every", "5"]
    assert main([*argv, "--out", str(tmp_path / "out.mkv")]) == 0
    assert len(frames(tmp_path / "out.mkv")) == FRAMES


def test_times_and_turns(models: Path, tmp_path: Path):
    """Frames at uneven times keep them; one that the file turns is seen, and written, upright."""
    times = [Fraction(i * i, 20) for i in range(FRAMES)]
    clip = write(tmp_path / "uneven.mp4", times=times)
    model, out = str(models / "classifier.safetensors"), tmp_path / "out.mp4"
    assert main(["predict", model, str(clip), "--out", str(out)]) == 0
    assert [time for time, _ in frames(out)] == pytest.approx([float(time) for time in times], abs=2e-3)
    for degrees, is_left, is_top in ((90, True, False), (180, False, False), (-90, False, True)):  # counterclockwise
        turned = write(tmp_path / "turned.mp4", rotation=degrees)
        with Video(str(turned)) as video:
            shown = next(video.frames()).picture()
        assert shown.size == ((WIDTH, HEIGHT) if degrees == 180 else (HEIGHT, WIDTH))
        pixel: Any = shown.getpixel((4 if is_left else shown.width - 4, 4 if is_top else shown.height - 4))
        assert pixel[0] > 200
        assert pixel[1] < 60
    assert main(["predict", model, str(tmp_path / "turned.mp4"), "--out", str(out)]) == 0
    assert frames(out)[0][1].shape == (WIDTH, HEIGHT, 3)


def test_odd_sides(models: Path, tmp_path: Path):
    with av.open(tmp_path / "odd.mkv", "w") as container:
        stream = container.add_stream("ffv1", rate=5)
        stream.width, stream.height, stream.pix_fmt = 65, 49, "bgr0"
        for i in range(3):
            container.mux(stream.encode(av.VideoFrame.from_image(picture(i, 65, 49))))
        container.mux(stream.encode(None))
    argv = ["predict", str(models / "segmenter.safetensors"), str(tmp_path / "odd.mkv")]
    for ending in (".mov", ".webm"):
        out = tmp_path / f"out{ending}"
        assert main([*argv, "--out", str(out)]) == 0
        assert [pixels.shape for _, pixels in frames(out)] == [(49, 65, 3)] * 3


def test_frames_of_two_sizes(tmp_path: Path):
    writer = VideoWriter(tmp_path / "out.mp4", Fraction(5))
    writer.add(picture(0), Fraction(0))
    with pytest.raises(TranseptError, match=r"are 128 x 96 and then 64 x 48; they can be listed \(--out TABLE.csv\)"):
        writer.add(picture(1, 64, 48), Fraction(1, 5))
    writer.close()
    assert len(frames(tmp_path / "out.mp4")) == 1


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """The folder, on this machine's own address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_streams(models: Path, tmp_path: Path, address: str, capsys: pytest.CaptureFixture[str]):
    write(tmp_path / "live.m3u8", format="hls", container_options={"hls_time": "1", "hls_list_size": "0"})
    write(tmp_path / "clip.mp4")
    model, out = str(models / "classifier.safetensors"), tmp_path / "out.csv"
    for name in ("live.m3u8", "clip.mp4"):
        assert main(["predict", model, f"{address}/{name}", "--out", str(out), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["frames"] == FRAMES
        assert [float(row["seconds"]) for row in csv.DictReader(out.open())] == pytest.approx(
            [i / 5 for i in range(FRAMES)], abs=1e-4
        )
    (tmp_path / "page").write_text("<html>")
    for name, reason in (("absent.m3u8", "404"), ("page", "Invalid data")):
        said = fails(capsys, ["predict", model, f"{address}/{name}"])
        assert reason in said
        assert f"for a picture, curl -sSfL '{address}/{name}' | transept predict MODEL -" in said


def test_stopped(models: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Ctrl-C leaves a whole file of what was done."""
    model, out = str(models / "classifier.safetensors"), tmp_path / "out.mp4"
    with ctrl_c(Classifier, 5, training=False):
        assert main(["predict", model, str(clip), "--out", str(out), "--json"]) == 130
    said = capsys.readouterr()
    assert said.err == "transept: stopped: 4 frames are done, and their results kept\n"
    assert json.loads(said.out)["stopped"]
    assert [time for time, _ in frames(out)] == pytest.approx([i / 5 for i in range(4)])
    with ctrl_c(Classifier, 1, training=False):
        assert main(["predict", model, str(clip), "--out", str(tmp_path / "none.mp4")]) == 130
    assert capsys.readouterr().err == "transept: stopped before the first frame was done\n"
    assert list(tmp_path.iterdir()) == [out]


def test_damaged_on_the_way(clip: Path, tmp_path: Path):
    content = bytearray(write(tmp_path / "a.ts").read_bytes())
    broken = tmp_path / "b.ts"
    broken.write_bytes(content[: len(content) // 2])
    with Video(str(broken)) as video:
        assert 0 < len(list(video.frames())) < FRAMES
    content = bytearray(clip.read_bytes())
    with av.open(clip) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    for packet in packets[5:7]:
        assert packet.pos is not None
        content[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    broken.with_suffix(".mp4").write_bytes(content)
    with (
        Video(str(broken.with_suffix(".mp4"))) as video,
        pytest.warns(TranseptWarning, match="are damaged and were left"),
    ):
        assert len(list(video.frames())) < FRAMES


def test_what_cannot_be_labelled(models: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = str(models / "classifier.safetensors")
    (tmp_path / "clip.mp4").write_bytes(b"\0\0\0\030ftypmp42")
    (tmp_path / "empty.mkv").touch()
    with av.open(tmp_path / "sound.mp4", "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    for name, reason in (
        ("clip.mp4", "cannot be read as a video (Invalid data found"),
        ("empty.mkv", "cannot be read as a video"),
        ("sound.mp4", "holds no video"),
        ("absent.mp4", "does not exist"),
    ):
        assert reason in fails(capsys, ["predict", model, str(tmp_path / name), "--out", str(tmp_path / "out.mp4")])
        assert not (tmp_path / "out.mp4").exists()
    for words, reason in (
        (
            [str(clip), "--out", "a.png"],
            "--out a.png: the answers about a video are a video or a table; give a name that",
        ),
        ([str(clip), "--no-sheet"], "--no-sheet is for pictures; of a video give --out TABLE.csv"),
        ([str(clip), "--every", "0"], "--every 0 must be at least 1"),
        (["a.png", "--every", "2"], "--every is for videos"),
        (["https://a.org/a.jpg"], "is an address, and pictures are not fetched"),
    ):
        assert reason in fails(capsys, ["predict", model, *words], 2)
    assert main(["predict", model, str(clip), str(tmp_path / "absent.png")]) == 1
    assert "a video is given alone: transept predict MODEL" in capsys.readouterr().err


def test_without_the_extra(
    models: Path, clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "av", None)
    said = fails(capsys, ["predict", str(models / "classifier.safetensors"), str(clip)], 2)
    assert said == f"transept: this needs the package 'av': {install('video')}"
