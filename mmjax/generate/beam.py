"""Beam search and beam sampling: the texts with the best score, ``k`` of them at a time.

                    score so far + log p of every token          of the best m = 2 k candidates
    k beams  --->  [ k x v candidates ]  ---> best m ---+--->  those that go on: k new beams
                   (or m drawn from them)               '--->  those that end, among the first k:
                                                               into the k finished ones, if better

A prompt is read once, and its beams share its cache; each step reorders what they generated.
Letters: ``b`` prompts, ``k`` beams, ``m`` candidates, ``s`` tokens of text, ``v`` vocabulary.
"""

import dataclasses

import jax
import jax.numpy as jnp

from mmjax.data.batch import Batch
from mmjax.generate.config import GenerationConfig
from mmjax.generate.logits import ends_answer, process, warp
from mmjax.nn.cache import Cache
from mmjax.systems.system import System

_LOW = -1e9  # a score that is out of the question, yet finite: sums and comparisons stay numbers


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Beams:
    """Where the search stands. All texts are i32[b k s] as in `Sampling`.

    Attributes:
      num_new: i32[], tokens made so far.
      text, score: the running beams, best first, and the sums f32[b k] of their log probabilities.
      ended_text, ended_score: the finished ones, best first, with the length penalty in the score;
        ``is_ended`` bool[b k] says which there are.
      is_open: bool[b], whether a running beam could still replace a finished one.
      keys: of each row's random numbers.
      cache: the system's, for b x k rows.
    """

    num_new: jax.Array
    text: jax.Array
    score: jax.Array
    ended_text: jax.Array
    ended_score: jax.Array
    is_ended: jax.Array
    is_open: jax.Array
    keys: jax.Array
    cache: Cache


def begin(
    system: System,
    batch: Batch,
    text: jax.Array,
    seeds: jax.Array,
    config: GenerationConfig,
    draws: None = None,
) -> Beams:
    """Reads the prompts and makes the first tokens; see `Generator` for the arguments."""
    del draws  # beams have none
    k = config.num_beams
    logits, cache = system.prefill(batch, config.max_new_tokens)
    b = logits.shape[0]
    new = jnp.full((b, config.max_new_tokens), -1, jnp.int32)
    text = jnp.concatenate([text, new], axis=1)
    text = jnp.broadcast_to(text[:, None], (b, k, text.shape[1]))
    low = jnp.full((b, k), _LOW)
    start = Beams(
        num_new=jnp.int32(0),
        text=text,
        score=low.at[:, 0].set(0),  # they are all the same yet: one of them counts
        ended_text=text,
        ended_score=low,
        is_ended=jnp.zeros((b, k), bool),
        is_open=jnp.ones(b, bool),
        keys=jax.vmap(jax.random.key)(seeds),
        cache=cache.copies(k),
    )
    logits = jnp.broadcast_to(logits[:, None], (b, k, logits.shape[1]))
    return _choose(start, logits, start.cache, config)


def advance(system: System, state: Beams, config: GenerationConfig) -> Beams:
    """One more token for every running beam."""
    b, k, _ = state.text.shape
    last = _end(state, config) - 1
    tokens = jax.lax.dynamic_index_in_dim(state.text, last, axis=2, keepdims=False)
    logits, cache = system.decode(tokens.reshape(b * k), state.cache)
    return _choose(state, logits.reshape(b, k, -1), cache, config)


def goes_on(state: Beams, config: GenerationConfig) -> jax.Array:
    is_open = state.is_open
    if config.early_stopping is True:
        is_open &= ~state.is_ended.all(axis=1)
    return (state.num_new < config.max_new_tokens) & is_open.any()


def finish(state: Beams, config: GenerationConfig) -> tuple[jax.Array, jax.Array]:
    """(texts i32[b r s] of the best, their scores f32[b r])."""
    text, score = state.ended_text, state.ended_score
    if config.is_legacy:  # beams that ran to the end of a row whose search was not over
        length = _length(state, state.num_new, config, has_end=False)
        late = state.score / length**config.length_penalty
        late = jnp.where(state.is_open[:, None], late, _LOW)
        score, order = jax.lax.top_k(jnp.concatenate([score, late], axis=1), config.num_beams)
        text = _rows(jnp.concatenate([text, state.text], axis=1), order)
    return text[:, : config.num_return_sequences], score[:, : config.num_return_sequences]


