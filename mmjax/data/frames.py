"""Which frames of a video are shown (Lynx reference, section 2)."""

import numpy as np


def choose_frames(
    num_frames: int, count: int, draw: np.random.Generator | None = None
) -> list[int]:
    """Numbers of ``count`` frames of a video that has ``num_frames``, in order.

    A video with too few shows some of them twice. A longer one is cut into ``count`` stretches of
    nearly equal length, each of which shows its first frame, or, with ``draw`` (training), any of
    its frames; which stretches are one frame longer is then drawn, too.

    Raises:
      ValueError: no frames, or none wanted.
    """
    if num_frames < 1 or count < 1:
        raise ValueError(f"cannot choose {count} frames of {num_frames}: both must be above 0")
    if num_frames <= count:
        return sorted(number % num_frames for number in range(count))
    lengths = np.full(count, num_frames // count)
    lengths[: num_frames % count] += 1
    if draw is not None:
        draw.shuffle(lengths)
    starts = np.cumsum(lengths) - lengths
    return (starts if draw is None else starts + draw.integers(lengths)).tolist()
