"""Which frames of a video are shown: Lynx's rule (reference, section 2), used by every system that
takes videos.

A video of n frames is cut into ``count`` segments of n // count frames, the rest going to the first
ones; each shows its first frame (evaluation), or any of its frames, the longer segments being
anywhere (training). A shorter video shows its frames again, in order of time:

    8 frames, 5 asked for     0 1 | 2 3 | 4 5 | 6 | 7     0 2 4 6 7
    3 frames, 5 asked for                                 0 0 1 1 2

Upstream evaluates with the random frames of training; here these need a generator.
"""

import numpy as np


def choose_frames(
    num_frames: int, count: int, draw: np.random.Generator | None = None
) -> list[int]:
    """Numbers of the ``count`` frames that are shown, from 0, in order of time.

    Args:
      num_frames: what the video has.
      count: how many are asked for.
      draw: training's: seeded with what the choice may depend on.

    Raises:
      ValueError: the video has no frames, or none are asked for.
    """
    if num_frames < 1 or count < 1:
        raise ValueError(f"{count} frames of a video of {num_frames}: both must be at least 1")
    if num_frames <= count:
        return sorted(index % num_frames for index in range(count))
    length, longer = divmod(num_frames, count)
    lengths = np.array([length + 1] * longer + [length] * (count - longer))
    if draw is not None:
        draw.shuffle(lengths)
    starts = np.cumsum(lengths) - lengths
    offsets = 0 if draw is None else draw.integers(lengths)
    return (starts + offsets).tolist()
