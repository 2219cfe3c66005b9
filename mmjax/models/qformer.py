"""Q-Former (arXiv 2301.12597, section 3.1): a BERT whose queries look at a picture.

    queries [b q d] --+                          every layer      post-norm, exact GELU
    text    [b t d] --+-- embedding norm --> self-attention over both
                                             queries of every second layer: cross-attention to the
                                             picture
                                             feed-forward: one for queries, one for text

Who sees whom (section 3.2 and figure 2):

    queries and text     everybody everybody                         `QFormer.__call__`
    captioning           queries see queries alone, text sees        `QFormer.look`, then
                         queries and earlier text                    `QFormer.write`

MiniGPT-4 reference, section 3; Cheetor reference, section 3. Both take the queries' half alone:
`QFormerConfig.vocab_size` = 0. Queries have no positions, so a system may give its own, per row.
Dropout is left out: the papers' frozen Q-Formers run without.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.kernels.attention import attention
from mmjax.nn.attention import Attention
from mmjax.nn.cache import KeyValues
from mmjax.nn.dense import Dense, Embedding
from mmjax.nn.mlp import ACTIVATIONS, MLP
from mmjax.nn.norm import LayerNorm
from mmjax.nn.param import normal, param, zeros
from mmjax.nn.stack import run, stack
from mmjax.parallel.sharding import constrain_rows

_EMBED, _MLP, _HEADS = "query_embed", "query_mlp", "query_heads"


@dataclasses.dataclass(frozen=True)
class QFormerConfig:
    """Sizes and switches.

    Attributes:
      image_dim: width of the picture's states.
      cross_every: layers 0, cross_every, 2 * cross_every, ... look at the picture.
      vocab_size: of the text branch; 0 = there is none.
      max_positions: of the text branch.
      text_head: whether the text branch predicts words; shares its embedding.
    """

    num_layers: int
    embed_dim: int
    mlp_dim: int
    num_heads: int
    image_dim: int
    cross_every: int = 2
    vocab_size: int = 0
    max_positions: int = 512
    text_head: bool = False
    norm_eps: float = 1e-12

    def __post_init__(self):
        if self.text_head and not self.vocab_size:
            raise ValueError("a Q-Former with text_head needs a text branch: give vocab_size")

    @classmethod
    def tiny(cls, **changes) -> "QFormerConfig":
        sizes = dict(num_layers=4, embed_dim=128, mlp_dim=512, num_heads=4, image_dim=128)
        return cls(**sizes | changes)

    @classmethod
    def bert_base(cls, **changes) -> "QFormerConfig":
        """BLIP-2's, on EVA ViT-g."""
        sizes = dict(num_layers=12, embed_dim=768, mlp_dim=3072, num_heads=12, image_dim=1408)
        return cls(**sizes | changes)


def _attention(config: QFormerConfig, seen: tuple[int, str] | None = None) -> Attention:
    return Attention(
        config.embed_dim,
        num_heads=config.num_heads,
        head_dim=config.embed_dim // config.num_heads,
        bias=True,
        axes=(_EMBED, _HEADS, _HEADS),
        seen=seen,
    )


def _norm(config: QFormerConfig) -> LayerNorm:
    return LayerNorm(config.embed_dim, axis=_EMBED, eps=config.norm_eps)


class CrossAttention(nnx.Module):
    """What every ``cross_every``-th layer has besides."""

    def __init__(self, config: QFormerConfig):
        self.attention = _attention(config, seen=(config.image_dim, "vit_embed"))
        self.norm = _norm(config)

    def __call__(self, x, image, attend):  # [b q d], [b s e] -> ([b q d], what attend kept)
        attended, kept = self.attention(x, attend, seen=image)
        return self.norm(x + attended), kept


class FeedForward(nnx.Module):
    def __init__(self, config: QFormerConfig):
        self.mlp = MLP(config.embed_dim, config.mlp_dim, activation="gelu", axes=(_EMBED, _MLP))
        self.norm = _norm(config)

    def __call__(self, x):  # [b t d] -> [b t d]
        return self.norm(x + self.mlp(x))


class Block(nnx.Module):
    def __init__(self, config: QFormerConfig):
        self.attention = _attention(config)
        self.attention_norm = _norm(config)
        self.query = FeedForward(config)
        self.text = FeedForward(config) if config.vocab_size else None


