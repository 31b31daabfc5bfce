"""Films as jobs: tracks in Label Studio, one bad film among good ones, and going on at the frame after a kill."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Callable
from datetime import timedelta
from fractions import Fraction
from io import StringIO
from pathlib import Path
from typing import Any

import av
import msgspec
import pytest
import sqlalchemy as sa
from rich.console import Console

from jobs.desk import Desk, film_progress, to_the_end
from labelloop.cli.watching import summarise
from labelloop.core.errors import JobLost
from labelloop.core.regions import Size
from labelloop.jobs.figures import figures_of
from labelloop.jobs.patience import Cancelled, Interrupted
from labelloop.labelstudio.video import decode_track
from labelloop.store import schema
from labelloop.store.films import KEPT, FilmParts
from labelloop.store.pages import Mark, Pages
from labelloop.testing import FakeLabelStudio
from labelloop.video.lifespans import boxes_by_frame
from reference.film_scene import FILM_CONFIG, HEIGHT, SIDE, WIDTH, ColourEngine, SquareEngine, across, write_scene
from reference.films import turned

FILM = Size(WIDTH, HEIGHT)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "films"
    folder.mkdir()
    return folder


@pytest.fixture
def open_desk(studio: FakeLabelStudio, tmp_path: Path, root: Path) -> Callable[..., Desk]:
    def open_desk(*, rate: float = 25, **settings: Any) -> Desk:
        config = FILM_CONFIG.format(rate=rate)
        options = {"local_files_root": root} | settings
        desk = Desk(studio, tmp_path / "home", "", config=config, field="video", labels=SquareEngine.classes, **options)
        desk.engine = SquareEngine()
        return desk

    return open_desk


def add_films(desk: Desk, *paths: Path) -> list[int]:
    added = desk.studio.add_tasks(desk.project, ({"video": f"/data/local-files/?d={path.name}"} for path in paths))
    desk.tasks += added
    return added


def tracks_of(desk: Desk, task: int) -> list[tuple[str | None, dict[int, Any], dict[str, Any]]]:
    """Label, boxes by frame and the item itself of each track that Label Studio holds."""
    (row,) = desk.studio.predictions(task)
    found = []
    for item in row["result"]:
        (region,) = decode_track(item, size=FILM)
        found.append((region.label, boxes_by_frame(region.shape), item))
    return found


def assert_on_the_way(boxes: dict[int, Any], *, frames: int, rate: float = 25, fps: float = 25) -> None:
    assert set(boxes) == set(range(1, max(boxes) + 1))
    assert max(boxes) == pytest.approx(frames / fps * rate, abs=1)
    for frame, box in boxes.items():
        left, top = across(min(max(round((frame - 0.5) / rate * fps + 0.5), 1), frames))
        assert box.xyxy == pytest.approx((left, top, left + SIDE, top + SIDE), abs=8), frame


@pytest.mark.parametrize("rate", [25, 24, 30], ids=str)
def test_each_thing_in_a_film_is_a_track_in_label_studio(
    open_desk: Callable[..., Desk], root: Path, rate: float
) -> None:
    desk = open_desk(rate=rate)
    (task,) = add_films(
        desk, write_scene(root / "a.mp4", ways={"red": across, "blue": lambda n: (200, 120) if 10 < n <= 40 else None})
    )
    assert desk.run(desk.job()).state == "done"
    (red, boxes, item), (blue, others, _) = tracks_of(desk, task)
    assert (red, blue) == ("Red", "Blue")
    assert_on_the_way(boxes, frames=50, rate=rate)
    assert (min(others), max(others)) == (
        pytest.approx(10 * rate / 25 + 1, abs=1),
        pytest.approx(40 * rate / 25, abs=1),
    )
    assert (item["from_name"], item["to_name"], item["type"]) == ("box", "film", "videorectangle")
    assert (item["origin"], item["value"]["labels"]) == ("prediction", ["Red"])
    assert (item["value"]["framesCount"], item["value"]["duration"]) == (2 * rate, 2.0)
    assert len(item["value"]["sequence"]) < 10
    assert all(row["time"] == pytest.approx(row["frame"] / rate, abs=1e-5) for row in item["value"]["sequence"])


@pytest.mark.parametrize("every", [2, 3])
def test_every_nth_frame(open_desk: Callable[..., Desk], root: Path, every: int) -> None:
    desk = open_desk(film_every=every)
    (task,) = add_films(desk, write_scene(root / "a.mp4", frames=61))
    desk.run(desk.job())
    assert desk.engine.looked == pytest.approx(61 / every, abs=2)  # and one to warm up
    ((_, boxes, _),) = tracks_of(desk, task)
    assert_on_the_way(boxes, frames=61)


def cut(path: Path) -> Path:
    """The end is missing, and with it nothing but frames: the index is in front."""
    whole = path.with_name("whole.mp4")
    with av.open(str(path)) as source, av.open(str(whole), "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    whole.unlink()
    return path


def no_frames(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        container.start_encoding()
    return path


def unreadable_codec(path: Path) -> Path:
    data = write_scene(path).read_bytes()
    path.write_bytes(data.replace(b"avc1", b"xx77").replace(b"avcC", b"xx7C"))
    return path


BAD = {
    "cut off": (lambda path: cut(write_scene(path)), "media-undecodable", "cut off"),
    "without frames": (no_frames, "media-undecodable", "no picture|frames|cut off"),
    "a codec that nobody knows": (unreadable_codec, "media-undecodable", "cannot be read|cut off"),
    "no film": (lambda path: path.write_text("<html>log in</html>") and path, "media-undecodable", "no film"),
    "not there": (lambda path: path, "media-not-found", "no such file|no film|404"),
}


def test_a_bad_film_fails_alone_and_says_why(open_desk: Callable[..., Desk], root: Path) -> None:
    desk = open_desk()
    films = [write_scene(root / "first.mp4")]
    films += [make(root / f"bad{number}.mp4") for number, (make, _, _) in enumerate(BAD.values())]
    films.append(write_scene(root / "last.mp4"))
    first, *bad, last = add_films(desk, *films)
    job = desk.run(desk.job())
    assert job.state == "done"
    assert desk.progress(job).stored == 2
    said = {failure.task_id: failure for failure in desk.failures(job)}
    assert list(said) == bad
    for task, (name, (_, code, words)) in zip(bad, BAD.items(), strict=True):
        assert said[task].code == code, (name, said[task])
        assert re.search(words, said[task].message), (name, said[task])
        assert str(root) not in said[task].message
    for task in (first, last):
        assert_on_the_way(tracks_of(desk, task)[0][1], frames=50)


def test_a_film_with_uneven_frames_is_followed_by_time(open_desk: Callable[..., Desk], root: Path) -> None:
    """Twenty frames, a second of nothing, twenty frames: the square stands where it stood at each moment."""
    ticks = [*range(20), *range(45, 65)]
    desk = open_desk()
    (task,) = add_films(desk, write_scene(root / "a.mkv", ticks=ticks))
    desk.run(desk.job())
    tracks = tracks_of(desk, task)
    boxes = {frame: box for _, found, _ in tracks for frame, box in found.items()}
    for number, tick in enumerate(ticks, start=1):
        left, _ = across(number)
        assert boxes[tick + 1].xyxy[0] == pytest.approx(left, abs=8), tick
    assert 32 not in boxes  # nothing is known of what was not filmed


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_film_that_players_turn(open_desk: Callable[..., Desk], root: Path, quarters: int) -> None:
    desk = open_desk()
    (task,) = add_films(desk, turned(write_scene(root / "a.mp4", ways={"red": lambda _: (10, 20)}), quarters))
    desk.run(desk.job())
    (row,) = desk.studio.predictions(task)
    (item,) = row["result"]
    size = Size(WIDTH, HEIGHT) if quarters == 2 else Size(HEIGHT, WIDTH)
    (region,) = decode_track(item, size=size)
    expected = {
        1: (HEIGHT - 20 - SIDE, 10, HEIGHT - 20, 10 + SIDE),
        2: (WIDTH - 10 - SIDE, HEIGHT - 20 - SIDE, WIDTH - 10, HEIGHT - 20),
        3: (20, WIDTH - 10 - SIDE, 20 + SIDE, WIDTH - 10),
    }[quarters]
    assert boxes_by_frame(region.shape)[5].xyxy == pytest.approx(expected, abs=3)


# --- kills, cancelling ------------------------------------------------------------------------------------------------


def test_a_job_goes_on_at_the_frame(
    open_desk: Callable[..., Desk], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker ends in the middle of a film; the next one looks only at the frames that are left, and comes to the
    same tracks as one that was never disturbed."""
    monkeypatch.setattr("labelloop.serving.films.PART_S", 0.0)
    desk = open_desk()
    (task,) = add_films(desk, write_scene(root / "a.mp4", frames=120))
    job = desk.job()
    enough = threading.Event()
    desk.engine = SquareEngine(at=lambda count: enough.set() if count > 60 else None)

    def stop() -> None:
        if enough.is_set():
            raise Interrupted

    with pytest.raises(Interrupted), desk.open(job, check=stop) as work:
        to_the_end(work)
    kept = film_progress(desk.store.engine, job.id)
    assert kept is not None
    assert (kept.task_id, kept.frames_count) == (task, 120)
    assert 20 < kept.frame < 120
    figures = figures_of(desk.store.engine, desk.store.jobs.get(job.id))
    (film,) = figures.films
    assert (film.task_id, film.frame, film.frames_count) == (task, kept.frame, 120)
    assert film.frames_per_s is not None
    assert film.eta_s == pytest.approx((120 - film.frame) / film.frames_per_s, rel=0.1, abs=0.1)
    assert (figures.done, figures.total) == (0, 1)
    assert figures.reached == pytest.approx(kept.frame / 120)
    assert figures.eta_s == pytest.approx(film.eta_s, abs=0.2)
    said = StringIO()
    summarise(desk.store.jobs.get(job.id), desk.store.engine, Console(file=said, width=200))
    assert f"task {task}: frame {kept.frame} of 120, {film.frames_per_s:.0f} frames/s" in said.getvalue()
    desk.engine = second = SquareEngine()
    desk.run(job)
    assert second.looked == pytest.approx(120 - kept.frame, abs=2)
    assert film_progress(desk.store.engine, job.id) is None
    ((_, boxes, interrupted),) = tracks_of(desk, task)
    assert_on_the_way(boxes, frames=120)

    (again,) = add_films(desk, root / "a.mp4")
    desk.run(desk.job())
    ((_, _, undisturbed),) = tracks_of(desk, again)
    assert interrupted["value"] == undisturbed["value"]


