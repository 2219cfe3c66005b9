"""Region annotations in their three forms."""

import json

import pytest

from mmjax.data.regions import Region, parse_lines, read_regions

TABLE = Region("a wooden table", (3, 40, 200, 90))
SKY = Region("blue sky", (0, 0, 500, 60))
OURS = {"caption": "a wooden table", "bbox": [3, 40, 200, 90]}
THEIRS = {"phrase": "blue  sky\n", "x": 0, "y": 0, "width": 500, "height": 60, "region_id": 1}
LINE = "a wooden table X: 3 Y: 40 Width: 200 Height: 90"


def write(tmp_path, value):
    path = tmp_path / "regions.json"
    path.write_text(json.dumps(value))
    return path


def test_every_form(tmp_path):
    for value in (
        {"12": [OURS, {"caption": "blue sky", "bbox": [0, 0, 500, 60]}]},
        [{"id": 12, "regions": [OURS, THEIRS]}],
        {"12": [LINE, "blue sky X:0 Y:0 Width:500 Height:60"]},
    ):
        found = read_regions(write(tmp_path, value))
        assert dict(found.of) == {"12": (TABLE, SKY)} and not found.notices
    only = read_regions(
        write(tmp_path, [{"id": 1, "regions": None}, {"id": 2, "regions": []}]), {"2"}
    )
    assert dict(only.of) == {"2": ()}


def test_lines_that_run_into_the_next():
    """As in two of the published prompts: half a box, then the next caption."""
    text = "man surfing X: 188 Y: 77 Width: horizon over sea X: 250 Y: 42 Width: 190 Height: 54\n"
    assert parse_lines(text + LINE) == ([Region("horizon over sea", (250, 42, 190, 54)), TABLE], 1)
    halves = ("X: 1", "X: 1 Y: 2", "X: 1 Y: 2 Width: 3", "X: 1 Y: 2 Width: 3 Height:")
    for half in halves:
        assert parse_lines(f"a cat {half} {LINE}") == ([TABLE], 1), half
    assert parse_lines(f"{LINE}{LINE} X: 1 Y: 1 Width: 1 Height: 1") == ([TABLE, TABLE], 1)
    assert parse_lines("route X: the bus x: -1 y: 2.5 width: 3 height: 4")[0] == [
        Region("route X: the bus", (-1, 2.5, 3, 4))
    ]
    with pytest.raises(ValueError, match="expected CAPTION X: 1"):
        parse_lines("no box at all")


def test_what_is_left_out_is_counted(tmp_path):
    value = [{"id": 1, "regions": [OURS, OURS | {"caption": " "}]}, {"id": 1, "regions": [THEIRS]}]
    found = read_regions(write(tmp_path, value))
    assert dict(found.of) == {"1": (SKY,)}
    assert found.notices == (
        "1 regions are left out: they have no caption, or half a box",
        "1 pictures are there twice; the last one counts",
    )


def test_all_bad_pictures_at_once(tmp_path):
    value = {
        "1": [OURS, OURS | {"bbox": [1, 2, 3]}],
        "2": [{"caption": "x", "bbox": [1, 2, 3, "4"]}],
        "3": "table",
        "4": ["table"],
        "5": [OURS | {"phrase": "y"}],
    }
    with pytest.raises(ValueError) as caught:
        read_regions(write(tmp_path, value))
    for text in (
        "5 bad pictures", "picture 1: region 1: expected a box of x, y, width and height, got [1",
        "picture 2: region 0", "picture 3: expected a list of regions, got 'table'",
        "picture 4: region 0: expected CAPTION X: 1", "fields 'caption' and 'phrase'",
    ):  # fmt: skip
        assert text in str(caught.value)
    with pytest.raises(ValueError, match="expected a list or an object, got int"):
        read_regions(write(tmp_path, 3))
    with pytest.raises(FileNotFoundError):
        read_regions(tmp_path / "gone.json")
