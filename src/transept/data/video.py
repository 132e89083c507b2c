"""Videos and streams, frame by frame, by PyAV (the extra `video`)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from PIL import Image

from transept.data.images import EXTENSIONS, UNREAD
from transept.errors import TranseptError, warn

ENDINGS = ".mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .ts .mts .m2ts .wmv .flv .3gp .ogv .mjpg .mjpeg .m3u8 .mpd".split()
_SCHEMES = ("http", "https", "rtsp", "rtsps", "rtmp", "rtmps", "rtp", "srt", "udp", "tcp")
_CAMERA = re.compile(r"/dev/video\d+")
_PATIENCE = 20.0
"""Seconds that a stream may be silent."""


def is_video(source: str) -> bool:
    """Whether a word names a video: by a file's ending, as a camera, or an address that does not end as pictures do."""
    if is_address(source):
        return urlsplit(source).scheme in _SCHEMES and _ending(source) not in (*EXTENSIONS, *UNREAD)
    return _ending(source) in ENDINGS or _CAMERA.fullmatch(source) is not None


def is_address(source: str) -> bool:
    """Whether a word begins as addresses do: `https://`."""
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", source) is not None


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame of a video."""

    number: int
    """From 0."""
    seconds: Fraction
    """From the first frame, as the video says; of one without times, by its rate."""
    raw: Any
    """PyAV's `VideoFrame`."""

    def picture(self) -> Image.Image:
        """RGB, turned as the video says."""
        picture = self.raw.to_image()
        turns = round(self.raw.rotation / 90) % 4
        return picture.transpose(_TURNS[turns]) if turns else picture


_TURNS = {1: Image.Transpose.ROTATE_90, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_270}
"""Counterclockwise, as PyAV's `rotation`."""


class Video:
    """An open video: a file, an address of a stream, or a camera (`/dev/video0`). A context manager."""

    def __init__(self, source: str) -> None:
        """
        Raises:
            TranseptError: it does not exist or answer, is damaged, or holds no video.
        """
        # an extra
        import av
        from av.error import FFmpegError
        from av.stream import Disposition

        self.source = source
        self.is_live = is_address(source) or _CAMERA.fullmatch(source) is not None
        if not self.is_live and not Path(source).exists():
            raise TranseptError(f"{source!r} does not exist")
        options = {"rtsp_transport": "tcp"} if source.startswith("rtsp") else {}
        camera = "v4l2" if _CAMERA.fullmatch(source) else None
        try:
            self._container = av.open(source, format=camera, options=options, timeout=_PATIENCE)
        except (FFmpegError, ValueError) as error:
            raise TranseptError(f"{source!r} cannot be read as a video ({_reason(error)}){_curl(source)}") from error
        streams = [
            stream
            for stream in self._container.streams.video
            if not stream.disposition & Disposition.attached_pic  # the cover of music
        ]
        if not streams:
            self._container.close()
            raise TranseptError(f"{source!r} holds no video")
        self._stream = streams[0]
        self._stream.thread_type = "AUTO"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._container.close()

    @property
    def rate(self) -> Fraction:
        """Frames in a second, on average; 25 where nothing is known."""
        return self._stream.average_rate or self._stream.guessed_rate or Fraction(25)

    def frames(self) -> Iterator[Frame]:
        """One after the other; what is damaged on the way is left out, with a warning at the end.

        Raises:
            TranseptError: there is none.
        """
        from av.error import FFmpegError, InvalidDataError  # an extra

        count, damaged, first = 0, 0, None
        reason = "nothing in it can be decoded"
        try:
            for packet in self._container.demux(self._stream):
                try:
                    raws = packet.decode()
                except InvalidDataError:
                    damaged += 1
                    continue
                for raw in raws:
                    time = None if raw.pts is None or raw.time_base is None else raw.pts * raw.time_base
                    first = time if first is None else first
                    seconds = count / self.rate if time is None or first is None else time - first
                    yield Frame(count, seconds, raw)
                    count += 1
        except FFmpegError as error:
            reason = _reason(error)
            if count:
                warn(f"{self.source!r} broke off after {count} frames ({reason})")
        if not count:
            raise TranseptError(f"{self.source!r} holds no frame that can be shown ({reason})")
        if damaged:
            warn(f"{damaged} parts of {self.source!r} are damaged and were left out")


def _ending(source: str) -> str:
    return Path(urlsplit(source).path if is_address(source) else source).suffix.lower()


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _curl(source: str) -> str:
    if not source.startswith("http"):
        return ""
    return f"; for a picture, curl -sSfL '{source}' | transept predict MODEL -"
