"""One token after the other: the best (greedy), or drawn (multinomial sampling)."""

import dataclasses

import jax
import jax.numpy as jnp

from mmjax.data.batch import Batch
from mmjax.generate.config import GenerationConfig
from mmjax.generate.draws import Draws
from mmjax.generate.logits import ends_answer, process, warp
from mmjax.nn.cache import Cache
from mmjax.systems.system import System


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampling:
    """Where generation stands. ``n`` rows: those of the batch, each num_return_sequences times.

    Attributes:
      num_new: i32[], tokens made so far.
      text: i32[n s], what the rules see: the start, then the new tokens; -1 = nothing.
      tokens: i32[n], the last ones.
      is_over: bool[n].
      keys: of each row's random numbers.
      cache: the system's.
      draws: each row's settings in place of the config's, or None.
    """

    num_new: jax.Array
    text: jax.Array
    tokens: jax.Array
    is_over: jax.Array
    keys: jax.Array
    cache: Cache
    draws: Draws | None = None


def begin(
    system: System,
    batch: Batch,
    text: jax.Array,
    seeds: jax.Array,
    config: GenerationConfig,
    draws: Draws | None = None,
) -> Sampling:
    """Reads the prompts and chooses the first tokens; see `Generator` for the arguments."""
    logits, cache = system.prefill(batch, config.max_new_tokens)
    keys = jax.vmap(jax.random.key)(seeds)
    if (copies := config.num_return_sequences) > 1:
        b = logits.shape[0]
        rows = jnp.repeat(jnp.arange(b), copies)
        logits, text, cache = logits[rows], text[rows], cache.copies(copies)
        keys = jax.vmap(jax.random.fold_in)(keys[rows], jnp.tile(jnp.arange(copies), b))
    new = jnp.full((text.shape[0], config.max_new_tokens), -1, jnp.int32)
    text = jnp.concatenate([text, new], axis=1)
    is_over = jnp.zeros(text.shape[0], bool)
    start = Sampling(jnp.int32(0), text, text[:, 0], is_over, keys, cache, draws)
    return _choose(start, logits, cache, config)


def advance(system: System, state: Sampling, config: GenerationConfig) -> Sampling:
    """One more token for every row."""
    logits, cache = system.decode(state.tokens, state.cache)
    return _choose(state, logits, cache, config)


def goes_on(state: Sampling, config: GenerationConfig) -> jax.Array:
    return (state.num_new < config.max_new_tokens) & ~state.is_over.all()


def _choose(state: Sampling, logits: jax.Array, cache: Cache, config: GenerationConfig) -> Sampling:
    end = state.text.shape[1] - config.max_new_tokens + state.num_new
    if state.draws is not None:
        logits = state.draws.penalize(logits, state.text)
    scores = process(logits, state.text, end, state.num_new, config)
    keys = jax.vmap(jax.random.fold_in, (0, None))(state.keys, state.num_new)
    if state.draws is not None:
        tokens = state.draws.choose(scores, keys)
    elif config.do_sample:
        tokens = jax.vmap(jax.random.categorical)(keys, warp(scores, config))
    else:
        tokens = jnp.argmax(scores, axis=1)
    tokens = jnp.where(state.is_over, config.pad_token, tokens).astype(jnp.int32)
    text = state.text.at[:, end].set(jnp.where(state.is_over, -1, tokens))
    return dataclasses.replace(
        state,
        num_new=state.num_new + 1,
        text=text,
        tokens=tokens,
        is_over=state.is_over | ends_answer(text, end, state.num_new, config),
        cache=cache,
    )


def finish(state: Sampling, config: GenerationConfig) -> tuple[jax.Array, None]:
    """(texts i32[n s], no scores)."""
    return state.text, None