def _choose(state: Beams, logits: jax.Array, cache: Cache, config: GenerationConfig) -> Beams:
    """Goes on with the best candidates; logits f32[b k v]."""
    b, k, _ = logits.shape
    end, num_new = _end(state, config), state.num_new + 1
    value, beam, token = _candidates(state, logits, end, config)
    text = _rows(state.text, beam).at[:, :, end].set(token)  # [b m s]
    ends = ends_answer(text, end, state.num_new, config)
    is_last = num_new == config.max_new_tokens
    stops = ends if config.is_legacy else ends | is_last

    _, order = jax.lax.top_k(value + _LOW * stops, k)
    score, kept = _rows(value + _LOW * stops, order), _rows(text, order)
    rows = (jnp.arange(b)[:, None] * k + _rows(beam, order)).reshape(b * k)

    takes = state.is_open[:, None]
    if config.early_stopping is True:
        takes &= ~state.is_ended.all(axis=1, keepdims=True)
    takes &= stops & (jnp.arange(value.shape[1]) < k)
    length = _length(state, num_new, config, has_end=True)
    final = value / length**config.length_penalty
    both = jnp.concatenate([state.ended_score, jnp.where(takes, final, _LOW)], axis=1)
    ended_score, order = jax.lax.top_k(both, k)
    ended_text = _rows(jnp.concatenate([state.ended_text, text], axis=1), order)
    is_ended = _rows(jnp.concatenate([state.is_ended, takes], axis=1), order)

    best = value.max(axis=1) if config.is_legacy else score[:, 0]
    if config.early_stopping == "never" and config.length_penalty > 0:
        length = _length(state, config.max_new_tokens, config, has_end=False)
    else:
        length = _length(state, num_new, config, has_end=False)
    could_improve = best / length**config.length_penalty > ended_score.min(axis=1)
    if config.is_legacy and config.early_stopping is True:
        could_improve = jnp.zeros(b, bool)
    return Beams(
        num_new=num_new,
        text=kept,
        score=score,
        ended_text=ended_text,
        ended_score=ended_score,
        is_ended=is_ended,
        is_open=state.is_open & (could_improve | ~is_ended.all(axis=1)),
        keys=state.keys,
        cache=cache.reorder(rows),
    )


def _candidates(
    state: Beams, logits: jax.Array, end: jax.Array, config: GenerationConfig
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(scores f32[b m], beams i32[b m] that they continue, tokens i32[b m]); best first, or as
    drawn."""
    b, k, v = logits.shape
    flat, text, score = (x.reshape(b * k, -1) for x in (logits, state.text, state.score))
    scores = sums(flat, text, score, end, state.num_new, config).reshape(b, k * v)
    m = min(max(2, 1 + config.num_ends) * k, k * v)
    if config.do_sample:  # the largest of scores + Gumbel noise are a draw without replacement
        keys = jax.vmap(jax.random.fold_in, (0, None))(state.keys, state.num_new)
        noise = jax.vmap(lambda key: jax.random.gumbel(key, (k * v,)))(keys)
        _, chosen = jax.lax.top_k(scores + noise, m)
        value = _rows(scores, chosen)
        if config.is_legacy:
            value, order = jax.lax.top_k(value, m)
            chosen = _rows(chosen, order)
    else:
        value, chosen = jax.lax.top_k(scores, m)
    return value, chosen // v, (chosen % v).astype(jnp.int32)


def sums(
    logits: jax.Array,
    text: jax.Array,
    score: jax.Array,
    end: jax.Array,
    num_new: jax.Array,
    config: GenerationConfig,
) -> jax.Array:
    """The score of every text with one more token: logits f32[n v], score f32[n 1] -> f32[n v].

    What cannot be chosen is -inf.
    """
    scores = process(jax.nn.log_softmax(logits), text, end, num_new, config)
    if not config.do_sample:
        return scores + score
    if config.is_legacy:
        return warp(scores + score, config)
    return warp(scores, config) + score


def _end(state: Beams, config: GenerationConfig) -> jax.Array:
    """The column of the next token."""
    return state.text.shape[2] - config.max_new_tokens + state.num_new


def _length(state: Beams, num_new: jax.Array, config: GenerationConfig, *, has_end: bool):
    """What a score is divided by, before the power: the number of new tokens.

    By the older rules what the text starts with counts, and the token that ends it does not.
    """
    if not config.is_legacy:
        return num_new
    return _end(state, config) - state.num_new + num_new - has_end


def _rows(x: jax.Array, index: jax.Array) -> jax.Array:
    """x [b k ...], index i32[b m] -> [b m ...]."""
    return jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), axis=1)
