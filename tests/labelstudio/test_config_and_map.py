"""Label configs as people write them, and where model classes land."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from labelloop.core.errors import LabelConfigError
from labelloop.core.regions import Box, Polygon, Region
from labelloop.labelstudio.config import MAX_CONFIG_CHARS, MAX_REMEMBERED_CHARS, parse_config
from labelloop.labelstudio.labelmap import LabelMap, build_label_map, read_labels_file

BOX = Box((0, 0, 1, 1))


def view(*tags: str) -> str:
    return f"<View>{''.join(tags)}</View>"


IMAGE = '<Image name="pic" value="$photo"/>'


def rectangles(*labels: str, name: str = "r", to: str = "pic", extra: str = "") -> str:
    inner = "".join(label if label.startswith("<") else f'<Label value="{label}"/>' for label in labels)
    return f'<RectangleLabels name="{name}" toName="{to}" {extra}>{inner}</RectangleLabels>'


def drawn(label_map: LabelMap, name: str, *, score: float | None = None) -> list[tuple[str, str | None]]:
    return [(t.control.name, t.label) for t in label_map.targets_of(Region(BOX, name, score))]


@pytest.mark.parametrize(
    ("label", "found"),
    [
        ('<Label value="Bat" predicted_values="stick, baseball_bat"/>', "Bat"),
        ('<Label value="Bat" predicted_values="Baseball Bat"/>', "Bat"),
        ("baseball bat", "baseball bat"),
        ("Baseball_Bat", "Baseball_Bat"),
        ('<Label value="Club" alias="baseball bat"/>', "baseball bat"),
        ("bat", None),
    ],
    ids=["predicted_values", "predicted_values, other case", "exact", "case and underscore", "alias", "another word"],
)
def test_how_a_class_finds_its_label(label: str, found: str | None) -> None:
    label_map = build_label_map(parse_config(view(IMAGE, rectangles(label, "ball"))), ["baseball bat", "ball"])
    assert drawn(label_map, "baseball bat") == ([("r", found)] if found else [])
    assert label_map.unmapped == (() if found else ("baseball bat",))


def test_predicted_values_beat_an_equal_name() -> None:
    config = parse_config(view(IMAGE, rectangles("car", '<Label value="vehicle" predicted_values="car,truck"/>')))
    label_map = build_label_map(config, ["car", "truck", "dog"])
    assert drawn(label_map, "car") == [("r", "vehicle")]
    assert drawn(label_map, "truck") == [("r", "vehicle")], "several classes onto one label"
    assert label_map.unmapped == ("dog",)
    assert label_map.unfilled == ("car",)


def test_a_labels_file_beats_everything(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({"car": "Auto", "dog": "Hund"}))
    config = parse_config(view(IMAGE, rectangles("car", "Auto")))
    label_map = build_label_map(config, ["car", "dog"], aliases=read_labels_file(path))
    assert drawn(label_map, "car") == [("r", "Auto")]
    assert label_map.unmapped == ("dog",), "its label is not in the config"


@pytest.mark.parametrize("content", ["[1]", "{", '{"a": 1}'], ids=["a list", "not JSON", "not a name"])
def test_a_bad_labels_file_says_so(tmp_path: Path, content: str) -> None:
    path = tmp_path / "labels.json"
    path.write_text(content)
    with pytest.raises(LabelConfigError, match=r"labels\.json"):
        read_labels_file(path)


@pytest.mark.parametrize(
    ("labels", "found"),
    [(["Vehicle", "car"], "Vehicle"), (["car"], "car"), (["vehicle", "car"], "vehicle"), (["Tram"], None)],
    ids=["the file's name", "another project has the class's own name", "another case", "neither"],
)
def test_a_labels_file_serves_projects_with_other_labels_too(labels: list[str], found: str | None) -> None:
    label_map = build_label_map(parse_config(view(IMAGE, rectangles(*labels))), ["car"], aliases={"car": "Vehicle"})
    assert drawn(label_map, "car") == ([("r", found)] if found else [])


def test_a_labels_file_beats_a_better_control_with_the_class_name() -> None:
    polygons = '<PolygonLabels name="p" toName="pic"><Label value="Vehicle"/></PolygonLabels>'
    label_map = build_label_map(
        parse_config(view(IMAGE, rectangles("car"), polygons)), ["car"], aliases={"car": "Vehicle"}
    )
    assert drawn(label_map, "car") == [("p", "Vehicle")]


def test_as_many_classes_as_there_are() -> None:
    """LVIS has 1,203; each finds its own label, whatever way it is written."""
    names = [f"some_class {number}" for number in range(1203)]
    config = parse_config(view(IMAGE, rectangles(*(name.replace("_", " ").upper() for name in names))))
    label_map = build_label_map(config, names)
    assert (label_map.unmapped, label_map.unfilled) == ((), ())
    assert drawn(label_map, names[-1]) == [("r", "SOME CLASS 1202")]


def test_several_controls_at_once() -> None:
    config = parse_config(
        view(
            IMAGE,
            '<Image name="second" value="$other"/>',
            rectangles("car", name="vehicles"),
            rectangles("person", name="people"),
            rectangles("car", name="again", to="second"),
            '<Choices name="c" toName="pic"><Choice value="car"/></Choices>',
        )
    )
    label_map = build_label_map(config, ["car", "person"])
    assert drawn(label_map, "car") == [("vehicles", "car"), ("again", "car")], "once per picture"
    assert drawn(label_map, "person") == [("people", "person")]
    assert [tag.field for tag in label_map.fields] == ["photo", "other"]


@pytest.mark.parametrize(
    ("tags", "control"),
    [
        ([rectangles("a"), '<PolygonLabels name="p" toName="pic"><Label value="a"/></PolygonLabels>'], "r"),
        (['<PolygonLabels name="p" toName="pic"><Label value="a"/></PolygonLabels>'], "p"),
        (['<Rectangle name="g" toName="pic"/>', '<Labels name="l" toName="pic"><Label value="a"/></Labels>'], "g"),
        (['<Rectangle name="g" toName="pic"/>'], "g"),
        (['<BrushLabels name="b" toName="pic"><Label value="a"/></BrushLabels>'], None),
    ],
    ids=["rectangle before polygon", "polygon alone", "rectangle and labels", "rectangle without labels", "brush: no"],
)
def test_which_control_draws_a_box(tags: list[str], control: str | None) -> None:
    label_map = build_label_map(parse_config(view(IMAGE, *tags)), ["a"])
    assert [name for name, _ in drawn(label_map, "a")] == ([control] if control else [])


def test_an_outline_prefers_a_polygon() -> None:
    config = parse_config(
        view(IMAGE, '<Rectangle name="g" toName="pic"/>', '<Polygon name="p" toName="pic"/>', '<Labels name="l" toName="pic"><Label value="Text"/></Labels>')
    )  # fmt: skip
    label_map = build_label_map(config, ["Text"], task="ocr")
    (target,) = label_map.targets_of(Region(Polygon(((0, 0), (1, 0), (1, 1))), "Text"))
    assert (target.control.name, target.label_control and target.label_control.name) == ("p", "l")


@pytest.mark.parametrize(
    ("extra", "label", "given", "expected"),
    [
        ("", "a", None, 0.3),
        ("", "a", 0.6, 0.6),
        ('score_threshold="0.2"', "a", 0.6, 0.2),
        ('model_score_threshold="0.1" score_threshold="0.2"', "a", 0.6, 0.1),
        ('score_threshold="0.2"', '<Label value="a" score_threshold="0.9"/>', None, 0.9),
    ],
    ids=["default", "setting", "control", "model_score_threshold first", "label"],
)
def test_thresholds(extra: str, label: str, given: float | None, expected: float) -> None:
    label_map = build_label_map(parse_config(view(IMAGE, rectangles(label, extra=extra))), ["a"], threshold=given)
    assert drawn(label_map, "a", score=expected) == [("r", "a")]
    assert drawn(label_map, "a", score=expected - 0.01) == []


@pytest.mark.parametrize(
    ("extra", "labels", "expected"),
    [
        ('score_threshold="0.2"', ["a", '<Label value="b" score_threshold="0.1"/>'], 0.1),
        ("", ["a", "b"], 0.3),
        ("", ["other"], 1.0),
    ],
    ids=["a label has the lowest", "the default", "nothing is mapped"],
)
def test_the_lowest_threshold_is_below_everything_that_is_drawn(extra: str, labels: list[str], expected: float) -> None:
    label_map = build_label_map(parse_config(view(IMAGE, rectangles(*labels, extra=extra))), ["a", "b"])
    assert label_map.lowest_threshold == expected


@pytest.mark.parametrize(
    ("written", "read"),
    [("0.5", 0.5), ("50%", 0.5), (" 50 % ", 0.5), ("1", 1.0), ("0", 0.0), ("100%", 1.0)]
    + [(text, None) for text in ("", "high", "7", "-0.1", "nan", "inf", "101%", "%", "5%%", "0,5")],
)
def test_a_threshold_that_is_none_is_ignored_and_logged(written: str, read: float | None) -> None:
    xml = view(IMAGE, rectangles("a"), f'<Choices name="c" toName="pic" score_threshold="{written}"/><!--{written}-->')
    with capture_logs() as logs:
        config = parse_config(xml)
        parse_config(xml)
    assert config.controls_by_name["c"].threshold == read
    assert drawn(build_label_map(config, ["a"]), "a") == [("r", "a")]
    assert [(line["tag"], line["value"]) for line in logs] == ([("Choices", written)] if read is None else [])


def test_the_next_threshold_holds_where_the_first_is_unusable() -> None:
    label_map = build_label_map(
        parse_config(view(IMAGE, rectangles("a", extra='model_score_threshold="" score_threshold="0.2"'))), ["a"]
    )
    assert label_map.lowest_threshold == 0.2


def test_the_fingerprint_changes_exactly_with_the_answer() -> None:
    def fingerprint(*tags: str, image: str = IMAGE, **options: Any) -> str:
        return build_label_map(parse_config(view(image, *tags)), ["a", "b"], **options).fingerprint

    base = fingerprint(rectangles("a"))
    assert base == fingerprint(rectangles('<Label value="a" background="red" hotkey="1"/>'), "<Header value='Hello'/>")
    others = [
        fingerprint(rectangles("b")),
        fingerprint(rectangles("a", "b")),
        fingerprint(rectangles("a", name="other")),
        fingerprint(rectangles("a", extra='score_threshold="0.4"')),
        fingerprint(rectangles("a"), threshold=0.5),
        fingerprint(rectangles("a"), aliases={"b": "a"}),
        fingerprint(rectangles("a"), image='<Image name="pic" valueList="$photo"/>'),
        fingerprint(rectangles("a"), image='<Image name="pic" value="$picture"/>'),
        fingerprint(rectangles("a", to="shown"), image='<Image name="shown" value="$photo"/>'),
        fingerprint(rectangles("a", to="pic,copy"), image=f'{IMAGE}<Image name="copy" value="$photo"/>'),
        fingerprint(rectangles("a"), '<TextArea name="t" toName="pic" perRegion="true"/>'),
        fingerprint('<PolygonLabels name="r" toName="pic"><Label value="a"/></PolygonLabels>'),
        fingerprint('<Rectangle name="r" toName="pic"/>'),
        fingerprint('<Rectangle name="r" toName="pic"/><Labels name="l" toName="pic"><Label value="a"/></Labels>'),
        fingerprint('<Rectangle name="r" toName="pic"/><Labels name="m" toName="pic"><Label value="a"/></Labels>'),
    ]
    assert len({base, *others}) == 1 + len(others)


@pytest.mark.parametrize(
    "xml",
    ["<View>", '<!DOCTYPE x [<!ENTITY a "b">]><View/>', "<View>" + " " * MAX_CONFIG_CHARS + "</View>"],
    ids=["not XML", "entities", "huge"],
)
def test_a_config_that_cannot_be_used_says_what_to_do(xml: str) -> None:
    with pytest.raises(LabelConfigError) as caught:
        parse_config(xml)
    assert caught.value.hint


def test_a_project_that_was_never_set_up_has_no_controls() -> None:
    assert parse_config("").controls == parse_config("<View></View>").controls == ()


def test_pages_and_tags_that_draw_nothing_are_understood() -> None:
    config = parse_config(
        view('<Image name="doc" valueList="$pages"/>', '<Text name="t" value="literal"/>', rectangles("a", to="doc"))
    )
    (tag,) = config.objects
    assert (tag.name, tag.field, tag.is_list) == ("doc", "pages", True)


def test_only_short_configs_are_remembered() -> None:
    short, long = view(IMAGE), view(IMAGE, f"<!--{'x' * MAX_REMEMBERED_CHARS}-->")
    assert parse_config(short) is parse_config(short)
    assert parse_config(long) == parse_config(short)
    assert parse_config(long) is not parse_config(long)


@pytest.mark.parametrize(
    ("tags", "note"),
    [
        ([rectangles("a")], None),
        ([rectangles("a", extra='value="$labels"')], None),
        ([rectangles(extra='value="$labels"')], r'<RectangleLabels name="r"> takes its labels from each task'),
        ([rectangles(extra='apiUrl="http://host/labels"')], r"Write <Label"),
        (['<Video name="film" value="$film"/>', rectangles("a", to="film")], r'not filled on <Video name="film">'),
        ([rectangles("a", to="nothing")], r"'nothing' in its toName shows nothing"),
        (['<Choices name="c" toName="nothing"/>'], None),
    ],
    ids=["plain", "written and dynamic", "dynamic", "from a server", "a film", "no object", "not for this model"],
)
def test_a_control_that_stays_empty_says_why(tags: list[str], note: str | None) -> None:
    notes = build_label_map(parse_config(view(IMAGE, *tags)), ["a"]).notes
    if note is None:
        assert notes == ()
    else:
        assert re.search(note, "\n".join(notes))


def test_films_and_texts_are_not_fetched_as_pictures() -> None:
    config = parse_config(
        view(
            IMAGE,
            '<Video name="film" value="$film"/>',
            '<Text name="words" value="$words"/>',
            rectangles("a", to="pic,film"),
            rectangles("a", name="on film", to="film"),
            '<Choices name="c" toName="words"><Choice value="a"/></Choices>',
        )
    )
    assert [tag.field for tag in build_label_map(config, ["a"]).fields] == ["photo"]
    assert build_label_map(config, ["a"], task="classify").fields == ()


def test_blanks_in_to_name_count_as_in_label_studio() -> None:
    config = parse_config(view(IMAGE, '<Image name="two" value="$two"/>', rectangles("a", to="pic, two")))
    assert [tag.name for tag in build_label_map(config, ["a"]).fields] == ["pic"]
