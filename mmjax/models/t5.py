"""T5 (arXiv 1910.10683), an encoder-decoder, in its version 1.1: gated feed-forward layers (arXiv
2002.05202), and an output layer of its own. FLAN-T5 is one.

    text to read   --embed--> --encode--> states --look--> keys and values of every layer
                                                               | seen
    text to write  --embed--> decoder: blocks with cross-attention --logits--> next tokens

Pre-norm blocks with RMSNorm, no biases, scores that nothing divides. Positions are a bias of the
attention, one number for each head and distance, the same in all layers of a stack; far distances
share theirs. Dropout is left out: the papers' frozen T5 runs without.

What is written is a `Decoder`'s text like any other, with the encoded text as ``seen``, see
`mmjax.data.batch`. Its first token is a start token, in published models the pad, 0.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax.kernels.attention import attention
from mmjax.models.decoder import Decoder
from mmjax.nn.apart import entry
from mmjax.nn.attention import Attend, Attention
from mmjax.nn.cache import KeyValues
from mmjax.nn.dense import Dense, Embedding
from mmjax.nn.mlp import GatedMLP
from mmjax.nn.norm import RMSNorm
from mmjax.nn.param import Initializer, normal, param
from mmjax.nn.stack import each_layer, run, stack
from mmjax.parallel.sharding import constrain_rows


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Sizes and switches.

    Attributes:
      num_layers: of the decoder; ``num_encoder_layers``: of the encoder.
      head_dim: of a head; heads together need not be as wide as the model.
      num_buckets: how many distances are told apart.
      max_distance: from which on all are the same.
      max_positions: how many tokens a text may have; longer ones were never seen in training.
      activation: of the gates of the feed-forward layers.
      remat: none | full | dots, see `mmjax.nn.stack.run`.
      attention: auto | xla; no other takes a bias.
    """

    architecture: ClassVar[str] = "t5"

    vocab_size: int
    num_layers: int
    num_encoder_layers: int
    embed_dim: int
    mlp_dim: int
    num_heads: int
    head_dim: int
    num_buckets: int = 32
    max_distance: int = 128
    max_positions: int = 512
    norm_eps: float = 1e-6
    activation: str = "gelu_tanh"
    remat: str = "none"
    attention: str = "auto"

    def __post_init__(self):
        least = self.num_buckets // 4
        if self.num_buckets < 4 or self.num_buckets % 2 or self.max_distance <= 2 * least:
            raise ValueError(
                f"T5Config: num_buckets is {self.num_buckets}, it must be even and at least 4; "
                f"max_distance is {self.max_distance}, it must be above num_buckets // 2"
            )

    @classmethod
    def tiny(cls, **changes) -> "T5Config":
        sizes = dict(vocab_size=47, num_layers=2, num_encoder_layers=3, embed_dim=128, mlp_dim=344)
        return cls(**sizes | dict(num_heads=4, head_dim=32) | changes)

    @classmethod
    def flan_t5_xl(cls, **changes) -> "T5Config":
        sizes = dict(vocab_size=32128, num_layers=24, num_encoder_layers=24, embed_dim=2048)
        return cls(**sizes | dict(mlp_dim=5120, num_heads=32, head_dim=64) | changes)

    @classmethod
    def flan_t5_xxl(cls, **changes) -> "T5Config":
        return cls.flan_t5_xl(**dict(embed_dim=4096, mlp_dim=10240, num_heads=64) | changes)


class RelativeBias(nnx.Module):
    """Of one stack; see `buckets`."""

    def __init__(self, config: T5Config, *, both_ways: bool):
        init = normal(config.embed_dim**-0.5)
        self.table = param((config.num_buckets, config.num_heads), (None, None), init)
        self.max_distance = config.max_distance
        self.both_ways = both_ways

    def __call__(self, queries: jax.Array, keys: jax.Array) -> jax.Array:
        """Positions i32[b t] and i32[b s] -> what is added to their scores, f32[b n t s]."""
        far = self.max_distance
        number = self.table.shape[0]
        rows = buckets(number, far, both_ways=self.both_ways)
        by_distance = self.table[...].astype(jnp.float32)[rows].T  # [n 2 far + 1]
        distance = jnp.clip(keys[:, None, :] - queries[:, :, None], -far, far)  # [b t s]
        return jnp.take(by_distance, distance + far, axis=1).swapaxes(0, 1)


def buckets(number: int, max_distance: int, *, both_ways: bool) -> np.ndarray:
    """The row of the table for each distance from a query to a key, -max_distance ... max_distance.

    Near distances have a row each, farther ones share one, in steps that grow with the logarithm.
    ``both_ways`` (the encoder) gives the second half of the rows to keys after the query; otherwise
    these have the row of distance 0, and are seen by no one.
    """
    distance = np.arange(-max_distance, max_distance + 1)
    rows = number // 2 if both_ways else number
    size = np.abs(distance) if both_ways else np.maximum(-distance, 0)
    near = rows // 2
    steps = np.log(np.maximum(size, near) / near) / np.log(max_distance / near)
    # The rounding decides where a step begins: 1e-6 keeps exact ones on the side of torch's.
    far = near + np.floor(steps * (rows - near) + 1e-6).astype(int)
    row = np.where(size < near, size, np.minimum(far, rows - 1))
    return row + rows * (distance > 0) if both_ways else row


