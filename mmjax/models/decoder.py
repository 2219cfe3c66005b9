"""What all language models here share that write: reading a text, continuing one, and one token at
a time. A model adds its blocks and says what is its own.

    tokens --embed--> x --start--> blocks --norm--> hidden states --logits--> next tokens

A block is called as ``block(x, positions, attend)`` and gives (x, what attend kept); which keys its
queries see is decided here, so that blocks know neither caches nor masks.

Letters: as in `mmjax.data.batch` and `mmjax.nn.cache`.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax.kernels.attention import attention
from mmjax.kernels.decoding import decode_attention
from mmjax.nn.attention import Attend
from mmjax.nn.cache import Cache, KeyValues
from mmjax.nn.dense import Dense, Embedding
from mmjax.nn.stack import run
from mmjax.parallel.sharding import constrain_rows


class Block(nnx.Module):
    """A layer, pre-norm: ``x + attention(norm(x))``, then ``x + mlp(norm(x))``."""

    def __init__(
        self,
        *,
        attention_norm: nnx.Module,
        attention: nnx.Module,
        mlp_norm: nnx.Module,
        mlp: nnx.Module,
    ):
        self.attention_norm = attention_norm
        self.attention = attention
        self.mlp_norm = mlp_norm
        self.mlp = mlp

    def __call__(self, x, positions, attend):  # [b t d] -> [b t d], what attend kept
        y, kept = self.attention(self.attention_norm(x), attend, positions)
        x = x + y
        return constrain_rows(x + self.mlp(self.mlp_norm(x))), kept


class Decoder(nnx.Module):
    """Subclasses set the attributes, and override what is different in them: `start` (before the
    first block), `bias` (of the attention), `layer` (a block, and what belongs to it besides) and
    `extras` (parts that only some layers have).

    Attributes:
      encodes: whether prompts are encoded, and only answers read here: `mmjax.models.t5`.
      scale: of the scores of the attention; None = 1 / sqrt(head dimension).
      config: has ``num_layers``, ``remat`` and ``attention``, see `mmjax.models.llama.LlamaConfig`.
      layers: of `mmjax.nn.stack.stack`.
      head: the output layer; None = the input embedding.
      head_added: and that of the rows which a system added, or None: they have no logits.
    """

    encodes: ClassVar[bool] = False
    scale: ClassVar[float | None] = None
    embedding: Embedding
    layers: nnx.Module
    norm: nnx.Module
    head: Dense | None
    head_added: Dense | None = None

    def start(self, x: jax.Array, positions: jax.Array) -> jax.Array:
        """The embeddings of words and slots [b t d] -> what the first block reads."""
        del positions
        return x

    def bias(self, segments: jax.Array, positions: jax.Array) -> jax.Array | None:
        """Added to the scores of all layers: i32[b s] of the keys, i32[b t] of the queries -> f32[b
        n t s] (t can be 1: the same for every query), or None."""
        del segments, positions
        return None

    def layer(
        self, block: nnx.Module, x: jax.Array, positions: jax.Array, attend: Attend, **beside
    ) -> tuple[jax.Array, object]:
        """One layer: [b t d] -> ([b t d], what ``attend`` kept).

        Args:
          beside: ``extra``, of `extras`, or None; ``index``, the layer's number; ``seen``, what
            cross-attention looks at, or None.
        """
        del beside
        return block(x, positions, attend)

    def extras(self) -> dict:
        """Arguments of `mmjax.nn.stack.run`."""
        return {}

    def embed(self, tokens: jax.Array, dtype: jnp.dtype) -> jax.Array:  # i32[b t] -> [b t d]
        return constrain_rows(self.embedding(tokens, dtype))

    def __call__(
        self,
        x: jax.Array,
        *,
        positions: jax.Array,
        segments: jax.Array,
        past: KeyValues | None = None,
        keep: bool = False,
        edits: Mapping[int, Callable[[jax.Array], jax.Array]] | None = None,
        seen: KeyValues | None = None,
    ) -> tuple[jax.Array, KeyValues | None]:
        """Reads a text, or the continuation of one.

        Args:
          x: [b t d] embeddings.
          positions: i32[b t].
          segments: i32[b t]; 0 = padding.
          past: what this text continues, or None.
          keep: whether the keys and values of this text are wanted (without those of ``past``).
          edits: layer -> what becomes of the hidden states [b t d] just before it, see
            `mmjax.nn.stack.run`.
          seen: what cross-attention looks at, from `look`; None where there is none.

        Returns:
          (hidden states [b t d] after the final norm, KeyValues or None).
        """
        places = segments if past is None else jnp.concatenate([past.segments, segments], axis=1)
        bias = self.bias(places, positions)

        def layer(block, x, xs, extra):
            index, earlier = xs

            def attend(query, key, value):
                k, v = key, value
                if earlier is not None:
                    k, v = (
                        jnp.concatenate(pair, axis=1) for pair in zip(earlier, (k, v), strict=True)
                    )
                context = attention(
                    query,
                    k,
                    v,
                    causal=True,
                    query_segments=segments,
                    key_segments=places,
                    bias=bias,
                    scale=self.scale,
                    implementation=self.config.attention,
                )
                return context, (key, value) if keep else None

            return self.layer(block, x, positions, attend, extra=extra, index=index, seen=seen)

        earlier = None if past is None else (past.keys, past.values)
        xs = (np.arange(self.config.num_layers), earlier)
        more = dict(edits=edits, remat=self.config.remat)
        x = self.start(x, positions)
        x, kept, _ = run(self.layers, layer, x, xs=xs, **more, **self.extras())
        return self.norm(x), KeyValues(*kept, segments) if keep else None

    def decode(self, x: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """One more token for every row: [n 1 d] -> (hidden states [n 1 d], the cache with the token
        in it)."""
        positions, prompt = cache.position[:, None], cache.prompt
        is_new = jnp.arange(cache.keys.shape[3]) <= cache.count
        copies = len(cache.position) // len(prompt.segments)
        places = jnp.concatenate(
            [
                jnp.repeat(prompt.segments, copies, axis=0),
                jnp.broadcast_to(is_new.astype(jnp.int32), (len(positions), len(is_new))),
            ],
            axis=1,
        )
        bias = self.bias(places, positions)

        def layer(block, x, xs, extra):
            index, earlier, keys, values = xs

            def attend(query, key, value):
                put = lambda room, one: jax.lax.dynamic_update_slice(  # noqa: E731
                    room, one.swapaxes(1, 2), (0, 0, cache.count, 0)
                )
                new = put(keys, key), put(values, value)
                context = decode_attention(
                    query,
                    (*earlier, prompt.segments > 0),
                    (*new, is_new),
                    bias=bias,
                    scale=self.scale,
                )
                return context, new

            return self.layer(
                block, x, positions, attend, extra=extra, index=index, seen=cache.seen
            )

        earlier = prompt.keys, prompt.values
        xs = (np.arange(self.config.num_layers), earlier, cache.keys, cache.values)
        x, kept, _ = run(self.layers, layer, self.start(x, positions), xs=xs, **self.extras())
        keys, values = kept
        cache = Cache(prompt, keys, values, cache.position + 1, cache.count + 1, cache.seen)
        return self.norm(x), cache

    def logits(self, hidden: jax.Array) -> jax.Array:  # [b t d] -> f32[b t v]
        out = self.embedding.attend(hidden) if self.head is None else self.head(hidden)
        if self.head_added is not None:
            out = jnp.concatenate([out, self.head_added(hidden)], axis=-1)
        return out.astype(jnp.float32)
