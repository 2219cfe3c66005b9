import collections

import pytest

from mmjax.data.mixture import weighted_order


class Numbers:
    name = "numbers"

    def __init__(self, *counts: int):
        self.kinds = [
            kind for kind, count in zip("abc", counts, strict=False) for _ in range(count)
        ]

    def __len__(self):
        return len(self.kinds)


def test_every_record_once_in_each_epoch_in_a_new_order():
    order = weighted_order(Numbers(20, 30), None, seed=3)
    epochs = [[order[epoch * 50 + i] for i in range(50)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    again = weighted_order(Numbers(20, 30), None, seed=3)
    assert [again[i] for i in range(50)] == epochs[0]
    other = weighted_order(Numbers(20, 30), None, seed=4)
    assert [other[i] for i in range(50)] != epochs[0]


def test_kinds_are_drawn_in_proportion():
    source = Numbers(200, 10, 40)
    order = weighted_order(source, {"a": 0.5, "b": 0.5, "c": 0}, seed=0)
    drawn = [order[i] for i in range(400)]
    assert collections.Counter(source.kinds[record] for record in drawn) == {"a": 200, "b": 200}
    counts = collections.Counter(drawn)
    assert {counts[record] for record in range(200)} == {
        1
    }  # no record of a kind again before all have been
    assert {counts[record] for record in range(200, 210)} == {20}


def test_random_access_far_out():
    order = weighted_order(Numbers(20, 30), {"a": 3, "b": 1}, seed=0)
    far = 3 * 2**32
    window = [order[far + i] for i in range(40)]
    assert [order[far + i] for i in reversed(range(40))] == window[::-1]
    assert sum(record < 20 for record in window) == 30


def test_errors():
    with pytest.raises(ValueError, match=r"no such kinds \['d'\], no weight for \['b'\]"):
        weighted_order(Numbers(1, 1), {"a": 1, "d": 1}, seed=0)
    with pytest.raises(ValueError, match="not all 0"):
        weighted_order(Numbers(1), {"a": 0}, seed=0)
    with pytest.raises(ValueError, match="numbers has no records"):
        weighted_order(Numbers(0), None, seed=0)
