"""What may be put between the layers of a finished language model: adapters, and cross-attention
to what it was not made for."""

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.kernels.attention import attention
from mmjax.nn.dense import Dense
from mmjax.nn.mlp import MLP
from mmjax.nn.norm import LayerNorm
from mmjax.nn.param import normal, ones, param, zeros


class Adapter(nnx.Module):
    """``x + scaling * up(silu(down(norm(x))))`` (arXiv 1902.00751, figure 2, with Lynx's numbers:
    Lynx reference, section 1.4).

    Nothing starts at zero: a model with new adapters is not the model without.
    """

    def __init__(self, embed_dim: int, adapter_dim: int):
        self.norm = LayerNorm(embed_dim, eps=1e-5)
        self.down = Dense(embed_dim, adapter_dim, axes=("embed", "mlp"), bias=True, init=normal())
        self.up = Dense(adapter_dim, embed_dim, axes=("mlp", "embed"), bias=True, init=normal())
        self.scaling = param((1,), (None,), ones)

    def __call__(self, x: jax.Array) -> jax.Array:  # [b t d] -> [b t d]
        return x + self.scaling[...].astype(x.dtype) * self.up(jax.nn.silu(self.down(self.norm(x))))


class GatedCrossAttention(nnx.Module):
    """Flamingo's gated cross-attention and feed-forward (arXiv 2204.14198, "GATED XATTN-DENSE"):

        x += tanh(attention_gate) * attention(norm(x), seen)
        x += tanh(mlp_gate) * mlp(norm(x))

    Both gates start at zero: the model starts as the one without.
    """

    def __init__(self, embed_dim: int, *, num_heads: int, head_dim: int, seen_dim: int):
        width = num_heads * head_dim
        self.attention_norm = LayerNorm(embed_dim)
        self.q = Dense(embed_dim, width, axes=("embed", "heads"))
        self.k = Dense(seen_dim, width, axes=("embed", "heads"))
        self.v = Dense(seen_dim, width, axes=("embed", "heads"))
        self.o = Dense(width, embed_dim, axes=("heads", "embed"))
        self.attention_gate = param((1,), (None,), zeros)
        self.mlp_norm = LayerNorm(embed_dim)
        self.mlp = MLP(embed_dim, 4 * embed_dim, activation="gelu", bias=False)
        self.mlp_gate = param((1,), (None,), zeros)
        self.head_dim = head_dim

    def look(self, seen: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[b s e] -> (keys, values), [b s n h] each."""
        heads = (*seen.shape[:2], -1, self.head_dim)
        return self.k(seen).reshape(heads), self.v(seen).reshape(heads)

    def __call__(
        self, x: jax.Array, keys: jax.Array, values: jax.Array, segments: jax.Array
    ) -> jax.Array:
        """x [b*c t d], keys and values [b s n h], segments i32[b s] (0 = there is nothing to see)
        -> [b*c t d]. In a row with nothing to see the attention adds nothing; copies of a row
        (beams) look together."""
        b = len(keys)
        query = self.q(self.attention_norm(x)).reshape(b, -1, *keys.shape[2:])
        ones = jnp.ones(query.shape[:2], segments.dtype)
        context = attention(
            query, keys, values, causal=False, query_segments=ones, key_segments=segments
        )
        sees = (segments > 0).any(axis=1)[:, None, None]
        context = jnp.where(sees, context.reshape(*ones.shape, -1), 0).reshape(*x.shape[:2], -1)
        gate = lambda value: jnp.tanh(value[...]).astype(x.dtype)  # noqa: E731
        x = x + gate(self.attention_gate) * self.o(context)
        return x + gate(self.mlp_gate) * self.mlp(self.mlp_norm(x))
