"""Dropout whose masks belong to rows: the same for any batch size, order, mesh or accumulation."""

import jax
import jax.numpy as jnp


def row_keys(key: jax.Array, row_id: jax.Array) -> jax.Array:
    """A key for each row: it depends on the row's id, not on its place. key, i64[b] -> keys [b]."""
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(row_id)


def dropout(x: jax.Array, rate: float, keys: jax.Array) -> jax.Array:
    """Drops entries of x [b ...], or [b*f ...] where each row has f entries one after the other;
    keys [b], see `row_keys`.

    Raises:
      ValueError: x has no whole number of entries for each row.
    """
    times, rest = divmod(x.shape[0], keys.shape[0])
    if rest or not times:
        raise ValueError(
            f"dropout over {keys.shape[0]} rows cannot tell which entries of {x.shape} are whose"
        )
    if times > 1:
        each = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
        keys = jax.vmap(each, in_axes=(0, None))(keys, jnp.arange(times)).reshape(-1)
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)
