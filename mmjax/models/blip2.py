"""BLIP-2's seeing half (arXiv 2301.12597): EVA ViT, a norm, queries, Q-Former.

    picture --EVA ViT--> --ln_vision--> image [b p+1 e] --Q-Former, queries [q d]--> [b q d]

LMEye's second generation, MiniGPT-4 and Cheetor start from it, each with its own layer from the
queries to its language model; Cheetor also asks the same Q-Former with queries of its own.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.models.eva_vit import EvaVit, EvaVitConfig
from mmjax.models.qformer import QFormer, QFormerConfig
from mmjax.nn.norm import LayerNorm
from mmjax.nn.param import normal, param


@dataclasses.dataclass(frozen=True)
class Blip2Config:
    """Sizes.

    Attributes:
      norm_eps: of the norm between the two networks: 1e-5 in LAVIS, whatever the tower's own is
        (MiniGPT-4 reference, section 2). Hugging Face gives it the tower's.
    """

    vision: EvaVitConfig
    qformer: QFormerConfig
    num_queries: int = 32
    norm_eps: float = 1e-5

    def __post_init__(self):
        if self.vision.embed_dim != self.qformer.image_dim:
            raise ValueError(
                f"the tower's states are {self.vision.embed_dim} wide, the Q-Former looks at states"
                f" of width {self.qformer.image_dim}; make image_dim the tower's embed_dim"
            )

    @classmethod
    def named(cls, variant: str, **changes) -> "Blip2Config":
        """A published size, or ``tiny``."""
        variants = {"tiny": cls.tiny, "vit-g": cls.vit_g}
        if variant not in variants:
            raise ValueError(f"BLIP-2 has no variant {variant!r}; there are {', '.join(variants)}")
        return variants[variant](**changes)

    @classmethod
    def tiny(cls, **changes) -> "Blip2Config":
        """``asset:tiny/blip2``; where Hugging Face and LAVIS differ, as in Hugging Face's files."""
        vision = EvaVitConfig.tiny(key_bias=True)
        networks = dict(vision=vision, qformer=QFormerConfig.tiny(), num_queries=8, norm_eps=1e-6)
        return cls(**networks | changes)

    @classmethod
    def vit_g(cls, **changes) -> "Blip2Config":
        """All published BLIP-2 on EVA ViT-g; their weights differ by language model."""
        networks = dict(vision=EvaVitConfig.g_14(), qformer=QFormerConfig.bert_base())
        return cls(**networks | changes)


class Blip2(nnx.Module):
    def __init__(self, config: Blip2Config):
        d = config.qformer.embed_dim
        self.vision = EvaVit(config.vision)
        self.norm = LayerNorm(config.vision.embed_dim, axis="vit_embed", eps=config.norm_eps)
        self.queries = param((config.num_queries, d), (None, "query_embed"), normal())
        self.qformer = QFormer(config.qformer)
        self.config = config

    def image_features(self, frames: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """uint8[b H W 3] -> [b p+1 e], normalised: what every question to the picture starts
        from."""
        return self.norm(self.vision.image_features(frames, dtype))

    def query(self, image: jax.Array, queries: jax.Array | None = None) -> jax.Array:
        """Asks about pictures: image [b p+1 e] -> [b q d].

        Args:
          queries: [b q d] of a system's own; None = BLIP-2's for every row.
        """
        x = self.embed_queries(image, queries)
        return self.qformer(x, num_queries=x.shape[1], image=image)[0]

    def attention_map(self, image: jax.Array, queries: jax.Array | None = None) -> jax.Array:
        """How much the queries look at the class token and each patch: image [b p+1 e] -> f32[b
        p+1]; see `QFormer.attention_map`."""
        return self.qformer.attention_map(self.embed_queries(image, queries), image=image)

    def embed_queries(self, image: jax.Array, queries: jax.Array | None = None) -> jax.Array:
        """Queries for each picture, ready for the Q-Former: [b q d]; ``queries`` as in `query`."""
        if queries is None:
            own = self.queries[...].astype(image.dtype)
            queries = jnp.broadcast_to(own, (image.shape[0], *own.shape))
        return self.qformer.embed(queries)
