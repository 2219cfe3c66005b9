"""easy-VQA's pictures as region annotations: one region each."""

from pathlib import Path

import numpy as np

from mmjax.data.differences.interfaces import Segment
from mmjax.data.images import load_image
from mmjax.data.regions import Region
from mmjax.data.sources.easy_vqa import captioned, picture
from mmjax.data.sources.easy_vqa_edits import take_apart


def easy_vqa_regions(split: str, limit: int | None = None) -> dict[str, tuple[Region, ...]]:
    """Number of a picture -> ``small red circle at the top left`` and its box; of the first
    pictures whose colour and shape are known."""
    known = [(number, facts) for number, facts in captioned(split) if facts.colour and facts.shape]
    found = {}
    for number, facts in known[:limit]:
        place = f"at the {facts.row} {facts.column}"
        parts = take_apart(np.asarray(load_image(picture(split, number))))
        left, top, right, bottom = Segment(parts.alpha >= 0.5, "").box
        caption = f"{facts.size} {facts.colour} {facts.shape} {place}"
        found[str(number)] = (Region(caption, (left, top, right - left, bottom - top)),)
    return found


def easy_vqa_folder(split: str) -> Path:
    """Of the pictures."""
    return picture(split, 0).data.parent
