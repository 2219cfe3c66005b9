"""Q-Former (arXiv 2301.12597, section 3.1): a BERT whose queries look at a picture.

    queries [b q d] --+                          every layer      post-norm, exact GELU
    text    [b t d] --+-- embedding norm --> self-attention over both
                                             queries of every second layer: cross-attention to the
                                             picture
                                             feed-forward: one for queries, one for text

MiniGPT-4 reference, section 3; Cheetor reference, section 3. Both take the queries' half alone:
`QFormerConfig.vocab_size` = 0. Queries have no positions, so a system may give its own, per row.
Dropout is left out: the papers' frozen Q-Formers run without.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.kernels.attention import attention
from mmjax.nn.attention import Attention
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

    def __call__(self, x, image, attend):  # [b q d], [b s e] -> [b q d]
        return self.norm(x + self.attention(x, attend, seen=image)[0])


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

        def among(q, k, v):
            kept = dict(query_segments=segments, key_segments=segments)
            return attention(q, k, v, causal=False, **kept), None

        def look(q, k, v):
            if image_segments is None:
                return attention(q, k, v, causal=False), None
            ones = jnp.ones(q.shape[:2], image_segments.dtype)
            kept = dict(query_segments=ones, key_segments=image_segments)
            return attention(q, k, v, causal=False, **kept), None

        def layer(block: Block, x, _, cross: CrossAttention | None):
            x = block.attention_norm(x + block.attention(x, among)[0])
            queries, text = x[:, :num_queries], x[:, num_queries:]
            if cross is not None:
                queries = cross(queries, image, look)
            parts = [block.query(queries)] if num_queries else []
            parts += [block.text(text)] if text.shape[1] else []
            return constrain_rows(jnp.concatenate(parts, axis=1)), None

        # Text alone passes by the picture.
        extras = dict(extras=self.cross, period=self.config.cross_every) if num_queries else {}
        x, _, tapped = run(self.layers, layer, x, taps=taps, **extras)
        return x, tapped

    def logits(self, states: jax.Array) -> jax.Array:  # [b t d] -> f32[b t v]
        """Scores of the words; needs ``text_head``."""
        if self.head is None:
            raise ValueError("this Q-Former does not predict words; its config has no text_head")
        scores = self.embedding.attend(self.head(states))
        return scores.astype(jnp.float32) + self.head.bias[...]
