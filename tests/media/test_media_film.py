"""Films read frame by frame: each frame says its number, and what is wrong with a film is said in words."""

from __future__ import annotations

import tracemalloc
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from labelloop.core.errors import MediaError, MediaNotFound, MediaUndecodable
from labelloop.core.regions import Size
from labelloop.media.film import describe, read_frames
from labelloop.media.film_pixels import Pixels
from reference.films import numbers, turned, write

EVEN = range(60)


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return write(tmp_path / "film.mp4", EVEN)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("plain.mp4", "libx264", {"bf": "0"}),
        ("b-frames.mp4", "libx264", {"bf": "3"}),
        ("hevc.mp4", "libx265", {}),
        ("vp9.webm", "libvpx-vp9", {}),
        ("matroska.mkv", "libx264", {"bf": "2"}),
        ("mpeg4.avi", "mpeg4", {}),
    ],
)
def test_every_frame_is_read_once_and_in_order(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    if codec == "libx265":
        options = {"x265-params": "log-level=none"}
    path = write(tmp_path / name, EVEN, codec=codec, **options)
    film = describe(path)
    assert (film.size, film.frames_count, film.variable_rate, film.rotation_deg) == (Size(160, 96), 60, False, 0)
    assert (film.fps, film.duration_s) == (pytest.approx(25, rel=0.01), pytest.approx(2.4, rel=0.01))
    frames = list(read_frames(path))
    assert numbers(frame.rgb for frame in frames) == [frame.number for frame in frames] == list(range(1, 61))
    assert [frame.time_s for frame in frames] == pytest.approx([tick / 25 for tick in EVEN], abs=0.001)


@pytest.mark.parametrize("bf", ["0", "3"], ids=["without B-frames", "with B-frames"])
def test_going_in_anywhere_gives_exactly_that_frame(tmp_path: Path, bf: str) -> None:
    path = write(tmp_path / "film.mp4", EVEN, bf=bf)
    for first in (1, 2, 9, 10, 11, 37, 59, 60):
        frames = list(read_frames(path, first=first, last=first + 2))
        assert numbers(frame.rgb for frame in frames) == [*range(first, min(first + 3, 61))]
        assert frames[0].time_s == pytest.approx((first - 1) / 25)
    assert numbers(frame.rgb for frame in read_frames(path, first=7, every=25)) == [7, 32, 57]
    assert list(read_frames(path, first=61)) == []


def test_uneven_frames_keep_their_numbers_and_times(tmp_path: Path) -> None:
    ticks = [0, 1, 2, 10, 11, 30, 31, 32, 33, 50]
    path = write(tmp_path / "uneven.mp4", ticks, rate=Fraction(30000, 1001))
    film = describe(path)
    assert film.variable_rate
    assert film.frames_count == 10
    frames = list(read_frames(path, first=4))
    assert numbers(frame.rgb for frame in frames) == [4, 5, 6, 7, 8, 9, 10]
    assert [frame.time_s for frame in frames] == pytest.approx([tick * 1001 / 30000 for tick in ticks[3:]], abs=1e-4)


def test_milliseconds_are_no_variable_rate(tmp_path: Path) -> None:
    assert not describe(write(tmp_path / "film.mkv", EVEN, rate=Fraction(30000, 1001))).variable_rate


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_frames_are_upright(film: Path, quarters: int) -> None:
    (plain,) = read_frames(film, first=5, last=5)
    turned(film, quarters)
    found = describe(film)
    assert found.rotation_deg == quarters * 90
    assert found.size == (Size(160, 96) if quarters == 2 else Size(96, 160))
    (frame,) = read_frames(film, first=5, last=5)
    assert np.array_equal(frame.rgb, np.rot90(plain.rgb, -quarters))


@pytest.mark.parametrize("quarters", [0, 1])
@pytest.mark.parametrize("layout", ["yuv420p", "yuv444p"])
@pytest.mark.parametrize("size", [Size(80, 48), Size(67, 41), Size(31, 20)], ids=str)
def test_frames_come_in_the_size_that_is_asked_for(tmp_path: Path, size: Size, layout: str, quarters: int) -> None:
    """A bright square on grey, red to the right of it: the same place and colours as in the whole frame."""
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "5"})
        stream.width, stream.height, stream.pix_fmt = 160, 96, layout
        rgb = np.full((96, 160, 3), 100, np.uint8)
        rgb[20:60, 40:80], rgb[20:60, 80:120] = 230, (200, 40, 40)
        for number in range(3):
            picture = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            picture.pts = number
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    if quarters:
        turned(path, quarters)
        size = Size(size.height, size.width)
    whole = next(read_frames(path)).rgb
    small = next(read_frames(path, size=size, threads=1)).rgb
    assert small.shape == (size.height, size.width, 3)
    expected = cv2.resize(whole, size, interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(small - expected).mean() < 4
    inner = expected[tuple(np.argwhere(expected[..., 0] > 225)[0])]
    assert np.abs(inner - 230).max() < 12


ITU709, ITU601, NARROW, FULL = 1, 5, 1, 2


@pytest.mark.parametrize("size", [Size(80, 48), Size(67, 41)], ids=str)
@pytest.mark.parametrize("tags", [(ITU709, NARROW), (ITU601, NARROW), (ITU709, FULL)], ids=["709", "601", "709-full"])
def test_colours_are_those_of_the_tags_in_every_size(tmp_path: Path, tags: tuple[int, int], size: Size) -> None:
    """A full red, as it is written under these tags: the ones of another standard make orange or pink of it."""
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = tags
        weight_red, weight_blue = (0.2126, 0.0722) if tags[0] == ITU709 else (0.299, 0.114)  # of brightness
        bright, colour = (255, 255) if tags[1] == FULL else (219, 224)
        picture = av.VideoFrame(160, 96, "yuv420p")
        y = (0 if tags[1] == FULL else 16) + bright * weight_red
        red, blue = 128 + colour / 2, 128 - colour * weight_red / (2 * (1 - weight_blue))
        for plane, value in zip(picture.planes, (y, blue, red), strict=True):
            plane.update(bytes([min(round(value), 255)]) * plane.buffer_size)
        picture.colorspace, picture.color_range = tags
        picture.pts = 0
        container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    for asked in (None, size):
        rgb = next(read_frames(path, size=asked)).rgb.astype(int)
        assert np.abs(rgb - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize("size", [Size(67, 41), None], ids=str)
def test_colours_under_tags_that_nobody_knows_are_the_usual_ones(size: Size | None) -> None:
    reserved, not_said = 3, 2
    shown = []
    for tag in (reserved, not_said):
        frame = av.VideoFrame(160, 96, "yuv420p")
        frame.colorspace = tag
        for plane, value in zip(frame.planes, (81, 90, 240), strict=True):
            plane.update(bytes([value]) * plane.buffer_size)
        shown.append(Pixels().upright(frame, size))
    assert np.array_equal(*shown)
    assert np.abs(shown[0].astype(int) - (255, 0, 0)).max() <= 3


def test_memory_does_not_grow_with_the_film(tmp_path: Path) -> None:
    def peak(length: int) -> int:
        path = write(tmp_path / f"{length}.mp4", range(length))
        tracemalloc.start()
        assert sum(1 for _ in read_frames(path)) == length
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(10)  # what is imported is not counted
    frame = 160 * 96 * 3
    assert peak(250) - peak(50) < 3 * frame


def test_a_real_film(shared: Path) -> None:
    film = describe(shared / "data/video/woman_and_dog.mp4")
    assert (film.size, film.frames_count, film.codec) == (Size(1280, 720), 289, "h264")
    assert film.fps == pytest.approx(30000 / 1001)
    assert not film.variable_rate


def sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_what_is_no_film(tmp_path: Path, film: Path) -> None:
    data = film.read_bytes()
    text = tmp_path / "text.mp4"
    text.write_text("no film")
    strange = tmp_path / "strange.mp4"
    strange.write_bytes(data.replace(b"avc1", b"zzz1"))
    empty = write(tmp_path / "empty.mp4", range(1))
    empty.write_bytes(empty.read_bytes().replace(b"stsz", b"free"))
    playlist = tmp_path / "playlist.mp4"
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:2.4,\n{film}\n#EXT-X-ENDLIST\n")
    script = tmp_path / "script.mp4"
    script.write_text(f"ffconcat version 1.0\nfile {film.name}\n")
    nothing = tmp_path / "nothing.mp4"
    nothing.touch()
    for path, kind, says in [
        (tmp_path / "absent.mp4", MediaNotFound, "There is no film"),
        (tmp_path, MediaError, "cannot be read: Is a directory"),
        (text, MediaUndecodable, "is no film, or one that was cut off before its index"),
        (nothing, MediaUndecodable, "is no film"),
        (playlist, MediaUndecodable, "is no film"),
        (script, MediaUndecodable, "is no film"),
        (sound(tmp_path / "sound.mp4"), MediaUndecodable, "has no picture"),
        (strange, MediaUndecodable, "stored in a way that cannot be read here"),
        (empty, MediaUndecodable, "is a film without frames|is no film|damaged"),
    ]:
        with pytest.raises(kind, match=says):
            describe(path)
        with pytest.raises(kind, match=says):
            list(read_frames(path))


def test_a_film_that_was_cut_off_says_so_and_gives_what_is_there(tmp_path: Path) -> None:
    """The index is in front, as in films for the web: the file opens, and ends too early."""
    path = write(tmp_path / "film.mp4", EVEN, bf="0")
    with (
        av.open(str(path)) as source,
        av.open(str(tmp_path / "web.mp4"), "w", options={"movflags": "+faststart"}) as web,
    ):
        stream = web.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                web.mux(packet)
    data = (tmp_path / "web.mp4").read_bytes()
    for share in (0.95, 0.8, 0.5):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(MediaUndecodable, match=r"damaged or cut off: \d+ of 60 frames can be read"):
            list(read_frames(path))


def test_damage_in_the_middle_names_the_last_good_frame(film: Path) -> None:
    data = bytearray(film.read_bytes())
    start = data.index(b"mdat") + 4
    middle = start + (data.index(b"moov") - start) // 2 if data.index(b"moov") > start else (start + len(data)) // 2
    data[middle : middle + 400] = b"\xff" * 400
    film.write_bytes(data)
    seen = []
    with pytest.raises(MediaUndecodable, match="damaged or cut off"):
        seen += [frame.number for frame in read_frames(film)]


def test_frames_keep_their_numbers_where_the_decoder_drops_some(tmp_path: Path) -> None:
    """Cut out of a longer film between two key frames: the first frames need one that is not there."""
    source = write(tmp_path / "source.mp4", EVEN, bf="0", **{"x264-params": "keyint=20:min-keyint=20:scenecut=0"})
    with av.open(str(source)) as film, av.open(str(tmp_path / "part.mkv"), "w") as part:
        stream = part.add_stream_from_template(film.streams.video[0])
        for number, packet in enumerate(film.demux(video=0), start=1):
            if packet.size and number > 10:
                packet.stream = stream
                part.mux(packet)
    assert describe(tmp_path / "part.mkv").frames_count == 50
    frames = list(read_frames(tmp_path / "part.mkv"))
    assert [frame.number for frame in frames] == list(range(11, 51))
    assert numbers(frame.rgb for frame in frames) == list(range(21, 61))
