"""Affine layers and embeddings."""

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.nn.param import Initializer, normal, param, uniform, zeros
from mmjax.parallel.sharding import constrain_table


class Dense(nnx.Module):
    """``x @ kernel + bias`` over the last axis, in the dtype of ``x``.

    Leading axes are flattened first: on CPU a 2-D product is a third faster than a batched one,
      elsewhere equal.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        axes: tuple[str | None, str | None],
        bias: bool = False,
        init: Initializer | None = None,
        bias_init: Initializer = zeros,
    ):
        self.kernel = param((in_dim, out_dim), axes, init or normal())
        self.bias = param((out_dim,), axes[1:], bias_init) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:  # [... in] -> [... out]
        kernel = self.kernel[...].astype(x.dtype)
        y = x.reshape(-1, x.shape[-1]) @ kernel
        if self.bias is not None:
            y = y + self.bias[...].astype(x.dtype)
        return y.reshape(*x.shape[:-1], kernel.shape[1])


class Linear(Dense):
    """A `Dense` with bias that starts as `torch.nn.Linear` does, times ``gain``: what papers'
    connectors are."""

    def __init__(
        self, in_dim: int, out_dim: int, *, axes: tuple[str | None, str | None], gain: float = 1.0
    ):
        init = uniform(gain * in_dim**-0.5)
        super().__init__(in_dim, out_dim, axes=axes, bias=True, init=init, bias_init=init)


class Embedding(nnx.Module):
    """A token table, with rows that a system adds after the tokenizer's own kept as a leaf of their
    own.

    ids below ``vocab_size`` read ``table``; the ``added_rows`` ids from there on read ``added``.
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        *,
        added_rows: int = 0,
        added_init: Initializer = zeros,
        axis: str = "embed",
        init: Initializer | None = None,
    ):
        self.table = param((vocab_size, embed_dim), ("vocab", axis), init or normal())
        added = param((added_rows, embed_dim), (None, axis), added_init)
        self.added = added if added_rows else None

    def __call__(self, tokens: jax.Array, dtype: jnp.dtype) -> jax.Array:  # i32[b t] -> [b t d]
        table = constrain_table(self.table[...])
        rows = jnp.take(table, jnp.minimum(tokens, table.shape[0] - 1), axis=0)
        if self.added is not None:
            added = self.added[...]
            index = jnp.clip(tokens - table.shape[0], 0, added.shape[0] - 1)
            rows = jnp.where(
                (tokens >= table.shape[0])[..., None], jnp.take(added, index, axis=0), rows
            )
        return rows.astype(dtype)

    def attend(self, hidden: jax.Array) -> jax.Array:  # [b t d] -> [b t v]
        """Logits against the table: an output layer that shares the input embedding."""
        flat = hidden.reshape(-1, hidden.shape[-1])
        return (flat @ self.table[...].astype(hidden.dtype).T).reshape(*hidden.shape[:-1], -1)