class TextHead(nnx.Module):
    """BERT's: states -> what is compared with the word embeddings, and a bias for each word."""

    def __init__(self, config: QFormerConfig):
        d = config.embed_dim
        self.dense = Dense(d, d, axes=(_EMBED, None), bias=True)
        self.norm = _norm(config)
        self.bias = param((config.vocab_size,), ("vocab",), zeros)

    def __call__(self, x):  # [b t d] -> [b t d]
        return self.norm(ACTIVATIONS["gelu"](self.dense(x)))


class QFormer(nnx.Module):
    def __init__(self, config: QFormerConfig):
        d, text = config.embed_dim, config.vocab_size > 0
        self.embedding = Embedding(config.vocab_size, d, axis=_EMBED) if text else None
        self.position = param((config.max_positions, d), (None, _EMBED), normal()) if text else None
        self.embedding_norm = _norm(config)
        self.layers = stack(Block(config), config.num_layers)
        self.cross = stack(CrossAttention(config), -(-config.num_layers // config.cross_every))
        self.head = TextHead(config) if config.text_head else None
        self.config = config

    def embed(
        self,
        queries: jax.Array | None,
        tokens: jax.Array | None = None,
        *,
        dtype: jnp.dtype = jnp.float32,
    ) -> jax.Array:  # [b q d], i32[b t] -> [b q+t d]
        """Queries, then text with positions 0..t-1; either may be missing. ``dtype`` is for text
        without queries."""
        parts = [] if queries is None else [queries]
        if tokens is not None:
            if self.embedding is None:
                raise ValueError("this Q-Former has no text branch; give its config a vocab_size")
            dtype = dtype if queries is None else queries.dtype
            position = self.position[: tokens.shape[1]].astype(dtype)
            parts.append(self.embedding(tokens, dtype) + position)
        return self.embedding_norm(jnp.concatenate(parts, axis=1))

    def __call__(
        self,
        x: jax.Array,
        *,
        num_queries: int,
        image: jax.Array | None = None,
        image_segments: jax.Array | None = None,
        segments: jax.Array | None = None,
        taps: tuple[int, ...] = (),
    ) -> tuple[jax.Array, jax.Array | None]:
        """Reads a picture and a text.

        Args:
          x: [b q+t d] from `embed`.
          num_queries: q; the places after them are text.
          image: [b s e], or None where there are no queries.
          image_segments: i32[b s]; 0 = padding. None = nothing is padded.
          segments: i32[b q+t], likewise.
          taps: layers whose states are wanted.

        Returns:
          (states [b q+t d], tapped [taps b q+t d] or None).
        """
        if num_queries and image is None:
            raise ValueError("queries look at a picture; give its states as image")
        if num_queries < x.shape[1] and self.embedding is None:
            raise ValueError(
                f"{x.shape[1]} places, {num_queries} of them queries: the others need a text "
                "branch; give the config a vocab_size"
            )

        def among(q, k, v, _):
            kept = dict(query_segments=segments, key_segments=segments)
            return attention(q, k, v, causal=False, **kept), None

        seen = dict(num_queries=num_queries, image=image, image_segments=image_segments)
        x, _, _, tapped = self._run(x, among, taps=taps, **seen)
        return x, tapped

    def look(
        self, x: jax.Array, *, image: jax.Array, image_segments: jax.Array | None = None
    ) -> tuple[jax.Array, KeyValues]:
        """Queries alone, as `__call__` reads them: [b q d] -> (states [b q d], what a caption is
        written from)."""

        def among(q, k, v, _):
            return attention(q, k, v, causal=False), (k, v)

        seen = dict(num_queries=x.shape[1], image=image, image_segments=image_segments)
        x, _, (keys, values), _ = self._run(x, among, **seen)
        return x, KeyValues(keys, values, jnp.ones(x.shape[:2], jnp.int32))

    def write(self, x: jax.Array, past: KeyValues, segments: jax.Array | None = None) -> jax.Array:
        """A caption: each word sees the queries and the words before it.

        Args:
          x: [b t d], text from `embed`.
          past: the queries', from `look`.
          segments: i32[b t]; 0 = padding (on the right), 1 elsewhere.

        Returns:
          States [b t d], for `logits`.
        """
        if self.embedding is None:
            raise ValueError("this Q-Former has no text branch; give its config a vocab_size")
        segments = jnp.ones(x.shape[:2], jnp.int32) if segments is None else segments
        places = jnp.concatenate([past.segments, segments], axis=1)

        def among(q, k, v, before):
            k, v = (jnp.concatenate(pair, axis=1) for pair in zip(before, (k, v), strict=True))
            kept = dict(query_segments=segments, key_segments=places)
            return attention(q, k, v, causal=True, **kept), None

        return self._run(x, among, num_queries=0, past=(past.keys, past.values))[0]

    def attention_map(
        self, x: jax.Array, *, image: jax.Array, image_segments: jax.Array | None = None
    ) -> jax.Array:
        """How much queries [b q d] look at each state of a picture: f32[b s], sums to 1.

        The mean over queries, heads and layers with cross-attention (Cheetor reference, section 8,
        "Ignored region").
        """

        def among(q, k, v, _):
            return attention(q, k, v, causal=False), None

        seen = dict(num_queries=x.shape[1], image=image, image_segments=image_segments)
        _, total, _, _ = self._run(x, among, weigh=True, **seen)
        return total / -(-self.config.num_layers // self.config.cross_every)

    def _run(
        self,
        x: jax.Array,
        among: Callable,
        *,
        num_queries: int,
        image: jax.Array | None = None,
        image_segments: jax.Array | None = None,
        past: tuple[jax.Array, jax.Array] | None = None,
        weigh: bool = False,
        taps: tuple[int, ...] = (),
    ) -> tuple[jax.Array, jax.Array | None, object, jax.Array | None]:
        """All layers.

        Args:
          among: self-attention: (query, key, value, the layer's row of ``past``) -> (context, what
            to keep of the layer).
          weigh: whether the probabilities of the cross-attention are wanted.

        Returns:
          (states, sum over layers of those probabilities f32[b s] or None, what was kept [l ...],
          tapped).
        """

        def look(q, k, v):
            segments = {}
            if image_segments is not None:
                ones = jnp.ones(q.shape[:2], image_segments.dtype)
                segments = dict(query_segments=ones, key_segments=image_segments)
            weights = _mean_weights(q, k, image_segments) if weigh else None
            return attention(q, k, v, causal=False, **segments), weights

        def layer(block: Block, carry, past, cross: CrossAttention | None):
            x, total = carry
            attended, kept = block.attention(x, lambda q, k, v: among(q, k, v, past))
            x = block.attention_norm(x + attended)
            queries, text = x[:, :num_queries], x[:, num_queries:]
            if cross is not None:
                queries, weights = cross(queries, image, look)
                total = total + weights if weigh else None
            parts = [block.query(queries)] if num_queries else []
            parts += [block.text(text)] if text.shape[1] else []
            return (constrain_rows(jnp.concatenate(parts, axis=1)), total), kept

        # Text alone passes by the picture.
        extras = dict(extras=self.cross, period=self.config.cross_every) if num_queries else {}
        total = jnp.zeros(image.shape[:2], jnp.float32) if weigh else None
        (x, total), kept, tapped = run(self.layers, layer, (x, total), xs=past, taps=taps, **extras)
        return x, total, kept, tapped

    def logits(self, states: jax.Array) -> jax.Array:  # [b t d] -> f32[b t v]
        """Scores of the words; needs ``text_head``."""
        if self.head is None:
            raise ValueError("this Q-Former does not predict words; its config has no text_head")
        scores = self.embedding.attend(self.head(states))
        return scores.astype(jnp.float32) + self.head.bias[...]


def _mean_weights(query: jax.Array, key: jax.Array, segments: jax.Array | None) -> jax.Array:
    """What `attention` weighs the keys with, averaged: [b q n h], [b s n h] -> f32[b s]."""
    query, key = query.astype(jnp.float32), key.astype(jnp.float32)
    scores = jnp.einsum("bqnh,bsnh->bnqs", query, key) * query.shape[-1] ** -0.5
    if segments is not None:
        scores = jnp.where(segments[:, None, None] > 0, scores, -jnp.inf)
    return jax.nn.softmax(scores, axis=-1).mean((1, 2))
