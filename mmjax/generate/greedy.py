"""Greedy decoding inside jit, with a static cache."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mmjax.data.batch import Batch
from mmjax.nn.param import Params, merge
from mmjax.systems.system import System


@dataclasses.dataclass(frozen=True)
class GreedySettings:
    """When to stop, and how rows that have stopped are filled.

    Attributes:
      max_new_tokens: how many tokens are made at most.
      eos_tokens: any of these ends a row.
      pad_token: what follows the end of a row.
      bos_seed: transformers up to 4.37 start generation from embeddings with a bos token that the
        prompt does not see, but that stays at the head of the ids returned and counts towards their
        length. Its id reproduces that; None (the default) returns new tokens only.
    """

    max_new_tokens: int
    eos_tokens: tuple[int, ...]
    pad_token: int
    bos_seed: int | None = None

    def __post_init__(self):
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")


def make_greedy(system: System, settings: GreedySettings) -> Callable[[Params, Batch], jax.Array]:
    """``generate(params, batch) -> i32[b max_new_tokens]`` (one more with a bos seed), compiled
    once per shape.

    It stops when every row has ended; what a row holds after its eos is padding. A row's tokens do
    not depend on the other rows.
    """

    @jax.jit
    def generate(params: Params, batch: Batch) -> jax.Array:
        model = merge(system, params)
        logits, cache = model.prefill(batch, settings.max_new_tokens)
        first = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        tokens = jnp.full((first.shape[0], settings.max_new_tokens), settings.pad_token, jnp.int32)

        def ended(token):
            return jnp.isin(token, jnp.array(settings.eos_tokens, jnp.int32))

        def more(state):
            step, _, _, done, _ = state
            return (step < settings.max_new_tokens) & ~done.all()

        def advance(state):
            step, token, tokens, done, cache = state
            logits, cache = model.decode(token, cache)
            token = jnp.where(
                done, settings.pad_token, jnp.argmax(logits, axis=-1).astype(jnp.int32)
            )
            return step + 1, token, tokens.at[:, step].set(token), done | ended(token), cache

        state = (jnp.int32(1), first, tokens.at[:, 0].set(first), ended(first), cache)
        tokens = jax.lax.while_loop(more, advance, state)[2]
        if settings.bos_seed is None:
            return tokens
        seed = jnp.full((tokens.shape[0], 1), settings.bos_seed, jnp.int32)
        return jnp.concatenate([seed, tokens], axis=1)

    return generate
