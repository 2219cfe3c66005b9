"""EVA ViT (arXiv 2211.07636) as BLIP-2 and Lynx use it: MiniGPT-4 reference, section 2; Lynx
reference, section 1.1.

A pre-norm ViT with learned positions and exact GELU. What comes out is the last block's state of
the class token and all patches: no final norm, no pooling, no head. The norm that follows belongs
to who uses it (`mmjax.models.blip2`); Lynx has none.

BEiT's options (arXiv 2106.08254), which EVA's code has and its published ViT-g leaves
off: relative positions as a bias of the attention, no absolute ones, scaled residual branches.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
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
      bias: whether queries and values have a bias.
      key_bias: whether keys have a bias, as Hugging Face's BLIP-2 spells it (zeros in published
        files). It changes no output: a softmax does not see what all its scores share.
      positions: whether patches have learned absolute positions.
      relative: whether each block has a table of relative positions; ``shared_relative``: whether
        there is one for all blocks.
      layer_scale: what the residual branches are scaled by at the start; the scales are learned. 0
        = there are none.
      init_std: of the kernels at the start.
      position_std: of positions and class token at the start.
    """

    image_size: int
    patch_size: int
    num_layers: int
    embed_dim: int
    mlp_dim: int
    num_heads: int
    bias: bool = True
    key_bias: bool = False
    positions: bool = True
    relative: bool = False
    shared_relative: bool = False
    layer_scale: float = 0.0
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


def relative_index(grid: int) -> np.ndarray:
    """Which row of a table of relative positions belongs to each (query, key): i32[p+1 p+1].

    A row for each (rows, columns) that the query's patch lies behind the key's, in reading order of
    a square of 2*grid-1; then one each for class token -> patch, patch -> class token, and class
    token -> itself.
    """
    wide = 2 * grid - 1
    y, x = (axis.reshape(-1) for axis in np.indices((grid, grid)))
    behind = lambda axis: axis[:, None] - axis[None] + grid - 1  # noqa: E731
    index = np.full((grid**2 + 1, grid**2 + 1), wide**2, np.int32)
    index[1:, 0], index[0, 0] = wide**2 + 1, wide**2 + 2
    index[1:, 1:] = behind(y) * wide + behind(x)
    return index


class RelativePositions(nnx.Module):
    """A bias of the attention for each distance between two patches, and head."""

    def __init__(self, config: EvaVitConfig):
        rows = (2 * config.grid - 1) ** 2 + 3
        init = normal(config.position_std)
        self.table = param((rows, config.num_heads), (None, None), init)
        self.grid = config.grid

    def __call__(self) -> jax.Array:  # [n p+1 p+1]
        return self.table[...][relative_index(self.grid)].transpose(2, 0, 1)


class Block(nnx.Module):
    def __init__(self, config: EvaVitConfig):
        embed, mlp, heads = _AXES
        self.attention_norm = LayerNorm(config.embed_dim, axis=embed, eps=config.norm_eps)
        self.attention = Attention(
            config.embed_dim,
            num_heads=config.num_heads,
            head_dim=config.embed_dim // config.num_heads,
            bias=config.bias,
            key_bias=config.key_bias,
            out_bias=True,
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
        self.relative = RelativePositions(config) if config.relative else None
        self.attention_scale, self.mlp_scale = _scale(config), _scale(config)

    def __call__(self, x: jax.Array, shared: jax.Array | None = None) -> jax.Array:
        """[b p+1 d], the bias that all blocks share [n p+1 p+1] or None -> [b p+1 d]."""
        x = x + _scaled(self.attended(x, shared), self.attention_scale)
        return constrain_rows(x + _scaled(self.mlp(self.mlp_norm(x)), self.mlp_scale))

    def attended(self, x: jax.Array, shared: jax.Array | None = None) -> jax.Array:
        """What the attention adds, before its scale."""
        bias = shared
        if self.relative is not None:
            bias = self.relative() if shared is None else self.relative() + shared

        def attend(q, k, v):
            return attention(q, k, v, causal=False, bias=bias), None

        return self.attention(self.attention_norm(x), attend)[0]


def _scale(config: EvaVitConfig) -> nnx.Param | None:
    if not config.layer_scale:
        return None
    start = jax.nn.initializers.constant(config.layer_scale)
    return param((config.embed_dim,), ("vit_embed",), start)


def _scaled(x: jax.Array, scale: nnx.Param | None) -> jax.Array:
    return x if scale is None else x * scale[...].astype(x.dtype)


class EvaVit(nnx.Module):
    """The tower. A class token is put first.

    EVA divides the residual layers of block i by sqrt(2i) at the start, which matters for deep
    towers that train from scratch.
    """

    def __init__(self, config: EvaVitConfig):
        d = config.embed_dim
        pixels, where = 3 * config.patch_size**2, normal(config.position_std)
        kernel = dict(bias=True, init=normal(config.init_std))
        self.patch = Dense(pixels, d, axes=(None, "vit_embed"), **kernel)
        self.class_embedding = param((d,), ("vit_embed",), where)
        places = (config.grid**2 + 1, d)
        self.position = param(places, (None, "vit_embed"), where) if config.positions else None
        self.relative = RelativePositions(config) if config.shared_relative else None
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
        shared = None if self.relative is None else self.relative()
        body = lambda block, x, *_: (block(x, shared), None)  # noqa: E731
        x, _, tapped = run(self.layers, body, x, taps=taps)
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
        x = jnp.concatenate([first, x], axis=1)
        return x if self.position is None else x + self.position[...].astype(x.dtype)

    def patches(self, pixels: jax.Array) -> jax.Array:  # [b H W 3] -> [b p d], in reading order
        return self.patch(cut_patches(pixels, self.config.patch_size))

    def image_features(self, frames: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """uint8[b H W 3] -> [b p+1 d]. BLIP-2's pictures are normalised as CLIP's."""
        return self(normalise(frames, dtype))[0]