def test_a_film_that_was_replaced_meanwhile_is_begun_anew(
    open_desk: Callable[..., Desk], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labelloop.serving.films.PART_S", 0.0)
    desk = open_desk()
    (task,) = add_films(desk, write_scene(root / "a.mp4", frames=100))
    job, enough = desk.job(), threading.Event()
    desk.engine = SquareEngine(at=lambda count: enough.set() if count > 50 else None)

    def stop() -> None:
        if enough.is_set():
            raise Interrupted

    with pytest.raises(Interrupted), desk.open(job, check=stop) as work:
        to_the_end(work)
    write_scene(root / "a.mp4", frames=60)
    desk.engine = SquareEngine()
    desk.run(job)
    assert_on_the_way(tracks_of(desk, task)[0][1], frames=60)


def test_a_job_is_cancelled_in_the_middle_of_a_film(open_desk: Callable[..., Desk], root: Path) -> None:
    desk = open_desk()
    (task,) = add_films(desk, write_scene(root / "a.mp4", frames=120))
    job = desk.job()
    desk.engine = SquareEngine(at=lambda count: desk.store.jobs.cancel(job.id) if count == 30 else None)
    with pytest.raises(Cancelled), desk.open(job) as work:
        to_the_end(work)
    assert desk.engine.looked < 100
    assert desk.studio.predictions(task) == []


def test_parts_belong_to_who_has_the_page(open_desk: Callable[..., Desk], root: Path) -> None:
    desk = open_desk()
    job = desk.job()
    worker = desk.store.workers.register()
    assert desk.store.jobs.claim(desk.store.jobs.get(job.id), worker)

    def parts(owner: str, task: int = 3) -> FilmParts:
        return FilmParts(desk.store.engine, job.id, owner=owner, task_id=task, field="video")

    with pytest.raises(JobLost):  # nobody has taken it
        parts(worker).add(b"x", frame=1, frames_count=99)
    pages = Pages(desk.store.engine, job.id, owner=worker, is_alive=lambda _: True)
    assert pages.take([3], mark=Mark(), cursor=3, replaces={})
    for frame in (10, 20, 30):
        parts(worker).add(b"part %d" % frame, frame=frame, frames_count=99)
    assert list(parts("somebody").parts()) == [b"part 10", b"part 20", b"part 30"]
    for other in (parts("somebody"), parts(worker, task=4)):
        with pytest.raises(JobLost):
            other.add(b"x", frame=40, frames_count=99)
    parts(worker).clear()
    assert list(parts(worker).parts()) == []


def test_what_was_detected_goes_with_its_job(open_desk: Callable[..., Desk], root: Path) -> None:
    desk = open_desk()
    jobs, engine = desk.store.jobs, desk.store.engine
    ended = {"done": timedelta(0), "cancelled": timedelta(0), "failed": timedelta(days=1), "failed long": KEPT * 2}
    rows = {"gone": "gone"}
    for name in ("queued", "running", "last", *ended):
        work = msgspec.structs.replace(desk.work(), version=name)
        rows[name] = jobs.create(work)[0].id
    with engine.begin() as connection:
        for name, ago in ended.items():
            values = {"state": name.split()[0], "finished_at": schema.now() - ago}
            connection.execute(sa.update(schema.jobs).filter_by(id=rows[name]).values(**values))
        connection.execute(sa.update(schema.jobs).filter_by(id=rows["running"]).values(state="running"))
        for job_id in rows.values():
            part = {"job_id": job_id, "task_id": 1, "field": "video", "number": 9, "frames_count": 99}
            connection.execute(sa.insert(schema.film_parts).values(**part, content=b"x", kept_s=1.0))
    assert jobs.cancel(rows["last"]).state == "cancelled"
    left = {name for name, job_id in rows.items() if film_progress(engine, job_id) is not None}
    assert left == {"queued", "running", "failed"}, "a job that failed goes on at its frame when it is resumed"


def test_two_videos_of_one_task_are_two_films(studio: FakeLabelStudio, tmp_path: Path, root: Path) -> None:
    config = (
        '<View><Labels name="k" toName="one,two"><Label value="red"/></Labels><Video name="one" value="$a" '
        'framerate="25"/><Video name="two" value="$b" framerate="25"/><VideoRectangle name="v" toName="one"/>'
        '<VideoRectangle name="w" toName="two"/></View>'
    )
    desk = Desk(studio, tmp_path / "home", "", config=config, labels=SquareEngine.classes, local_files_root=root)
    desk.engine = SquareEngine()
    names = itertools.count()
    films = [write_scene(root / f"{next(names)}.mp4", frames=frames, fps=Fraction(25)) for frames in (30, 60)]
    one, two = (f"/data/local-files/?d={path.name}" for path in films)
    (task,) = desk.studio.add_tasks(desk.project, [{"a": one, "b": two}])
    desk.tasks.append(task)
    desk.run(desk.job())
    found = {item["to_name"]: item for _, _, item in tracks_of(desk, task)}
    assert {name: item["value"]["framesCount"] for name, item in found.items()} == {"one": 30, "two": 60}
    assert {name: item["from_name"] for name, item in found.items()} == {"one": "v", "two": "w"}


def test_a_classifier_says_what_a_film_shows(studio: FakeLabelStudio, tmp_path: Path, root: Path) -> None:
    """Three frames of four are red: that is the mean over the frames, the choice, and one stretch without gaps."""
    config = (
        '<View><Video name="film" value="$video" frameRate="25"/><Choices name="what" toName="film"><Choice '
        'value="Blue" predicted_values="blue"/><Choice value="Red" predicted_values="red"/></Choices>'
        '<TimelineLabels name="when" toName="film"><Label value="Red"/></TimelineLabels></View>'
    )
    desk = Desk(
        studio,
        tmp_path / "home",
        "",
        config=config,
        labels=SquareEngine.classes,
        task="classify",
        local_files_root=root,
    )
    desk.engine = ColourEngine()
    ways = {"red": lambda n: (20, 20) if n % 4 else None, "blue": lambda n: None if n % 4 else (20, 20)}
    (task,) = add_films(desk, write_scene(root / "a.mp4", frames=40, ways=ways))
    desk.run(desk.job())
    (row,) = desk.studio.predictions(task)
    item, stretch = row["result"]
    assert (item["from_name"], item["to_name"], item["type"]) == ("what", "film", "choices")
    assert item["value"] == {"choices": ["Red"]}
    assert item["score"] == pytest.approx(0.9 * 0.75, abs=0.01)
    assert (stretch["from_name"], stretch["to_name"], stretch["type"]) == ("when", "film", "timelinelabels")
    assert stretch["value"] == {"ranges": [{"start": 1, "end": 39}], "timelinelabels": ["Red"]}
