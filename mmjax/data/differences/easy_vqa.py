"""Segmenter, text model and editor for easy-VQA's pictures, by rule: the offline default."""

import random
import re

import numpy as np

from mmjax.data.differences.interfaces import Edit, Kind, Scene, Segment, Unfit, Wording
from mmjax.data.sources.easy_vqa import COLOURS, SHAPES
from mmjax.data.sources.easy_vqa_edits import Thing, apply, sentence, take_apart

_NOTHING = "nothing"


class RuleSegmenter:
    """The shape, called ``red circle``, say, and the background."""

    def __call__(self, frame: np.ndarray) -> list[Segment]:
        parts = take_apart(frame)
        covered = parts.alpha > 0
        return [Segment(covered, str(parts.thing)), Segment(~covered, "background", True)]


class RuleText:
    """Describes an edit of the one shape by its label."""

    def __call__(self, scene: Scene, target: int, kind: Kind, seed: int) -> Wording:
        labels = [segment.label for segment in scene.segments if not segment.is_background]
        if len(labels) != 1 or (before := _named(labels[0])) is None:
            raise Unfit(f"expected one object, a colour and a shape; got {', '.join(labels)!r:.80}")
        after = before.edited(kind, random.Random(seed))
        edit = _NOTHING if after is None else f"a {after}"
        return Wording(edit, sentence(kind, before, after))


class RuleEditor:
    """Draws what `RuleText` describes."""

    def __call__(self, frame: np.ndarray, edit: Edit, seed: int) -> np.ndarray:
        after = _named(edit.description)
        if (after is None) != (edit.kind == "delete"):
            raise Unfit(f"cannot {edit.kind}: {edit.description!r:.80} is no colour and shape")
        mask = edit.segment.mask if edit.kind == "add" else None
        return apply(frame, edit.kind, after, seed, mask)


def _named(text: str) -> Thing | None:
    found = re.fullmatch(rf"(?:a )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})", text)
    return found and Thing(*found.groups())
