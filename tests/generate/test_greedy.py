"""Greedy generation: neither cache nor neighbours nor pads change a row."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mmjax.data.sequence import Lengths
from mmjax.generate.greedy import GreedySettings, make_greedy
from mmjax.nn.param import merge, specs
from mmjax.systems.lmeye import LMEye

pytestmark = pytest.mark.usefixtures("quick_compile")

CONFIG = tiny.lmeye_config()
SYSTEM = LMEye(CONFIG)
PARAMS = tiny.random_params(specs(SYSTEM), seed=1)
ROWS, NEW = 4, 6
NEVER = GreedySettings(max_new_tokens=NEW, eos_tokens=(), pad_token=tiny.PAD)


def prompts(**lengths):
    lengths = Lengths(**dict(target=6, prefix=8, request=2) | lengths)
    return tiny.lmeye_batch(CONFIG, ROWS, lengths=lengths, answers=False, seed=5)


@pytest.fixture(scope="module")
def without_cache() -> np.ndarray:
    """Everything read again for every token."""
    batch = prompts(target=6 + NEW)

    @jax.jit
    def next_tokens(target):
        model = merge(SYSTEM, PARAMS)
        logits = model.logits(model.hidden(dataclasses.replace(batch, target=target)).states)
        last = jnp.sum(target.segments, axis=1) - 1
        return jnp.argmax(jnp.take_along_axis(logits, last[:, None, None], axis=1)[:, 0], axis=-1)

    target, made = batch.target, []
    for _ in range(NEW):
        token, row, end = np.asarray(next_tokens(target)), np.arange(ROWS), target.segments.sum(1)
        fields = {
            name: getattr(target, name).copy() for name in ("tokens", "positions", "segments")
        }
        fields["positions"][row, end] = fields["positions"][row, end - 1] + 1
        fields["tokens"][row, end], fields["segments"][row, end] = token, 1
        target = dataclasses.replace(target, **fields)
        made.append(token)
    return np.stack(made, axis=1)


def test_the_cache_changes_nothing(without_cache):
    generate = make_greedy(SYSTEM, NEVER)
    ids = generate(PARAMS, prompts())
    assert ids.dtype == jnp.int32
    np.testing.assert_array_equal(ids, without_cache)
    assert len(np.unique(without_cache)) > 3
    generate(PARAMS, prompts())
    assert generate._cache_size() == 1


def test_alone_is_batched(without_cache):
    generate = make_greedy(SYSTEM, NEVER)
    wide = prompts(target=9, prefix=11, request=3)
    for row in range(ROWS):
        alone = generate(PARAMS, jax.tree.map(lambda x, row=row: x[row : row + 1], wide))
        np.testing.assert_array_equal(alone[0], without_cache[row])


def test_rows_end_at_any_of_their_ends(without_cache):
    first_end, other_end = int(without_cache[0, 2]), int(without_cache[1, 0])
    settings = GreedySettings(max_new_tokens=NEW, eos_tokens=(first_end, other_end), pad_token=1)
    wanted = without_cache.copy()
    for row in wanted:
        ends = np.flatnonzero(np.isin(row, settings.eos_tokens))
        row[ends[0] + 1 if len(ends) else NEW :] = 1
    assert (wanted[0, 3:] == 1).all()
    ids = make_greedy(SYSTEM, settings)(PARAMS, prompts())
    np.testing.assert_array_equal(ids, wanted)


def test_a_start_token_may_lead_the_ids(without_cache):
    """As transformers up to 4.37 returns them when it starts from embeddings."""
    ids = make_greedy(SYSTEM, dataclasses.replace(NEVER, bos_seed=9))(PARAMS, prompts())
    np.testing.assert_array_equal(ids, np.insert(without_cache, 0, 9, axis=1))


def test_settings_are_checked():
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1, got 0"):
        GreedySettings(max_new_tokens=0, eos_tokens=(), pad_token=0)
