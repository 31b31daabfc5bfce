"""`labelloop video …` as people run it: real films, an export like Label Studio's, every format read back."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest
import yaml

from labelloop.cli import main
from labelloop.core.regions import Size
from labelloop.formats import coco, mot
from labelloop.labelstudio.config import parse_config
from labelloop.labelstudio.validate import sendable
from labelloop.labelstudio.video import decode_track
from labelloop.media.film import describe, read_frames
from labelloop.video.lifespans import boxes_by_frame
from reference.film_scene import FILM_CONFIG, HEIGHT, SIDE, WIDTH, across, write_scene
from reference.films import number_of, numbered, write

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs a command in this process; returns the exit status, stdout and stderr."""
    monkeypatch.setenv("LABELLOOP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)

    def go(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["labelloop", "video", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return go


def key(frame: int, x: float, *, enabled: bool = True, rotation: float = 0) -> dict[str, Any]:
    return {
        "frame": frame,
        "enabled": enabled,
        "rotation": rotation,
        "x": x,
        "y": 25.0,
        "width": 25.0,
        "height": 50.0,
        "time": frame / 25,
    }


def track(name: str, labels: list[str], *keys: dict[str, Any], frames: int = 60) -> dict[str, Any]:
    value = {"framesCount": frames, "duration": frames / 25, "labels": labels, "sequence": list(keys)}
    return {
        "id": name,
        "from_name": "box",
        "to_name": "video",
        "type": "videorectangle",
        "origin": "manual",
        "value": value,
    }


def task(number: int, film: str, *result: dict[str, Any], **annotation: Any) -> dict[str, Any]:
    row = {
        "id": number * 10,
        "was_cancelled": False,
        "ground_truth": False,
        "updated_at": "2026-01-01",
        "result": list(result),
    }
    return {"id": number, "data": {"video": film}, "annotations": [row | annotation], "predictions": []}


CAR = track("a", ["Car"], key(1, 0), key(11, 50, enabled=False))
DOG = track("b", ["Dog", "Wet"], key(56, 10))


@pytest.fixture
def export(tmp_path: Path) -> Path:
    path = tmp_path / "export.json"
    path.write_text(json.dumps([task(7, "/data/upload/4/d942553a-clip.mp4", CAR, DOG)]))
    return path


@pytest.fixture
def film(tmp_path: Path) -> Path:
    (tmp_path / "films").mkdir()
    return write(tmp_path / "films/clip.mp4", range(60))


# --- make ---------------------------------------------------------------------------------------------------------------


def pictures(folder: Path, count: int = 3) -> Path:
    folder.mkdir(parents=True)
    for number in range(1, count + 1):
        cv2.imwrite(str(folder / f"{number}.png"), cv2.cvtColor(numbered(number), cv2.COLOR_RGB2BGR))
    return folder


def test_make_makes_a_film_of_each_folder(run: Run, tmp_path: Path) -> None:
    pictures(tmp_path / "day/cam1")
    pictures(tmp_path / "day/cam2", 5)
    status, out, err = run("make", tmp_path / "day", "--recursive", "--fps", "29.97", "--verify")
    assert (status, err) == (0, "")
    assert f"{tmp_path}/day/cam1.mp4: 3 frames, 160 x 96, 29.97 fps\n  verified: every frame is its picture" in out
    assert describe(tmp_path / "day/cam2.mp4").frames_count == 5
    assert (tmp_path / "day/cam2.frames.csv").read_text().splitlines()[5] == "5,0.133467,5.png,160,96"


def test_make_does_not_overwrite_unless_it_is_told_to(run: Run, tmp_path: Path) -> None:
    pictures(tmp_path / "in")
    (tmp_path / "in.mp4").write_text("mine")
    status, _, err = run("make", "in")
    assert (status, err.splitlines()) == (
        1, [f"{tmp_path}/in.mp4 exists already.", "Name another place with -o, or add --force."]
    )  # fmt: skip
    assert (tmp_path / "in.mp4").read_text() == "mine"
    assert run("make", "in", "--force")[0] == 0
    assert run("make", "in", "-o", "elsewhere/film.mp4")[0] == 0
    assert describe(tmp_path / "elsewhere/film.mp4").frames_count == 3


def test_make_says_what_it_left_out(run: Run, tmp_path: Path) -> None:
    (pictures(tmp_path / "in") / "4.jpg").write_text("no picture")
    status, out, err = run("make", "in")
    assert status == 1, "somebody who looks at the status only must not think that all is there"
    assert "3 frames" in out
    assert "left out: 4.jpg: These 10 bytes are no picture" in err


@pytest.mark.parametrize(
    ("words", "says"),
    [(["absent"], "There is no folder"), (["."], "No pictures are in"), (["in", "--fps", "fast"], "'fast' is no frame rate.")],
    ids=["no folder", "no pictures", "no rate"],
)  # fmt: skip
def test_make_says_what_is_wrong(run: Run, tmp_path: Path, words: list[str], says: str) -> None:
    pictures(tmp_path / "in")
    status, _, err = run("make", *words)
    assert status == 1
    assert says in err


# --- interpolate --------------------------------------------------------------------------------------------------------


def test_interpolate_writes_the_export_with_every_frame(run: Run, export: Path) -> None:
    status, out, err = run("interpolate", export)
    target = export.with_name("export.frames.json")
    assert (status, out, err) == (0, f"{target}: 16 boxes\n", "")
    (found,) = json.loads(target.read_text())
    car, dog = (item["value"]["sequence"] for item in found["annotations"][0]["result"])
    assert [row["frame"] for row in car] == list(range(1, 12))
    assert car[5]["x"] == 25
    assert car[0] == key(1, 0)
    assert [row["frame"] for row in dog] == [56, 57, 58, 59, 60]
    assert found["annotations"][0]["id"] == 70


def test_interpolate_writes_a_table(run: Run, export: Path) -> None:
    assert run("interpolate", export, "--format", "csv")[0] == 0
    with export.with_name("export.frames.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 11 + 2 * 5, "a row for each label"
    assert rows[5] == {
        "task": "7", "film": "clip", "track": "a", "label": "Car", "frame": "6", "time_s": "0.24", "x": "25.0", "y": "25.0",
        "width": "25.0", "height": "50.0", "rotation": "0.0", "auto": "yes", "unit": "percent",
    }  # fmt: skip
    assert run("interpolate", export, "--format", "csv", "--size", "160x96", "-o", "px.csv")[0] == 0
    with export.with_name("px.csv").open(newline="") as file:
        row = list(csv.DictReader(file))[5]
    assert (row["x"], row["width"], row["height"], row["unit"]) == ("40.0", "40.0", "48.0", "px")


def test_interpolate_writes_motchallenge_text(run: Run, export: Path, film: Path) -> None:
    status, out, err = run("interpolate", export, "--format", "mot", "--images", film)
    assert (status, out, err) == (0, f"{export.with_name('export-mot')}: 16 boxes\n", "")
    folder = export.with_name("export-mot") / "clip"
    rows = mot.read(folder / "gt/gt.txt")
    assert [row.frame for row in rows if row.id == 1] == list(range(1, 12))
    assert rows[0] == mot.Row(1, 1, (0, 24, 40, 72), 1.0, 1, 1.0)
    assert (folder / "gt/labels.txt").read_text() == "Car\nDog\nWet\n"
    assert "seqLength=60\nimWidth=160\nimHeight=96" in (folder / "seqinfo.ini").read_text()


@pytest.mark.parametrize("place", ["films/clip.mp4", "films", "frames"], ids=["the film", "its folder", "its frames"])
def test_interpolate_makes_a_coco_data_set_with_pictures(
    run: Run, export: Path, film: Path, tmp_path: Path, place: str
) -> None:
    if place == "frames":
        pictures(tmp_path / "frames", 60)
    status, out, _ = run("interpolate", export, "--format", "coco", "--images", place, "-o", "set")
    assert (status, out) == (0, "set: 21 boxes on 16 frames\n")
    dataset = coco.read(tmp_path / "set/annotations.json")
    assert [category.name for category in dataset.categories] == ["Car", "Dog", "Wet"]
    for image in dataset.images:
        picture = cv2.imread(str(tmp_path / "set/images" / image.file_name))
        assert picture.shape == (image.height, image.width, 3)
        assert number_of(picture) == int(image.file_name[-10:-4]), "each picture is the frame that its name says"
    boxes = {image.id: image.file_name for image in dataset.images}
    assert [instance.bbox for instance in dataset.annotations if boxes[instance.image_id].endswith("000006.jpg")] == [
        (40, 24, 40, 48)
    ]


def test_interpolate_makes_a_yolo_data_set(run: Run, export: Path, film: Path, tmp_path: Path) -> None:
    assert run("interpolate", export, "--format", "yolo", "--images", film, "-o", "set")[0] == 0
    assert yaml.safe_load((tmp_path / "set/data.yaml").read_text())["names"] == {0: "Car", 1: "Dog", 2: "Wet"}
    (line,) = (tmp_path / "set/labels/train/clip/clip_000006.txt").read_text().splitlines()
    assert [float(word) for word in line.split()] == pytest.approx([0, 0.375, 0.5, 0.25, 0.5])
    assert number_of(cv2.imread(str(tmp_path / "set/images/train/clip/clip_000006.jpg"))) == 6
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["data.yaml", "images", "labels"]


def test_frames_are_matched_by_time_where_label_studio_counted_otherwise(run: Run, tmp_path: Path, film: Path) -> None:
    """A label config without frameRate counts 24 frames a second, whatever the film has: 60 frames at 25 become 57.6."""
    doubled = track("a", ["Car"], key(1, 0), key(120, 0, enabled=False), frames=120)
    (tmp_path / "e.json").write_text(json.dumps([task(1, "clip.mp4", doubled)]))
    status, _, err = run("interpolate", "e.json", "--format", "coco", "--images", film, "-o", "set")
    assert status == 0
    assert "Label Studio counted 120 frames and the film has 60; frames are matched by time." in err
    found = [number_of(cv2.imread(str(path))) for path in sorted((tmp_path / "set/images/clip").iterdir())]
    assert found == [number for number in range(1, 61) for _ in range(2)]


def test_whose_annotation_counts(run: Run, tmp_path: Path) -> None:
    one = task(
        1, "a.mp4", track("x", ["skipped"], key(1, 0, enabled=False)), was_cancelled=True, updated_at="2026-09-09"
    )
    one["annotations"] += task(1, "", track("x", ["older"], key(1, 0, enabled=False)))["annotations"]
    one["annotations"] += task(1, "", track("x", ["newer"], key(1, 0, enabled=False)), updated_at="2026-05-05")[
        "annotations"
    ]
    two = task(2, "a.mp4", track("x", ["truth"], key(1, 0, enabled=False)), ground_truth=True)
    two["annotations"] += task(2, "", track("x", ["newer"], key(1, 0, enabled=False)), updated_at="2026-05-05")[
        "annotations"
    ]
    (tmp_path / "e.json").write_text(json.dumps([one, two]))
    assert run("interpolate", "e.json", "--format", "csv", "-o", "t.csv")[0] == 0
    rows = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
    assert [(row["film"], row["label"]) for row in rows] == [("a", "newer"), ("a-2", "truth")]


def test_one_bad_track_does_not_stop_the_others(run: Run, tmp_path: Path) -> None:
    bad = track("bad", ["Car"], {"frame": 1})
    (tmp_path / "e.json").write_text(json.dumps([task(1, "a.mp4", bad, CAR)]))
    for format in ("labelstudio", "csv"):
        status, out, err = run("interpolate", "e.json", "--format", format)
        assert status == 1
        assert ": 11 boxes" in out
        assert "The track 'bad' cannot be read: 'x' is missing." in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--format", "mot"], "How large the film clip is stands nowhere in the export."),
        (["--format", "coco"], "How large the film clip is stands nowhere in the export."),
        (["--format", "yolo", "--size", "160x96"], "A YOLO data set consists of pictures."),
        (["--format", "mot", "--size", "large"], "'large' is no size."),
        (["--format", "coco", "--images", "export.json"], "export.json is no film"),
        (["-o", "absent/x.json"], "There is no folder"),
        (["-o", "films"], "films exists already."),
        (["-o", "films", "--force"], "films is a folder."),
    ],
    ids=["MOT without a size", "COCO without a size", "YOLO without pictures", "no size", "no film", "no folder", "a folder",
         "a folder, by force"],
)  # fmt: skip
def test_interpolate_says_what_is_wrong(run: Run, export: Path, film: Path, words: list[str], says: str) -> None:
    status, _, err = run("interpolate", export, *words)
    assert status == 1
    assert says in err


@pytest.mark.parametrize(
    ("content", "says"),
    [("[]", "No task of the export has a track."), ('[{"id": 1, "annotations": []}]', "No task of the export has a track."),
     ("id,video", "The export is no JSON"), ('[{"id": 1, "box": []}]', "No task of the export has annotations.")],
    ids=["nothing", "no annotation", "CSV", "JSON-MIN"],
)  # fmt: skip
def test_what_is_no_export_of_films(run: Run, tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "e.json").write_text(content)
    status, _, err = run("interpolate", "e.json", "--format", "csv")
    assert status == 1
    assert says in err


@pytest.mark.parametrize(
    ("reference", "film"),
    [("/data/upload/4/d942553a-clip.mp4", "clip"), ("s3://bucket/a/b%20c.mp4?x=1", "b c"), ("..", "task-3"), ("/", "task-3"),
     ("/data/local-files/?d=x/../../..", "task-3"), ("a\\..\\b.mp4", "a_.._b"), ("http://[x/y.mp4", "task-3"), ("x/..%2F..%2Fy.mp4", "y")],
)  # fmt: skip
def test_a_film_is_called_by_a_name_and_never_by_a_path(run: Run, tmp_path: Path, reference: str, film: str) -> None:
    (tmp_path / "e.json").write_text(json.dumps([task(3, reference, CAR)]))
    assert run("interpolate", "e.json", "--format", "mot", "--size", "160x96", "-o", "out")[0] == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == [film]


def test_force_replaces_a_data_set_and_nothing_else(run: Run, tmp_path: Path, export: Path, film: Path) -> None:
    words = ("interpolate", export, "--format", "yolo", "--images", film, "-o", "set")
    assert run(*words)[0] == 0
    (tmp_path / "set/images/train/clip/clip_000099.jpg").touch()
    assert run(*words)[0] == 1
    assert run(*words, "--force")[0] == 0
    assert len(list((tmp_path / "set/images/train/clip").iterdir())) == 16
    (tmp_path / "set/data.yaml").unlink()
    status, _, err = run(*words, "--force")
    assert (status, err.splitlines()[0]) == (1, "set is no data set and stays.")
    assert (tmp_path / "set/labels").is_dir()


def test_a_film_that_is_not_there_is_named(run: Run, export: Path, tmp_path: Path) -> None:
    two = [task(1, "a.mp4", CAR), task(2, "s3://bucket/b%20c.mp4", CAR)]
    export.write_text(json.dumps(two))
    (tmp_path / "films").mkdir()
    write(tmp_path / "films/a.mp4", range(60))
    status, _, err = run("interpolate", export, "--format", "mot", "--images", "films")
    assert status == 1
    assert "The film b c.mp4 of task 2 is not in films." in err
    export.write_text(json.dumps(two[1:]))
    assert (
        "The film b c.mp4 of task 2 is not in films."
        in run("interpolate", export, "--images", "films", "--format", "csv")[2]
    )


# --- reduce, evaluate ---------------------------------------------------------------------------------------------------


def test_reduce_undoes_interpolate(run: Run, export: Path) -> None:
    assert run("interpolate", export, "-o", "dense.json")[0] == 0
    status, out, err = run("reduce", "dense.json")
    assert (status, err) == (0, "")
    assert "2 tracks, 16 key frames became 3; IoU 1.000 on average, 1.000 at least" in out
    assert json.loads(export.with_name("dense.reduced.json").read_text()) == json.loads(export.read_text())


def test_evaluate_compares_what_was_exported(run: Run, export: Path, tmp_path: Path) -> None:
    assert run("interpolate", export, "--format", "mot", "--size", "160x96", "-o", "true")[0] == 0
    gt = tmp_path / "true/clip/gt/gt.txt"
    rows = mot.read(gt)
    mot.write(tmp_path / "half.txt", [row for row in rows if row.id == 1])
    status, out, _ = run("evaluate", "--gt", gt, "--pred", gt, "--pred", "half.txt")
    assert status == 0
    _, same, half = (line.split() for line in out.splitlines())
    assert same == ["gt.txt", *["100.00"] * 6, "0", "0", "0"]
    assert half[5:] == ["68.75", "100.00", "0", "5", "0"]


def test_evaluate_refuses_an_id_that_is_twice_on_a_frame(run: Run, tmp_path: Path) -> None:
    (tmp_path / "gt.txt").write_text("1,1,0,0,9,9\n1,1,5,5,9,9\n")
    status, _, err = run("evaluate", "--gt", "gt.txt", "--pred", "gt.txt")
    assert status == 1
    assert "gt.txt has the id 1 twice on frame 1." in err


def test_the_films_that_are_made_are_the_films_that_are_read(run: Run, tmp_path: Path) -> None:
    """The round: pictures, a film, boxes drawn on it, and the same pictures again as a data set."""
    pictures(tmp_path / "clip", 60)
    assert run("make", "clip")[0] == 0
    assert [number_of(frame.rgb) for frame in read_frames(tmp_path / "clip.mp4")] == list(range(1, 61))
    (tmp_path / "e.json").write_text(json.dumps([task(1, "/data/local-files/?d=films/clip.mp4", CAR)]))
    assert run("interpolate", "e.json", "--format", "coco", "--images", ".", "-o", "set")[0] == 0
    names = sorted((tmp_path / "set/images/clip").iterdir())
    assert [number_of(cv2.imread(str(path))) for path in names] == list(range(1, 12))


def test_follow_prints_a_track_that_label_studio_takes(run: Run, tmp_path: Path) -> None:
    film = write_scene(tmp_path / "film.mp4", frames=60, background=3)
    left, top = across(30)
    box = f"{left},{top},{left + SIDE},{top + SIDE}"
    status, out, err = run("follow", film, "--frame", 30, "--box", box, "--label", "Red", "--to-name", "film")
    assert status == 0, err
    (item,) = json.loads(out)
    config = parse_config(FILM_CONFIG.format(rate=25))
    assert sendable([item], config) == ([item], [])
    assert item["value"]["labels"] == ["Red"]
    (region,) = decode_track(item, size=Size(WIDTH, HEIGHT))
    boxes = boxes_by_frame(region.shape)
    assert set(boxes) == set(range(1, 61))
    for frame in (1, 15, 45, 60):
        left, top = across(frame)
        assert boxes[frame].xyxy == pytest.approx((left, top, left + SIDE, top + SIDE), abs=6), frame


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--box", "1,2,3"), "is no box"),
        (("--box", "50,10,20,40"), "is no box"),
        (("--box", "10,10,900,40"), "320 x 192"),
        (("--box", "10,10,40,40", "--frame", 99), "no frame 99"),
    ],
    ids=["three numbers", "backwards", "beyond the film", "after the film"],
)
def test_follow_says_what_is_wrong(run: Run, tmp_path: Path, words: tuple[object, ...], problem: str) -> None:
    film = write_scene(tmp_path / "film.mp4", frames=20)
    status, _, err = run("follow", film, *words)
    assert status == 1
    assert problem in err
