"""EVA ViT (arXiv 2211.07636) as BLIP-2 uses it: MiniGPT-4 reference, section 2.

A pre-norm ViT with learned positions and exact GELU. What comes out is the last block's state of
the class token and all patches: no final norm, no pooling, no head. The norm that follows belongs
to who uses it (`mmjax.models.blip2`).
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.kernels.attention import attention
from mmjax.models.clip import normalise
from mmjax.nn.attention import Attention
from mmjax.nn.dense import Dense
from mmjax.nn.mlp import MLP
from mmjax.nn.norm import LayerNorm
from mmjax.nn.param import normal, param
from mmjax.nn.patches import cut_patches
from mmjax.nn.stack import run, stack
from mmjax.parallel.sharding import constrain_rows

_AXES = ("vit_embed", "vit_mlp", "vit_heads")


@dataclasses.dataclass(frozen=True)
class EvaVitConfig:
    """Pictures are ``image_size`` pixels square, cut into patches of ``patch_size`` pixels square.

    Attributes:
      key_bias: whether keys have a bias, as Hugging Face's BLIP-2 spells it (zeros in published
        files). It changes no output: a softmax does not see what all its scores share.
      init_std: of the kernels at the start.
      position_std: of positions and class token at the start.
    """

    image_size: int
    patch_size: int
    num_layers: int
    embed_dim: int
    mlp_dim: int
    num_heads: int
    key_bias: bool = False
    norm_eps: float = 1e-6
    init_std: float = 0.02
    position_std: float = 0.02

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch_size

    @classmethod
    def tiny(cls, **changes) -> "EvaVitConfig":
        sizes = dict(image_size=64, patch_size=8, num_layers=4)
        sizes |= dict(embed_dim=128, mlp_dim=512, num_heads=4)
        return cls(**sizes | changes)

    @classmethod
    def g_14(cls, **changes) -> "EvaVitConfig":
        """ViT-g/14 without EVA's 40th block: `eva_vit_g.pth` (BLIP-2), `EVA01_g_psz14.pt`."""
        sizes = dict(image_size=224, patch_size=14, num_layers=39)
        sizes |= dict(embed_dim=1408, mlp_dim=6144, num_heads=16)
        return cls(**sizes | changes)


class Block(nnx.Module):
    def __init__(self, config: EvaVitConfig):
        embed, mlp, heads = _AXES
        self.attention_norm = LayerNorm(config.embed_dim, axis=embed, eps=config.norm_eps)
        self.attention = Attention(
            config.embed_dim,
            num_heads=config.num_heads,
            head_dim=config.embed_dim // config.num_heads,
            bias=True,
            key_bias=config.key_bias,
            axes=(embed, heads, heads),
            init=normal(config.init_std),
        )
        self.mlp_norm = LayerNorm(config.embed_dim, axis=embed, eps=config.norm_eps)
        self.mlp = MLP(
            config.embed_dim,
            config.mlp_dim,
            activation="gelu",
            axes=(embed, mlp),
            init=normal(config.init_std),
        )

    def __call__(self, x: jax.Array) -> jax.Array:  # [b p+1 d] -> [b p+1 d]
        def attend(q, k, v):
            return attention(q, k, v, causal=False), None

        x = x + self.attention(self.attention_norm(x), attend)[0]
        return constrain_rows(x + self.mlp(self.mlp_norm(x)))


class EvaVit(nnx.Module):
    """The tower. A class token is put first, positions are learned.

    EVA divides the residual layers of block i by sqrt(2i) at the start, which matters for deep
    towers that train from scratch.
    """

    def __init__(self, config: EvaVitConfig):
        d = config.embed_dim
        pixels, where = 3 * config.patch_size**2, normal(config.position_std)
        kernel = dict(bias=True, init=normal(config.init_std))
        self.patch = Dense(pixels, d, axes=(None, "vit_embed"), **kernel)
        self.class_embedding = param((d,), ("vit_embed",), where)
        self.position = param((config.grid**2 + 1, d), (None, "vit_embed"), where)
        self.layers = stack(Block(config), config.num_layers)
        self.config = config

    def __call__(
        self, pixels: jax.Array, taps: tuple[int, ...] = ()
    ) -> tuple[jax.Array, jax.Array | None]:
        """Normalised pixels [b H W 3] -> (states of class token and patches [b p+1 d], those after
        the blocks in ``taps`` [taps b p+1 d] or None).

        Raises:
          ValueError: pictures of another size than the positions are for.
        """
        x = constrain_rows(self.embed(pixels))
        x, _, tapped = run(self.layers, lambda block, x, *_: (block(x), None), x, taps=taps)
        return x, tapped

    def embed(self, pixels: jax.Array) -> jax.Array:
        """Normalised pixels [b H W 3] -> class token and patches with their positions [b p+1 d]."""
        size = self.config.image_size
        if pixels.shape[1:3] != (size, size):
            raise ValueError(
                f"pictures of {pixels.shape[1]} x {pixels.shape[2]} pixels, positions for {size} x "
                f"{size}; resize the pictures, or import the tower with another image_size"
            )
        x = self.patches(pixels)
        first = jnp.broadcast_to(
            self.class_embedding[...].astype(x.dtype), (x.shape[0], 1, x.shape[2])
        )
        return jnp.concatenate([first, x], axis=1) + self.position[...].astype(x.dtype)

    def patches(self, pixels: jax.Array) -> jax.Array:  # [b H W 3] -> [b p d], in reading order
        return self.patch(cut_patches(pixels, self.config.patch_size))

    def image_features(self, frames: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """uint8[b H W 3] -> [b p+1 d]. BLIP-2's pictures are normalised as CLIP's."""
        return self(normalise(frames, dtype))[0]
