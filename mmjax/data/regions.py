"""What is seen where in a picture, in words: Visual Genome's region descriptions, and files like
them (LRV reference, sections 1.5 and 4).

region_descriptions.json, GAVIE's annotations, and lines as prompts have them:

    [{"id": 2356371, "regions": [{"phrase": "a wooden table", "x": 3, "y": 40, "width": 200,
                                  "height": 90}, ...]}, ...]
    {"2356371": [{"caption": "a wooden table", "bbox": [3, 40, 200, 90]}, ...], ...}
    {"2356371": ["a wooden table X: 3 Y: 40 Width: 200 Height: 90", ...], ...}
"""

import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmjax.data.sources import records

_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
_BOX = re.compile(rf"\bX:{_NUMBER}Y:{_NUMBER}Width:{_NUMBER}Height:{_NUMBER}", re.IGNORECASE)
# A region that runs into the next: its box ends where the next one's caption begins.
_CUT = re.compile(
    r".*\bX:\s*-?\d+(?:\s*Y:\s*-?\d+)?(?:\s*Width:(?:\s*\d+)?)?(?:\s*Height:)?",
    re.IGNORECASE | re.DOTALL,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Region:
    """``box``: left, top, width, height in pixels."""

    caption: str
    box: tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class Annotations:
    """The regions of pictures.

    Attributes:
      of: image id -> its regions, in the file's order.
      notices: what a user should know about how they were read.
    """

    of: Mapping[str, tuple[Region, ...]]
    notices: tuple[str, ...] = ()


def read_regions(path: str | Path, wanted: Collection[str] | None = None) -> Annotations:
    """Reads and checks a file in one of the three forms.

    Args:
      path: of the file.
      wanted: image ids; others are passed over.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not such a file, or bad regions in it: lists the first 20.
    """
    path = records.existing(path)
    try:
        whole = records.parse_json(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(whole, list | dict):
        raise ValueError(f"{path}: expected a list or an object, got {type(whole).__name__}")
    lost = 0

    def parse(where: str, item: Any) -> list[tuple[str, tuple[Region, ...] | None]]:
        nonlocal lost
        image_id, regions = item if isinstance(item, tuple) else _of_visual_genome(item)
        if wanted is not None and image_id not in wanted:
            return [(image_id, None)]
        found, cut = _regions(regions)
        lost += cut
        return [(image_id, tuple(found))]

    parsed = records.parse_all(path, _items(whole), parse)
    read = [(image_id, regions) for image_id, regions in parsed if regions is not None]
    found = dict(read)
    notices = []
    if lost:
        notices.append(f"{lost:,} regions are left out: they have no caption, or half a box")
    if len(found) < len(read):
        notices.append(f"{len(read) - len(found):,} pictures are there twice; the last one counts")
    return Annotations(found, tuple(notices))


def parse_lines(text: str) -> tuple[list[Region], int]:
    """Regions as prompts have them, ``CAPTION X: 1 Y: 2 Width: 3 Height: 4``, and how many are
    lost: those whose box runs into the next caption.

    Raises:
      ValueError: there is no box.
    """
    found, lost, start = [], 0, 0
    for box in _BOX.finditer(text):
        caption = text[start : box.start()]
        if (cut := _CUT.match(caption)) is not None:
            caption, lost = caption[cut.end() :], lost + 1
        start = box.end()
        caption = " ".join(caption.split())
        if caption:
            found.append(Region(caption, tuple(_number(value) for value in box.groups())))
        else:
            lost += 1
    if not start:
        raise ValueError(f"expected CAPTION X: 1 Y: 2 Width: 3 Height: 4, got {text!r:.60}")
    return found, lost


def _items(whole: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(whole, dict):
        yield from ((f"picture {image_id}", (image_id, value)) for image_id, value in whole.items())
    else:
        yield from ((f"record {number}", item) for number, item in enumerate(whole))


def _of_visual_genome(item: Any) -> tuple[str, Any]:
    item = records.as_object(item)
    given = item.get("id", item.get("image_id"))
    image_id = records.id_of({"id": given}, "")
    if not image_id:
        raise ValueError("field 'id' is missing")
    return image_id, item.get("regions")


def _regions(value: Any) -> tuple[list[Region], int]:
    if not isinstance(value, list):
        raise ValueError(f"expected a list of regions, got {value!r:.60}")
    found, lost = [], 0
    for number, item in enumerate(value):
        try:
            if isinstance(item, str):
                some, cut = parse_lines(item)
            else:
                some, cut = _region(records.as_object(item))
        except ValueError as error:
            raise ValueError(f"region {number}: {error}") from error
        found, lost = found + some, lost + cut
    return found, lost


def _region(item: dict[str, Any]) -> tuple[list[Region], int]:
    caption = records.one_of(item, "caption", "phrase")
    caption = " ".join(records.checked("field 'caption' or 'phrase'", caption or "").split())
    box = item.get("bbox")
    if box is None:
        box = [item.get(name) for name in ("x", "y", "width", "height")]
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        raise ValueError(f"expected a box of x, y, width and height, got {box!r:.60}")
    return ([Region(caption, tuple(box))], 0) if caption else ([], 1)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(text: str) -> float:
    return float(text) if "." in text else int(text)
