"""Parts that make pairs, for tests; by name: ``data.edits_stub:ATTRIBUTE``."""

import numpy as np

from mmjax.data.differences.easy_vqa import RuleText
from mmjax.data.differences.interfaces import Segment, Unfit, Wording


class CornerAttention:
    """Looks at the upper left quarter twice as much as elsewhere, or half as much; if ``moody``,
    how much depends on all pictures of the batch, as rounding does."""

    def __init__(self, looks: str = "there", image_size: int = 8, moody: int = 0):
        self.image_size, self.identity = image_size, {"looks": looks}
        self._moody = moody
        self._factor = {"there": 2.0, "away": 0.5}[looks]
        self.shapes = []

    def __call__(self, frames):
        assert frames.dtype == np.uint8
        self.shapes.append(frames.shape)
        maps = np.ones((len(frames), 4, 4), np.float32)
        maps[:, :2, :2] = self._factor + self._moody * frames.mean() / 1000
        return maps


class Halves:
    """An object on the left, another one on the right."""

    def __call__(self, frame):
        left = np.zeros(frame.shape[:2], bool)
        left[:, : frame.shape[1] // 2] = True
        return [Segment(left, "left"), Segment(~left, "right")]


class Counting:
    """A text model that costs something, and refuses what ``unfit`` says."""

    def __init__(self, unfit: str = ""):
        self.unfit, self.asked = unfit, []

    def __call__(self, scene, target, kind, seed):
        label = scene.segments[target].label
        self.asked.append((scene.caption, label, kind))
        usage = dict(requests=1, cost=0.5)
        if self.unfit and self.unfit in scene.caption:
            raise Unfit("a matter of taste", usage)
        return Wording(f"another {label}", f"the {label} side differs.", usage)


class Inverting:
    """An editor that turns a segment into its negative."""

    def __call__(self, frame, edit, seed):
        return np.where(edit.segment.mask[..., None], 255 - frame, frame)


class Share:
    """A filter: how much of the picture has changed."""

    def __call__(self, frame, edited, edit):
        return float((frame != edited).any(-1).mean())


def broken_editor():
    def edit(frame, edit, seed):
        raise RuntimeError("out of memory")

    return edit


class NotCallable:
    pass


RULES = RuleText
NUMBER = 3
