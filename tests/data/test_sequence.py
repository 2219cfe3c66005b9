import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.data.sequence import Lengths, Overlong, assemble, fit, join
from mmjax.data.templates import Encoded, Segment

LENGTHS = Lengths(prefix=5, request=2, target=7)


def row(num_text: int, answer=(50, 51)) -> Encoded:
    return Encoded(
        target=[
            Segment((101,), slot=("response", 0)),
            Segment((101,), slot=("response", 1)),
            Segment((20,)),
            Segment(answer, is_target=True, weight=2.0),
        ],
        prefix=[Segment((100,), slot=("media", 0)), Segment(tuple(range(10, 10 + num_text)))],
        request=[Segment((101,), slot=("request", 0))],
    )


def test_assemble_arrays():
    prefix, request, target = assemble([row(2), row(4, (52,))], LENGTHS, 9)
    np.testing.assert_array_equal(prefix.tokens, [[9, 9, 100, 10, 11], [100, 10, 11, 12, 13]])
    np.testing.assert_array_equal(prefix.positions, [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]])
    np.testing.assert_array_equal(prefix.segments, [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    np.testing.assert_array_equal(prefix.slots["media"], [[-1, -1, 0, -1, -1], [0, -1, -1, -1, -1]])
    assert not prefix.weights.any()
    np.testing.assert_array_equal(request.tokens, [[101, 9], [101, 9]])
    np.testing.assert_array_equal(request.positions, [[3, 0], [5, 0]])
    np.testing.assert_array_equal(request.slots["request"], [[0, -1], [0, -1]])
    np.testing.assert_array_equal(
        target.tokens, [[101, 101, 20, 50, 51, 9, 9], [101, 101, 20, 52, 9, 9, 9]]
    )
    np.testing.assert_array_equal(target.positions, [[3, 4, 5, 6, 7, 0, 0], [5, 6, 7, 8, 0, 0, 0]])
    np.testing.assert_array_equal(target.segments, [[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0, 0]])
    np.testing.assert_array_equal(target.targets, [[9, 9, 50, 51, 9, 9, 9], [9, 9, 52, 9, 9, 9, 9]])
    np.testing.assert_array_equal(target.weights, [[0, 0, 2, 2, 0, 0, 0], [0, 0, 2, 0, 0, 0, 0]])
    np.testing.assert_array_equal(target.slots["response"][:, :3], [[0, 1, -1], [0, 1, -1]])
    for sequence in (prefix, request, target):
        assert sequence.weights.dtype == np.float32
        for values in (sequence.tokens, sequence.positions, sequence.segments, sequence.targets):
            assert values.dtype == np.int32


def test_a_row_does_not_depend_on_its_neighbours():
    alone = assemble([row(2)], LENGTHS, 9)
    beside = assemble([row(4), row(2)], LENGTHS, 9)
    for one, two in zip(jax.tree.leaves(alone), jax.tree.leaves(beside), strict=True):
        np.testing.assert_array_equal(one[0], two[1])


def test_first_token_of_target_as_target_is_refused():
    encoded = Encoded([Segment((50,), is_target=True)], prefix=[Segment((10,))])
    with pytest.raises(ValueError, match="first token of a target .* prefix"):
        assemble([encoded], LENGTHS, 0)


def test_targets_outside_the_target_are_refused():
    encoded = Encoded([Segment((50,))], prefix=[Segment((10,)), Segment((11,), is_target=True)])
    with pytest.raises(ValueError, match="a prefix has no loss"):
        assemble([encoded], LENGTHS, 0)


def test_rows_of_different_layout_are_refused():
    with pytest.raises(ValueError, match="some rows of the batch have a request"):
        assemble([row(1), dataclasses.replace(row(1), request=None)], LENGTHS, 0)


def test_a_slot_is_one_token():
    with pytest.raises(ValueError, match="must be one token"):
        Segment((1, 2), slot=("media", 0))


def test_overlong_gives_the_numbers():
    with pytest.raises(Overlong, match="sample 7: its prefix has 9 tokens, the limit is 5"):
        fit(row(8), LENGTHS, name="sample 7")
    with pytest.raises(Overlong, match="its target has 9 tokens, the limit is 7"):
        assemble([row(1, (50,) * 6)], LENGTHS, 0)
    assert fit(row(4), LENGTHS, name="") == row(4)


def test_truncation_cuts_only_the_longest_plain_text():
    cut = fit(row(8), LENGTHS, name="", truncate_text=True)
    assert cut.prefix == [Segment((100,), slot=("media", 0)), Segment((10, 11, 12, 13))]
    assert cut.target == row(8).target
    with pytest.raises(
        Overlong, match="too little plain text"
    ):  # only one token (20) could go, two must
        fit(row(1, (50,) * 6), LENGTHS, name="", truncate_text=True)
    blind = Encoded([Segment((30, 31, 32, 33)), *row(1).target], prefix=row(1).prefix)
    cut = fit(blind, LENGTHS, name="", truncate_text=True)
    assert cut.target == [Segment((30, 31)), *row(1).target]


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_join(array):
    prefix, request, target = jax.tree.map(array, assemble([row(2), row(4)], LENGTHS, 9))
    whole = join(prefix, target)
    assert isinstance(whole.tokens, np.ndarray if array is np.asarray else jax.Array)
    np.testing.assert_array_equal(whole.tokens[0], [9, 9, 100, 10, 11, 101, 101, 20, 50, 51, 9, 9])
    np.testing.assert_array_equal(whole.positions[0], [0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 0, 0])
    np.testing.assert_array_equal(whole.segments[0], [0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0])
    np.testing.assert_array_equal(whole.slots["media"][0], [-1, -1, 0] + [-1] * 9)
    np.testing.assert_array_equal(whole.slots["response"][0], [-1] * 5 + [0, 1] + [-1] * 5)
    np.testing.assert_array_equal(whole.weights[0], [0] * 7 + [2, 2] + [0] * 3)
    assert sorted(join(prefix, request).slots) == ["media", "request"]
    assert join(prefix, request).tokens.shape == (2, 7)
