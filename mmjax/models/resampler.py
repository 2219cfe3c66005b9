"""Lynx's resampler (arXiv 2307.02469): however many states pictures have, they become a fixed
number of vectors of the language model's width.

A Perceiver resampler as Flamingo's (arXiv 2204.14198), but keys and values are of the media alone:
the latents do not see each other (Lynx reference, section 1.2).

    latents [q d] --.   every layer    x += attention(norm(x), norm(media))
    media [s e] ----+-->               x += mlp(norm(x))               --> norm --> [q d]
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.kernels.attention import attention
from mmjax.nn.attention import Attention
from mmjax.nn.mlp import MLP
from mmjax.nn.norm import LayerNorm
from mmjax.nn.param import linear, normal, param
from mmjax.nn.stack import run, stack
from mmjax.parallel.sharding import constrain_rows


@dataclasses.dataclass(frozen=True)
class ResamplerConfig:
    """Sizes.

    Attributes:
      embed_dim: of the latents; ``media_dim``: of what they look at.
      num_latents: vectors that one medium becomes (q).
      num_heads, head_dim: of the attention, narrower than the latents.
    """

    embed_dim: int
    media_dim: int
    mlp_dim: int
    num_latents: int = 32
    num_layers: int = 3
    num_heads: int = 8
    head_dim: int = 64
    norm_eps: float = 1e-5

    @classmethod
    def tiny(cls, **changes) -> "ResamplerConfig":
        sizes = dict(embed_dim=128, media_dim=128, mlp_dim=256, num_latents=8, num_layers=2)
        return cls(**sizes | dict(num_heads=4, head_dim=32) | changes)

    @classmethod
    def lynx(cls, **changes) -> "ResamplerConfig":
        """From EVA ViT-g to a LLaMA-7B: 0.420 G."""
        return cls(**dict(embed_dim=4096, media_dim=1408, mlp_dim=16384) | changes)


class Block(nnx.Module):
    def __init__(self, config: ResamplerConfig):
        d = config.embed_dim
        self.media_norm = LayerNorm(config.media_dim, axis="vit_embed", eps=config.norm_eps)
        self.attention_norm = LayerNorm(d, eps=config.norm_eps)
        self.attention = Attention(
            d,
            num_heads=config.num_heads,
            head_dim=config.head_dim,
            axes=("embed", "heads", "heads"),
            seen=(config.media_dim, "vit_embed"),
            init=linear,
        )
        self.mlp_norm = LayerNorm(d, eps=config.norm_eps)
        self.mlp = MLP(d, config.mlp_dim, activation="gelu", bias=False, init=linear)

    def __call__(self, x: jax.Array, media: jax.Array, attend) -> jax.Array:
        """x [b q d], media [b s e] -> [b q d]."""
        x = x + self.attended(x, media, attend)
        return constrain_rows(x + self.mlp(self.mlp_norm(x)))

    def attended(self, x: jax.Array, media: jax.Array, attend) -> jax.Array:
        """What the attention adds."""
        return self.attention(self.attention_norm(x), attend, seen=self.media_norm(media))[0]


class Resampler(nnx.Module):
    def __init__(self, config: ResamplerConfig):
        shape = (config.num_latents, config.embed_dim)
        self.latents = param(shape, (None, "embed"), normal(1.0))
        self.layers = stack(Block(config), config.num_layers)
        self.norm = LayerNorm(config.embed_dim, eps=config.norm_eps)
        self.config = config

    def __call__(
        self,
        media: jax.Array,
        item: jax.Array | None = None,
        *,
        items: int = 1,
        taps: tuple[int, ...] = (),
    ) -> tuple[jax.Array, jax.Array | None]:
        """Looks at the media of a row.

        Args:
          media: [b s e], states of all of them.
          item: i32[b s], the number of the medium, from 0, that a state belongs to; -1 = to none.
            None: all belong to the first.
          items: m, how many media a row may have. Each has latents of its own, which see nothing
            else; those of a medium that a row does not have mean nothing.
          taps: layers after which the latents are wanted.

        Returns:
          (vectors [b m*q d], tapped [taps b m*q d] or None).
        """
        own = jnp.tile(self.latents[...].astype(media.dtype), (items, 1))
        x = jnp.broadcast_to(own, (media.shape[0], *own.shape))
        segments = {}
        if item is not None:
            number = jnp.repeat(jnp.arange(items, dtype=item.dtype), self.config.num_latents)
            queries = jnp.broadcast_to(number + 1, x.shape[:2])
            segments = dict(query_segments=queries, key_segments=item + 1)

        def attend(q, k, v):
            return attention(q, k, v, causal=False, **segments), None

        body = lambda block, x, *_: (block(x, media, attend), None)  # noqa: E731
        x, _, tapped = run(self.layers, body, x, taps=taps)
        return self.norm(x), tapped
