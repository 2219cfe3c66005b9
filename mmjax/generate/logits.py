"""What decoding does to scores before a token is chosen, as transformers does it.

    scores ---> repetition penalty ---> no repeated n-grams ---> no early end ---> [draw only]
                                                             temperature ---> top-k ---> top-p

Letters: ``n`` rows, ``s`` tokens of text, ``v`` vocabulary. A text i32[n s] is what the rules see
of a row: -1 stands for nothing (padding, or not yet said). All functions: f32[n v] -> f32[n v];
what is excluded becomes -inf.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mmjax.generate.config import GenerationConfig


def process(
    scores: jax.Array, text: jax.Array, end: jax.Array, num_new: jax.Array, config: GenerationConfig
) -> jax.Array:
    """The rules that hold whether tokens are drawn or not.

    Args:
      scores: f32[n v], logits or log probabilities.
      text: i32[n s].
      end: i32[], the column of the token that is to be chosen.
      num_new: i32[], how many tokens were made before it.
      config: the settings.
    """
    if config.repetition_penalty != 1:
        scores = penalize_repetition(scores, text, config.repetition_penalty)
    if config.no_repeat_ngram_size:
        scores = ban_repeated_ngrams(scores, text, end, config.no_repeat_ngram_size)
    if config.min_new_tokens and config.eos_tokens:
        banned = ban(scores, config.eos_tokens)
        scores = jnp.where(num_new < config.min_new_tokens, banned, scores)
    return scores


def ends_answer(
    text: jax.Array, end: jax.Array, num_new: jax.Array, config: GenerationConfig
) -> jax.Array:
    """Whether the token just written ends an answer: text i32[... s], its column ``end``, how many
    were made before it -> bool[...]."""
    last = jax.lax.dynamic_index_in_dim(text, end, axis=-1, keepdims=False)
    ends = jnp.isin(last, jnp.array(config.eos_tokens, jnp.int32))
    for sequence in config.stop_sequences:
        n = len(sequence)
        tail = jax.lax.dynamic_slice_in_dim(text, end - n + 1, n, axis=-1)
        is_said = (tail == jnp.array(sequence, jnp.int32)).all(axis=-1)
        ends |= is_said & (num_new + 1 >= max(n, config.min_new_tokens))
    return ends


def warp(scores: jax.Array, config: GenerationConfig) -> jax.Array:
    """What is drawn from. A beam keeps a token to go on with, whatever may end it."""
    keep = 1
    if config.num_beams > 1:
        keep = 2 if config.is_legacy else max(2, config.num_ends + 1)
    if config.temperature != 1:
        scores = scores / config.temperature
    if config.top_k:
        scores = keep_top_k(scores, max(config.top_k, keep))
    if config.top_p < 1:
        scores = keep_top_p(scores, config.top_p, keep)
    return scores


def penalize_repetition(scores: jax.Array, text: jax.Array, penalty: float) -> jax.Array:
    seen = _tokens_to_mask(text, text >= 0, scores.shape[1])
    return jnp.where(seen, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)


def ban_repeated_ngrams(scores: jax.Array, text: jax.Array, end: jax.Array, size: int) -> jax.Array:
    """Excludes every token that would end an n-gram of ``size`` tokens that the text has."""
    n, s = text.shape
    if s < size:
        return scores
    padded = jnp.pad(text, ((0, 0), (size - 1, 0)), constant_values=-1)
    recent = jax.lax.dynamic_slice(padded, (0, end), (n, size - 1))  # the last before ``end``
    last = text[:, size - 1 :]
    repeated = last >= 0
    for i in range(size - 1):
        token = text[:, i : s - size + 1 + i]
        repeated &= (token == recent[:, i : i + 1]) & (token >= 0)
    return jnp.where(_tokens_to_mask(last, repeated, scores.shape[1]), -jnp.inf, scores)


def ban(scores: jax.Array, tokens: Sequence[int]) -> jax.Array:
    return jnp.where(jnp.isin(jnp.arange(scores.shape[1]), jnp.array(tokens)), -jnp.inf, scores)


def keep_top_k(scores: jax.Array, k: int) -> jax.Array:
    """The k best; those that tie with the last of them stay, too."""
    worst = jax.lax.top_k(scores, min(k, scores.shape[1]))[0][:, -1:]
    return jnp.where(scores < worst, -jnp.inf, scores)


def keep_top_p(scores: jax.Array, p: float, keep: int = 1) -> jax.Array:
    """The fewest that together have the probability ``p``, and at least ``keep``."""
    n, v = scores.shape
    order = jnp.argsort(scores, axis=1)  # the worst first
    ranked = jnp.take_along_axis(scores, order, axis=1)
    drop = jnp.cumsum(jax.nn.softmax(ranked, axis=1), axis=1) <= 1 - p
    drop &= jnp.arange(v) < v - keep
    drop = jnp.zeros((n, v), bool).at[jnp.arange(n)[:, None], order].set(drop)
    return jnp.where(drop, -jnp.inf, scores)


def _tokens_to_mask(tokens: jax.Array, which: jax.Array, v: int) -> jax.Array:
    """bool[n v], true for those of i32[n s] that are in ``which`` bool[n s] and in the
    vocabulary."""
    n = tokens.shape[0]
    marked = jnp.where(which & (tokens < v), tokens, v)
    return jnp.zeros((n, v + 1), bool).at[jnp.arange(n)[:, None], marked].set(True)[:, :v]
