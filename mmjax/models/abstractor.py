"""mPLUG-Owl's visual abstractor (arXiv 2304.14178): a picture becomes a fixed number of vectors of
the language model's width (mPLUG-Owl reference, section 1.2).

    queries [q d] --.   every layer    x  = norm(x)                  the residual starts after it
    states  [s d] --+-->               x += attention(x, [x | norm(states)])
                                       x += mlp(norm(x))
                    --> projection --> [q e], and a learned vector that ends them --> [q+1 e]

There is no norm at the end, and nothing says which query is which but the queries themselves. The
original starts its queries at zero, all alike for ever: a start from scratch would be degenerate,
and how the authors started is not public. Ours start at 0.02, as everything else does.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.kernels.attention import attention
from mmjax.nn.attention import Attention
from mmjax.nn.dense import Dense
from mmjax.nn.dropout import dropout
from mmjax.nn.norm import LayerNorm
from mmjax.nn.param import normal, param
from mmjax.nn.stack import run, stack
from mmjax.parallel.sharding import constrain_rows

_AXES = ("query_embed", "query_mlp", "query_heads")


@dataclasses.dataclass(frozen=True)
class AbstractorConfig:
    """Sizes.

    Attributes:
      embed_dim: of the queries and of what they look at.
      out_dim: the language model's width.
      num_queries: vectors of a picture (q), besides the one that ends them.
      norm_eps: of the norm inside the feed-forward layer alone; all others have 1e-5.
      dropout: of the attention, in training. The original's is on even where nothing in here
        trains.
    """

    embed_dim: int
    out_dim: int
    mlp_dim: int
    num_queries: int = 64
    num_layers: int = 6
    num_heads: int = 16
    norm_eps: float = 1e-6
    dropout: float = 0.0

    @classmethod
    def tiny(cls, **changes) -> "AbstractorConfig":
        sizes = dict(embed_dim=128, out_dim=128, mlp_dim=256, num_queries=8, num_layers=2)
        return cls(**sizes | dict(num_heads=4) | changes)

    @classmethod
    def owl_7b(cls, **changes) -> "AbstractorConfig":
        """From ViT-L to LLaMA-7B: 81 M. (The code's default mlp_dim is 4096; files have 2816.)"""
        return cls(**dict(embed_dim=1024, out_dim=4096, mlp_dim=2816, dropout=0.1) | changes)


class NormedMLP(nnx.Module):
    """``down(norm(silu(gate(x)) * up(x)))``, with biases."""

    def __init__(self, config: AbstractorConfig):
        embed, mlp, _ = _AXES
        inner = dict(axes=(embed, mlp), bias=True)
        self.gate = Dense(config.embed_dim, config.mlp_dim, **inner)
        self.up = Dense(config.embed_dim, config.mlp_dim, **inner)
        self.norm = LayerNorm(config.mlp_dim, axis=mlp, eps=config.norm_eps)
        self.down = Dense(config.mlp_dim, config.embed_dim, axes=(mlp, embed), bias=True)

    def __call__(self, x: jax.Array) -> jax.Array:  # [b q d] -> [b q d]
        return self.down(self.norm(jax.nn.silu(self.gate(x)) * self.up(x)))


class Block(nnx.Module):
    def __init__(self, config: AbstractorConfig):
        embed, _, heads = _AXES
        d = config.embed_dim
        self.attention_norm = LayerNorm(d, axis=embed)
        self.media_norm = LayerNorm(d, axis=embed)
        self.attention = Attention(
            d,
            num_heads=config.num_heads,
            head_dim=d // config.num_heads,
            bias=True,
            axes=(embed, heads, heads),
        )
        self.mlp_norm = LayerNorm(d, axis=embed)
        self.mlp = NormedMLP(config)

    def __call__(self, x: jax.Array, states: jax.Array, attend) -> jax.Array:
        """x [b q d], states [b s d] -> [b q d]."""
        x = self.attention_norm(x)
        seen = jnp.concatenate([x, self.media_norm(states)], axis=1)
        x = x + self.attention(x, attend, seen=seen)[0]
        return constrain_rows(x + self.mlp(self.mlp_norm(x)))


class Abstractor(nnx.Module):
    def __init__(self, config: AbstractorConfig):
        d, out = config.embed_dim, config.out_dim
        self.queries = param((config.num_queries, d), (None, "query_embed"), normal())
        self.layers = stack(Block(config), config.num_layers)
        self.projection = Dense(d, out, axes=("projection", "embed"), bias=True)
        self.end = param((out,), ("embed",), normal())
        self.config = config

    def __call__(
        self,
        states: jax.Array,
        segments: jax.Array | None = None,
        *,
        dropout_keys: jax.Array | None = None,
        taps: tuple[int, ...] = (),
    ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """Looks at pictures.

        Args:
          states: [b s d] of the tower.
          segments: i32[b s], 0 where there is nothing to see; None: it sees all.
          dropout_keys: of the rows that the pictures are in (`mmjax.nn.dropout`), in training.
          taps: layers after which the queries are wanted.

        Returns:
          (vectors [b q+1 e], queries before the projection [b q d], tapped [taps b q d] or None).
        """
        own = self.queries[...].astype(states.dtype)
        x = jnp.broadcast_to(own, (states.shape[0], *own.shape))
        ones, seen = jnp.ones(x.shape[:2], jnp.int32), None
        if segments is not None:
            seen = jnp.concatenate([ones, (segments > 0).astype(jnp.int32)], axis=1)
        drops = dropout_keys is not None and self.config.dropout > 0

        def layer(block, x, index, _):
            def attend(query, key, value):
                if drops:
                    keys = jax.vmap(lambda key: jax.random.fold_in(key, index))(dropout_keys)
                    return _dropped(query, key, value, seen, self.config.dropout, keys), None
                places = {} if seen is None else dict(query_segments=ones, key_segments=seen)
                return attention(query, key, value, causal=False, **places), None

            return block(x, states, attend), None

        index = jnp.arange(self.config.num_layers)
        x, _, tapped = run(self.layers, layer, x, xs=index, taps=taps)
        vectors = self.projection(x)
        end = jnp.broadcast_to(self.end[...].astype(x.dtype), (len(x), 1, vectors.shape[2]))
        return jnp.concatenate([vectors, end], axis=1), x, tapped


def _dropped(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    seen: jax.Array | None,
    rate: float,
    keys: jax.Array,
) -> jax.Array:
    """Attention of which some is dropped: [b t n h], [b s n h] twice, i32[b s] or None (what is 0
    is not seen) -> [b t n h]."""
    scores = jnp.einsum("btnh,bsnh->bnts", query, key).astype(jnp.float32)
    scores = scores * query.shape[-1] ** -0.5
    if seen is not None:
        scores = jnp.where(seen[:, None, None] > 0, scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bnts,bsnh->btnh", dropout(weights, rate, keys), value)
