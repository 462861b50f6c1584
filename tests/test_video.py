"""Videos: every frame, upright, at its rate."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

av = pytest.importorskip("av")

from danet.tools.predict.video import VideoReader, VideoWriter  # noqa: E402

RATE = Fraction(30000, 1001)


def frames(height: int, width: int, count: int = 5) -> list[np.ndarray]:
    """Each brighter than the one before, with a white top left quarter."""
    result = []
    for index in range(count):
        frame = np.full((height, width, 3), 20 + 30 * index, np.uint8)
        frame[: height // 2, : width // 2] = 255
        result.append(frame)
    return result


def write(path: Path, pictures: list[np.ndarray], rotation: int = 0) -> None:
    """Without the code under test; `rotation` as a telephone notes it, counter-clockwise."""
    with av.open(path, "w") as container:
        stream = container.add_stream("h264", rate=RATE, options={"crf": "10"})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def close_to(found: np.ndarray, expected: np.ndarray) -> bool:
    """Up to what lossy coding changes."""
    return found.shape == expected.shape and float(np.abs(found.astype(int) - expected).mean()) < 4


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])  # the latter does not tell its number of frames
def test_reading_gives_every_frame(tmp_path: Path, name: str) -> None:
    pictures = frames(48, 64)
    write(tmp_path / name, pictures)
    with VideoReader(tmp_path / name) as reader:
        found = list(reader)
        assert reader.count == len(found) == 5
        assert float(reader.rate) == pytest.approx(29.97, abs=0.01)
    assert all(close_to(*pair) for pair in zip(found, pictures, strict=True))


@pytest.mark.skipif(not hasattr(av.VideoStream, "set_display_rotation"), reason="an older PyAV cannot write this")
@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_frames_are_turned_upright(tmp_path: Path, rotation: int) -> None:
    pictures = frames(48, 64)
    write(tmp_path / "a.mp4", pictures, rotation)
    with VideoReader(tmp_path / "a.mp4") as reader:
        found = list(reader)
    corner = {90: (slice(32, None), slice(None, 24)), 180: (slice(24, None), slice(32, None))}  # where white is then
    corner[-90] = (slice(None, 32), slice(24, None))
    for picture in found[:3]:
        assert picture.shape == ((48, 64, 3) if rotation == 180 else (64, 48, 3))
        white = picture.min(axis=2) > 200
        assert white[corner[rotation]].mean() > 0.95
        assert white.mean() < 0.3


CODECS = {"avi": ("mpeg4", {"bf": "2"}), "mkv": ("h264", {}), "mp4": ("h264", {})}


def write_noise(path: Path, *, times: list[int], sound: bool = False) -> None:
    """Forty pictures that do not compress, at times in 1/25 s; a file that has its index first, if it can."""
    codec, options = CODECS[path.suffix[1:]]
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    with av.open(path, "w", options={"movflags": "faststart"} if path.suffix == ".mp4" else {}) as container:
        stream = container.add_stream(codec, rate=25, options={**options, "g": "5"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        audio = container.add_stream("aac", rate=8000) if sound else None
        for time in times:
            frame = av.VideoFrame.from_ndarray(np.roll(noise, time, axis=1), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if audio:
            for start in range(0, 40_000, 1024):
                samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                samples.rate, samples.pts = 8000, start
                container.mux(audio.encode(samples))
            container.mux(audio.encode())


@pytest.mark.parametrize("ending", CODECS)
def test_a_file_that_is_cut_short_says_what_is_missing(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"a.{ending}"
    write_noise(file, times=list(range(40)))
    with VideoReader(file) as reader:
        assert (len(list(reader)), reader.cut) == (40, "")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with VideoReader(file) as reader:
        found = len(list(reader))
        assert 2 < found < 30
        assert reader.cut.startswith(f"{file}: cut short: {found} of about 40 frames could be read (")
        assert reader.cut.endswith(" of 1.6 s)")


@pytest.mark.parametrize("ending", CODECS)
@pytest.mark.parametrize("kind", ["late", "uneven", "sound"])
def test_a_whole_file_is_not_taken_for_a_cut_one(tmp_path: Path, ending: str, kind: str) -> None:
    """Though it has far fewer frames than its length or index suggests."""
    times = {"late": range(250, 290), "uneven": [*range(20), *range(200, 300, 5)], "sound": range(40)}[kind]
    write_noise(tmp_path / f"a.{ending}", times=list(times), sound=kind == "sound")
    with VideoReader(tmp_path / f"a.{ending}") as reader:
        assert (len(list(reader)), reader.cut) == (40, "")


def test_what_an_edit_list_leaves_out_is_not_missed(tmp_path: Path) -> None:
    """As in a film that a telephone has trimmed: the pictures are there, from the key frame on, but not shown."""
    write_noise(tmp_path / "whole.mp4", times=list(range(40)))
    with av.open(tmp_path / "whole.mp4") as source, av.open(tmp_path / "a.mp4", "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                second = round(1 / packet.time_base)
                packet.pts, packet.dts = packet.pts - second, packet.dts - second
                packet.stream = stream
                container.mux(packet)
    with VideoReader(tmp_path / "a.mp4") as reader:
        assert (reader.count, len(list(reader)), reader.cut) == (40, 15, "")


def test_a_file_that_is_cut_before_its_first_frame_is_refused(tmp_path: Path) -> None:
    write_noise(tmp_path / "a.mkv", times=list(range(40)))
    data = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "a.mkv").write_bytes(data[: data.index(bytes.fromhex("1f43b675")) + 40])  # in the first cluster
    with (
        pytest.raises(ValueError, match=r"a\.mkv: cut short: 0 of about 40 frames"),
        VideoReader(tmp_path / "a.mkv") as reader,
    ):
        list(reader)


def test_writing_keeps_number_rate_and_picture(tmp_path: Path) -> None:
    pictures = frames(50, 66, 7)
    with VideoWriter(tmp_path / "a", RATE) as writer:
        for picture in pictures:
            writer.add(picture)
    with av.open(tmp_path / "a") as container:
        stream = container.streams.video[0]
        assert (stream.frames, stream.average_rate) == (7, RATE)
        assert stream.codec_context.name == "h264"
        found = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert all(close_to(*pair) for pair in zip(found, pictures, strict=True))


def test_uneven_times_are_kept(tmp_path: Path) -> None:
    """Telephones and screen recorders write frames when something changes."""
    times = [0.0, 0.033, 0.067, 0.3, 0.5, 0.533, 2.0]
    with av.open(tmp_path / "in.mkv", "w") as container:
        stream = container.add_stream("h264", rate=30)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for time, picture in zip(times, frames(48, 64, 7), strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(1000 * time), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with VideoReader(tmp_path / "in.mkv") as reader, VideoWriter(tmp_path / "out", reader.rate) as writer:
        for picture in reader:
            writer.add(picture, reader.time)
    with av.open(tmp_path / "out") as container:
        found = [frame.time for frame in container.decode(video=0)]
    assert found == pytest.approx(times, abs=0.002)


def test_odd_sizes_become_even(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a", Fraction(10)) as writer:
        writer.add(frames(33, 47)[0])
    with av.open(tmp_path / "a") as container:
        (frame,) = container.decode(video=0)
    assert close_to(frame.to_ndarray(format="rgb24")[:33, :47], frames(33, 47)[0])
    assert (frame.height, frame.width) == (34, 48)


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video" * 100)
    for name in ("a.mp4", "none.mp4"):
        with pytest.raises(ValueError, match=rf"{name}: not a readable video"):
            VideoReader(tmp_path / name)
    with av.open(tmp_path / "sound.mp4", "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match=r"sound\.mp4: has no video"):
        VideoReader(tmp_path / "sound.mp4")
