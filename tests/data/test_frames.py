import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from mmjax.data.frames import choose_frames

RECORDED = json.loads(
    (Path(__file__).parent.parent / "fixtures/lynx_misc/config.json").read_text()
)["frame_sampling"]


@pytest.mark.parametrize(
    "case", RECORDED, ids=lambda case: "{num_frames}-{num_segments}".format(**case)
)
def test_recorded_choices(case):
    """What the original gives in evaluation."""
    assert choose_frames(case["num_frames"], case["num_segments"]) == case["ids"]


def test_the_table_is_there():
    assert len(RECORDED) == 9


@pytest.mark.parametrize(
    ("num_frames", "count"), [(1, 1), (1, 5), (4, 5), (5, 5), (6, 5), (13, 5), (101, 4), (10**9, 5)]
)
def test_training_takes_one_frame_of_each_segment(num_frames, count):
    draw = np.random.default_rng(0)
    for _ in range(50):
        chosen = choose_frames(num_frames, count, draw)
        assert len(chosen) == count and chosen == sorted(chosen)
        assert 0 <= chosen[0] and chosen[-1] < num_frames
        if num_frames <= count:
            assert chosen == choose_frames(num_frames, count)
        else:
            gaps = [after - before for before, after in itertools.pairwise(chosen)]
            assert 0 < min(gaps, default=1) and max(gaps, default=0) < 2 * (num_frames // count + 1)


def test_training_reaches_every_frame():
    """Also of the longer segments, which may be anywhere."""
    draw = np.random.default_rng(0)
    seen = [choose_frames(13, 5, draw) for _ in range(2000)]
    assert {number for chosen in seen for number in chosen} == set(range(13))
    assert {chosen[0] for chosen in seen} == {0, 1, 2}
    assert {chosen[1] for chosen in seen} == {2, 3, 4, 5}
    assert {chosen[4] for chosen in seen} == {10, 11, 12}


def test_the_seed_alone_decides():
    first, again, other = (
        [choose_frames(100, 5, np.random.default_rng([seed, i])) for i in range(20)]
        for seed in (3, 3, 4)
    )
    assert first == again != other


@pytest.mark.parametrize(("num_frames", "count"), [(0, 5), (5, 0), (-1, 2)])
def test_no_frames(num_frames, count):
    with pytest.raises(ValueError, match=f"{count} frames of a video of {num_frames}"):
        choose_frames(num_frames, count)