def _fan_in(gain: float = 1.0) -> Initializer:
    """Kernels [in out] of variance gain / in, as the original's start."""
    return jax.nn.initializers.variance_scaling(gain, "fan_in", "normal")


def _attention(config: T5Config) -> Attention:
    d, n, h = config.embed_dim, config.num_heads, config.head_dim
    layer = Attention(d, num_heads=n, head_dim=h, init=_fan_in())
    # Nothing divides the scores, so that queries start smaller.
    layer.q = Dense(d, n * h, axes=("embed", "heads"), init=_fan_in(1 / h))
    return layer


class Block(nnx.Module):
    """Of the encoder, or, with ``crosses``, of the decoder."""

    def __init__(self, config: T5Config, *, crosses: bool):
        d = config.embed_dim
        norm = lambda: RMSNorm(d, eps=config.norm_eps)  # noqa: E731
        self.attention_norm, self.attention = norm(), _attention(config)
        self.cross_norm = norm() if crosses else None
        self.cross = _attention(config) if crosses else None
        self.mlp_norm = norm()
        self.mlp = GatedMLP(d, config.mlp_dim, activation=config.activation, init=_fan_in())

    def __call__(
        self,
        x: jax.Array,
        attend: Attend,
        look: Callable[[jax.Array], jax.Array] | None = None,
    ) -> tuple[jax.Array, object]:
        """[b t d] -> ([b t d], what ``attend`` kept); ``look``: queries of the cross-attention [b t
        n h] -> what they find, likewise."""
        y, kept = self.attention(self.attention_norm(x), attend)
        x = x + y
        if self.cross is not None:
            query = self.cross.q(self.cross_norm(x))
            found = look(query.reshape(*x.shape[:2], -1, self.cross.head_dim))
            x = x + self.cross.o(found.reshape(*x.shape[:2], -1))
        return constrain_rows(x + self.mlp(self.mlp_norm(x))), kept


class Encoder(nnx.Module):
    def __init__(self, config: T5Config):
        self.layers = stack(Block(config, crosses=False), config.num_encoder_layers)
        self.relative = RelativeBias(config, both_ways=True)
        self.norm = RMSNorm(config.embed_dim, eps=config.norm_eps)
        self.config = config

    def __call__(self, x: jax.Array, segments: jax.Array) -> jax.Array:
        """Embeddings [b s d], segments i32[b s] (0 = padding) -> states [b s d] after the final
        norm."""
        positions = _positions(segments)
        bias = self.relative(positions, positions)

        def attend(query, key, value):
            context = attention(
                query,
                key,
                value,
                causal=False,
                query_segments=segments,
                key_segments=segments,
                bias=bias,
                scale=1.0,
                implementation=self.config.attention,
            )
            return context, None

        x, _, _ = run(
            self.layers, lambda block, x, *_: block(x, attend), x, remat=self.config.remat
        )
        return self.norm(x)


class T5(Decoder):
    encodes = True
    scale = 1.0

    def __init__(self, config: T5Config):
        d, v = config.embed_dim, config.vocab_size
        self.embedding = Embedding(v, d, init=normal(1.0))
        self.encoder = Encoder(config)
        self.layers = stack(Block(config, crosses=True), config.num_layers)
        self.relative = RelativeBias(config, both_ways=False)
        self.norm = RMSNorm(d, eps=config.norm_eps)
        self.head = Dense(d, v, axes=("embed", "vocab"), init=_fan_in())
        self.config = config

    def embed(self, tokens: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """In float32 instead of float16, and so all that follows: its states outgrow float16."""
        return super().embed(tokens, jnp.float32 if dtype == jnp.float16 else dtype)

    def encode(self, x: jax.Array, *, segments: jax.Array) -> jax.Array:
        """What is read: [b s d], segments i32[b s] (0 = padding) -> states [b s d]."""
        return self.encoder(x, segments)

    def look(self, states: jax.Array, segments: jax.Array) -> KeyValues:
        """What the cross-attention of all layers sees of `encode`'s states. Once for a text and
        what is written to it."""
        heads = (*states.shape[:2], -1, self.config.head_dim)
        keys, values = each_layer(
            lambda cross: (cross.k(states).reshape(heads), cross.v(states).reshape(heads)),
            self.layers.cross,
        )
        return KeyValues(keys, values, segments)

    def bias(self, segments: jax.Array, positions: jax.Array) -> jax.Array:
        return self.relative(positions, _positions(segments))

    def layer(self, block, x, positions, attend, *, extra, index, seen):
        if seen is None:
            raise ValueError(
                "a T5 writes to a text that it has read: give what it looks at as seen, from look"
            )
        keys, values = entry(seen.keys, index), entry(seen.values, index)

        def look(rows):
            # Copies of a prompt (beams) look at its text together.
            query = rows.reshape(len(keys), -1, *rows.shape[2:])
            context = attention(
                query,
                keys,
                values,
                causal=False,
                query_segments=jnp.ones_like(query[:, :, 0, 0], seen.segments.dtype),
                key_segments=seen.segments,
                scale=1.0,
                implementation=self.config.attention,
            )
            return context.reshape(rows.shape)

        return block(x, attend, look)


def _positions(segments: jax.Array) -> jax.Array:
    """i32[b s]: how many tokens came before each."""
    return jnp.cumsum(segments > 0, axis=1) - 1
