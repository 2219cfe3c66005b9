"""A kept prefix and a cache change nothing: a text read in pieces is the text read at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mmjax.data.batch import Batch, Sequence
from mmjax.data.sequence import Lengths, assemble, join
from mmjax.data.templates import Encoded, Segment
from mmjax.nn.cache import Cache, KeyValues
from mmjax.nn.param import merge, specs
from mmjax.systems.foundation import LanguageModel, LanguageModelConfig

pytestmark = pytest.mark.usefixtures("quick_compile")

PREFIXES, TARGETS, NEW = (2, 5, 4), (3, 1, 4), 3
RNG = np.random.default_rng(0)
TEXTS = [RNG.integers(3, 24, p + t + NEW) for p, t in zip(PREFIXES, TARGETS, strict=True)]


def sequences() -> tuple[Sequence, Sequence, Sequence]:
    """(left-padded prefixes, right-padded targets, whole texts with what is generated)."""
    ids = lambda array: [Segment(tuple(int(i) for i in array))]  # noqa: E731
    pieces, wholes = [], []
    for text, p in zip(TEXTS, PREFIXES, strict=True):
        pieces.append(Encoded(ids(text[p:-NEW]), ids(text[:p])))
        wholes.append(Encoded(ids(text)))
    prefix, _, target = assemble(pieces, Lengths(target=5, prefix=6), tiny.PAD)
    return prefix, target, assemble(wholes, Lengths(target=12), tiny.PAD)[2]


@pytest.fixture(scope="module", params=[(), (1,)], ids=["one stack", "two stacks"])
def model(request):
    config = tiny.llama_config(splits=request.param)
    system = LanguageModel(LanguageModelConfig(config))
    return merge(system, tiny.random_params(specs(system)))


@pytest.fixture(scope="module")
def expected(model):
    """Logits of every position of the whole texts, read at once, nothing to their left."""
    whole = sequences()[2]
    return model.logits(model.hidden(Batch(np.arange(3), whole)).states)


def test_states_after_a_kept_prefix(model, expected):
    prefix, target, _ = sequences()
    output = model.hidden(Batch(np.arange(3), target, prefix=prefix), keep=True)
    logits = model.logits(output.states)
    for row, (p, t) in enumerate(zip(PREFIXES, TARGETS, strict=True)):
        np.testing.assert_allclose(logits[row, :t], expected[row, p : p + t], atol=1e-5)
    joined = model.hidden(Batch(np.arange(3), join(prefix, target)))
    real = target.segments > 0
    np.testing.assert_allclose(joined.states[:, 6:][real], output.states[real], atol=1e-5)
    before, after = output.past
    assert before.keys.shape == (2, 3, 6, 2, 4)
    assert after.keys.shape == (2, 3, 5, 2, 4)


@pytest.mark.parametrize("with_prefix", [True, False])
def test_prefill_and_decode(model, expected, with_prefix):
    prefix, target, _ = sequences()
    if not with_prefix:  # the same texts, all of them right-padded
        rows = [Encoded([Segment(tuple(int(i) for i in text[:-NEW]))]) for text in TEXTS]
        prefix, _, target = assemble(rows, Lengths(target=8), tiny.PAD)
    logits, cache = model.prefill(Batch(np.arange(3), target, prefix=prefix), NEW)
    decode = jax.jit(model.decode)
    room = cache.keys.shape[3]
    for step in range(NEW + 1):
        for row, (p, t) in enumerate(zip(PREFIXES, TARGETS, strict=True)):
            np.testing.assert_allclose(logits[row], expected[row, p + t + step - 1], atol=1e-5)
        if step < NEW:
            logits, cache = decode(np.array([text[step - NEW] for text in TEXTS]), cache)
    assert decode._cache_size() == 1
    assert cache.keys.shape[3] == room == int(cache.count)


def test_copies_share_a_prompt_and_go_on_as_what_they_continue(model):
    """Two copies of each of three prompts; after a token each, copies of a prompt change places."""
    prefix, target, _ = sequences()
    _, cache = model.prefill(Batch(np.arange(3), target, prefix=prefix), 2)
    first, second = np.array([5, 7, 9, 11, 13, 15]), np.array([4, 6, 8, 10, 12, 14])
    order = np.array([1, 0, 2, 2, 5, 4])
    copied = cache.copies(2)
    assert copied.prompt.keys is cache.prompt.keys
    logits, after = model.decode(first, copied)
    last, _ = model.decode(second, after.reorder(order))
    for row in range(6):
        tokens = np.full(3, first[row])
        wanted, _ = model.decode(tokens, cache)
        np.testing.assert_allclose(logits[row], wanted[row // 2], atol=1e-5)
        _, before = model.decode(np.full(3, first[order[row]]), cache)
        wanted, _ = model.decode(np.full(3, second[row]), before)
        np.testing.assert_allclose(last[row], wanted[row // 2], atol=1e-5)


def test_the_cache_starts_with_its_parts_and_free_places():
    part = lambda s, fill: KeyValues(  # noqa: E731
        jnp.full((2, 3, s, 1, 4), fill), jnp.full((2, 3, s, 1, 4), -fill), jnp.full((3, s), 1)
    )
    cache = Cache.start([part(2, 1.0), part(3, 2.0)], position=jnp.array([4, 5, 5]), room=4)
    assert int(cache.count) == 0
    assert cache.prompt.segments.tolist() == [[1] * 5] * 3
    np.testing.assert_array_equal(cache.prompt.keys[1, 2, 0, :, 3], [1, 1, 2, 2, 2])
    np.testing.assert_array_equal(cache.prompt.values, -cache.prompt.keys)
    assert cache.keys.shape == cache.values.shape == (2, 3, 1, 4, 4)
