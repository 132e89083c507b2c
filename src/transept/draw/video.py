"""Pictures written as a video, each shown from its own time on (the extra `video`)."""

from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import Image

from transept.errors import TranseptError

ENDINGS = (".mp4", ".mov", ".mkv", ".webm")
"""The formats of drawn videos: those that hold a time for each frame."""
_TICKS = 90_000
"""Units of time in a second: all usual rates are whole numbers of them."""


class VideoWriter:
    """A video of H.264 (.webm: VP9), without sound. `close` makes the file whole."""

    def __init__(self, path: Path, rate: Fraction) -> None:
        """
        Args:
            path: to write to; its ending is one of `ENDINGS`.
            rate: frames in a second, on average.
        """
        import av  # an extra

        self._av = av
        self._container = av.open(path, "w")
        names = ("libvpx-vp9",) if path.suffix.lower() == ".webm" else ("libx264", "libopenh264", "mpeg4")
        name = next(name for name in names if name in av.codecs_available)
        self._stream: Any = self._container.add_stream(name, rate=rate)
        self._stream.codec_context.time_base = Fraction(1, _TICKS)
        self._last = -1
        self._size: tuple[int, int] | None = None

    def add(self, picture: Image.Image, seconds: Fraction) -> None:
        """A frame, shown from `seconds` on, later than the one before.

        Raises:
            TranseptError: it has another size than those before.
        """
        if self._size is None:
            self._size = self._stream.width, self._stream.height = picture.size
            even = not (picture.width % 2 or picture.height % 2)
            self._stream.pix_fmt = "yuv420p" if even else "yuv444p"  # which shares no colours between two pixels
        if picture.size != self._size:
            sizes = " and then ".join(f"{width} x {height}" for width, height in (self._size, picture.size))
            raise TranseptError(f"the frames of a video are {sizes}; they can be listed (--out TABLE.csv), not drawn")
        frame = self._av.VideoFrame.from_image(picture)
        frame.time_base = Fraction(1, _TICKS)
        frame.pts = self._last = max(round(seconds * _TICKS), self._last + 1)
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        if self._size is not None:
            self._container.mux(self._stream.encode(None))
        self._container.close()
