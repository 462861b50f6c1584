"""Read and write videos frame by frame with PyAV (the `video` extra).

Shapes: H x W frame size.
"""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    from av.packet import Packet

TICKS = 90_000  # of a video's clock in a second, as in MPEG
SLACK = 0.5  # seconds, besides a frame, by which a file may end before its declared length


class VideoReader:
    """Iterate over the upright frames of a video; a context manager.

    Attributes:
        rate: frames per second.
        count: number of frames according to the file; 0 if unknown.
        time: when the frame that was given last is shown, in seconds; None if unknown.
        cut: after the last frame, what is missing of a file that ends too early; empty for a whole one.

    Raises:
        ValueError: the file is not a video or is damaged.
    """

    def __init__(self, path: Path) -> None:
        import av

        self._path = path
        try:
            self._container = av.open(path)
        except (av.error.FFmpegError, OSError) as error:
            raise ValueError(f"{path}: not a readable video ({error.strerror})") from None
        if not self._container.streams.video:
            self._container.close()
            raise ValueError(f"{path}: has no video stream")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        rate = self._stream.average_rate or self._stream.guessed_rate or Fraction(25)
        self.rate = Fraction(rate.numerator, rate.denominator)
        seconds = (self._container.duration or 0) / av.time_base
        self.count = self._stream.frames or round(seconds * self.rate)
        self.time: float | None = None
        self.cut = self._reached = ""
        self._length = self._declared_length(seconds)

    def _declared_length(self, seconds: float) -> float:
        """The length in seconds that the file declares; 0 if it declares none, or only an estimate.

        Numbers of frames do not tell where a file is cut: AVI's counts pictures that only last longer, MP4's what an
        edit list leaves out, and MKV has none.
        """
        name = self._container.format.name
        if name == "avi":  # whose duration libavformat shortens to what the file holds
            return float(self._stream.frames / self.rate)
        if "mp4" in name:
            return float((self._stream.duration or 0) * (self._stream.time_base or 0))
        return seconds if "matroska" in name else 0.0

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield (H, W, 3) uint8 RGB frames.

        Raises:
            ValueError: there is no frame, or one cannot be decoded.
        """
        import av

        count = 0
        try:
            for packet in self._packets():
                for frame in packet.decode():
                    count, self.time = count + 1, frame.time
                    # Phones store frames in sensor orientation, with the counterclockwise rotation to apply.
                    yield np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)))
        except av.error.FFmpegError as error:
            raise ValueError(f"{self._path}: decoding failed before the end ({error.strerror})") from None
        if self._reached:
            number = f"{count} of about {self.count}" if self.count > count else count
            self.cut = f"{self._path}: cut short: {number} frames could be read ({self._reached})"
        if not count:
            raise ValueError(self.cut or f"{self._path}: has no frames")

    def _packets(self) -> Iterator["Packet"]:
        """The video's packets but for one that the end of the file cuts; `_reached` says how far they get."""
        everything = "matroska" in self._container.format.name  # its length is that of the longest stream
        reached, damaged = 0.0, False
        for packet in self._container.demux(*([] if everything else [self._stream])):
            if packet.is_corrupt and self._length:
                damaged = True
                continue
            start = packet.dts if packet.pts is None else packet.pts
            if start is not None:
                reached = max(reached, float((start + (packet.duration or 0)) * packet.time_base))
            if packet.stream == self._stream:
                yield packet
        if damaged or reached < self._length - SLACK - 1 / self.rate:
            self._reached = f"{reached:.1f} of {self._length:.1f} s"

    def __enter__(self) -> Self:
        """Is open already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the file."""
        self._container.close()


class VideoWriter:
    """Write an H.264 video to an MP4 file; a context manager.

    Args:
        path: the file to write.
        rate: frames per second, where frames have no times of their own.
    """

    def __init__(self, path: Path, rate: Fraction) -> None:
        import av

        self._container = av.open(path, "w", format="mp4")
        self._rate = rate
        self._stream = self._container.add_stream("h264", rate=rate, options={"crf": "18"})
        self._stream.codec_context.time_base = Fraction(1, TICKS)
        self._started = False
        self._first: float | None = None  # time of the first frame
        self._last = 0  # place of the newest frame, in ticks

    def add(self, frame: np.ndarray, time: float | None = None) -> None:
        """Append an (H, W, 3) uint8 RGB frame; all must have the size of the first.

        H.264 needs even sizes: the last row or column of an odd size is duplicated.

        Args:
            frame: the frame.
            time: when it is shown, in seconds; None: a frame's time after the one before.
        """
        import av

        height, width = frame.shape[:2]
        frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
        if not self._started:
            self._stream.height, self._stream.width = frame.shape[:2]
            self._stream.pix_fmt = "yuv420p"  # supported by every player
            self._started, self._first, place = True, time, 0
        elif time is None or self._first is None:
            place = self._last + round(TICKS / self._rate)
        else:
            place = max(self._last + 1, round((time - self._first) * TICKS))
        picture.pts, picture.time_base, self._last = place, Fraction(1, TICKS), place
        self._container.mux(self._stream.encode(picture))

    def __enter__(self) -> Self:
        """Is open already."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        """Flush the encoder and close the file."""
        if kind is None and self._started:
            self._container.mux(self._stream.encode())
        self._container.close()
