"""LLaMA (arXiv 2302.13971) and what has its shape: Vicuna, LLaMA-2, SmolLM2.

Pre-norm blocks with RMSNorm, rotary positions, SwiGLU, no biases; grouped key heads where the
config says so. Lynx puts something into every p-th layer, a period of the stack
(`mmjax.nn.stack`): an adapter at its end, or (in an ablation) cross-attention at its beginning.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.kernels.attention import attention
from mmjax.nn.adapter import Adapter, GatedCrossAttention
from mmjax.nn.attention import Attention
from mmjax.nn.cache import Cache, KeyValues
from mmjax.nn.dense import Dense, Embedding
from mmjax.nn.mlp import GatedMLP
from mmjax.nn.norm import RMSNorm
from mmjax.nn.param import normal, zeros
from mmjax.nn.stack import run, stack
from mmjax.parallel.sharding import constrain_rows


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Sizes and switches.

    Attributes:
      num_kv_heads: None = ``num_heads``.
      head_dim: None = ``embed_dim // num_heads``.
      tied_head: whether the output layer is the input embedding.
      max_positions: how many tokens a text may have; longer ones were never seen in training.
      added_rows: vocabulary rows that a system adds after ``vocab_size``.
      added_logits: whether they have logits, and start as the others do, not at zero.
      adapter_every: layers 0, adapter_every, 2 * adapter_every, ... end with an adapter; 0 = none.
      adapter_dim: its inner width.
      cross_every: so many layers apart, beginning with the first, cross-attention to states of the
        same width comes before the layer; 0 = nowhere.
      splits: layers before which the hidden states may be edited, see `mmjax.nn.stack`.
      remat: none | full | dots, see `mmjax.nn.stack.run`.
      attention: auto | xla | cudnn | splash.
      init_std: of kernels and words at the start.
    """

    vocab_size: int
    num_layers: int
    embed_dim: int
    mlp_dim: int
    num_heads: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    norm_eps: float = 1e-6
    rope_base: float = 10000.0
    max_positions: int = 2048
    tied_head: bool = False
    added_rows: int = 0
    added_logits: bool = False
    adapter_every: int = 0
    adapter_dim: int = 0
    cross_every: int = 0
    splits: tuple[int, ...] = ()
    remat: str = "none"
    attention: str = "auto"
    init_std: float = 0.02

    def __post_init__(self):
        problems = [
            f"{name} is {value}, it must be 0 (none) to {self.num_layers}, the number of layers"
            for name in ("adapter_every", "cross_every")
            if not 0 <= (value := getattr(self, name)) <= self.num_layers
        ]
        if self.adapter_every and self.cross_every:
            problems.append(
                f"adapter_every is {self.adapter_every} and cross_every {self.cross_every}: a stack"
                " has one kind of extra; make one of them 0"
            )
        if self.added_logits and (self.tied_head or not self.added_rows):
            problems.append(
                f"added_logits with added_rows {self.added_rows} and tied_head {self.tied_head}: "
                "there must be rows, and a head of its own"
            )
        if bool(self.adapter_every) != bool(self.adapter_dim):
            problems.append(
                f"adapter_every is {self.adapter_every}, adapter_dim {self.adapter_dim}: both are "
                "0, or neither"
            )
        if problems:
            raise ValueError("LlamaConfig:\n  " + "\n  ".join(problems))

    @property
    def extra_every(self) -> int:
        """The period of what some layers have besides; 0 = none has anything."""
        return self.adapter_every or self.cross_every

    @classmethod
    def tiny(cls, **changes) -> "LlamaConfig":
        sizes = dict(vocab_size=47, num_layers=4, embed_dim=128, mlp_dim=344, num_heads=4)
        return cls(**sizes | changes)

    @classmethod
    def tiny_multi(cls, **changes) -> "LlamaConfig":
        """With the words for several pictures; at 0.02 a net this narrow stays long where it
        begins."""
        return cls.tiny(**dict(vocab_size=66, init_std=0.08) | changes)

    @classmethod
    def tiny_clips(cls, **changes) -> "LlamaConfig":
        """With the words for clips, otherwise as `tiny_multi`."""
        return cls.tiny_multi(**dict(vocab_size=58) | changes)

    @classmethod
    def llama_7b(cls, **changes) -> "LlamaConfig":
        sizes = dict(vocab_size=32000, num_layers=32, embed_dim=4096, mlp_dim=11008, num_heads=32)
        return cls(**sizes | changes)

    @classmethod
    def llama2_7b(cls, **changes) -> "LlamaConfig":
        return cls.llama_7b(**dict(norm_eps=1e-5, max_positions=4096) | changes)

    @classmethod
    def llama_13b(cls, **changes) -> "LlamaConfig":
        sizes = dict(vocab_size=32000, num_layers=40, embed_dim=5120, mlp_dim=13824, num_heads=40)
        return cls(**sizes | changes)


class Block(nnx.Module):
    def __init__(self, config: LlamaConfig):
        init = normal(config.init_std)
        self.attention_norm = RMSNorm(config.embed_dim, eps=config.norm_eps)
        self.attention = Attention(
            config.embed_dim,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim or config.embed_dim // config.num_heads,
            rope_base=config.rope_base,
            init=init,
        )
        self.mlp_norm = RMSNorm(config.embed_dim, eps=config.norm_eps)
        self.mlp = GatedMLP(config.embed_dim, config.mlp_dim, init=init)

    def __call__(self, x, positions, attend):  # [b t d] -> [b t d], what attend kept
        y, kept = self.attention(self.attention_norm(x), attend, positions)
        x = x + y
        return constrain_rows(x + self.mlp(self.mlp_norm(x))), kept


def _cross_attention(config: LlamaConfig) -> GatedCrossAttention:
    head_dim = config.head_dim or config.embed_dim // config.num_heads
    sizes = dict(num_heads=config.num_heads, head_dim=head_dim, seen_dim=config.embed_dim)
    return GatedCrossAttention(config.embed_dim, **sizes)


class Llama(nnx.Module):
    def __init__(self, config: LlamaConfig):
        d, v, init = config.embed_dim, config.vocab_size, normal(config.init_std)
        added = dict(added_rows=config.added_rows, added_init=zeros)
        if config.added_logits:
            added["added_init"] = init
        self.embedding = Embedding(v, d, init=init, **added)
        self.layers = stack(Block(config), config.num_layers, config.splits)
        count = -(-config.num_layers // config.extra_every) if config.extra_every else 0
        adapter = Adapter(config.embed_dim, config.adapter_dim)
        self.adapters = stack(adapter, count) if config.adapter_every else None
        self.cross = stack(_cross_attention(config), count) if config.cross_every else None
        self.norm = RMSNorm(config.embed_dim, eps=config.norm_eps)
        tied = config.tied_head
        self.head = None if tied else Dense(d, v, axes=("embed", "vocab"), init=init)
        more = Dense(d, config.added_rows, axes=("embed", None), init=init)
        self.head_added = more if config.added_logits else None
        self.config = config

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
                    implementation=self.config.attention,
                )
                return context, (key, value) if keep else None

            x, kept = block(self._before(x, extra, index, seen), positions, attend)
            return self._after(x, extra), kept

        earlier = None if past is None else (past.keys, past.values)
        xs = (jnp.arange(self.config.num_layers), earlier)
        more = dict(edits=edits, remat=self.config.remat)
        x, kept, _ = run(self.layers, layer, x, xs=xs, **more, **self._extras())
        return self.norm(x), KeyValues(*kept, segments) if keep else None

    def look(self, seen: jax.Array, segments: jax.Array) -> KeyValues:
        """What the cross-attention of all layers sees: states [b s d], segments i32[b s] (0 =
        nothing is there). Once for a text and what is generated after it."""
        graph, weights = nnx.split(self.cross)
        one = lambda _, weights: (None, nnx.merge(graph, weights).look(seen))  # noqa: E731
        _, (keys, values) = jax.lax.scan(one, None, weights)
        return KeyValues(keys, values, segments)

    def _extras(self) -> dict:
        """Arguments of `mmjax.nn.stack.run`."""
        extras = self.adapters if self.cross is None else self.cross
        return {} if extras is None else dict(extras=extras, period=self.config.extra_every)

    def _before(self, x, extra, index: jax.Array, seen: KeyValues | None) -> jax.Array:
        if not isinstance(extra, GatedCrossAttention):
            return x
        if seen is None:
            raise ValueError(
                f"this language model has cross-attention every {self.config.cross_every} layers: "
                "give what it looks at as seen (segments of 0 where there is nothing)"
            )
        row = index // self.config.cross_every
        at = lambda x: jax.lax.dynamic_index_in_dim(x, row, keepdims=False)  # noqa: E731
        return extra(x, at(seen.keys), at(seen.values), seen.segments)

    def _after(self, x: jax.Array, extra) -> jax.Array:
        return extra(x) if isinstance(extra, Adapter) else x

    def decode(self, x: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """One more token for every row: [b 1 d] -> (hidden states [b 1 d], the cache with the token
        in it).

        The cache travels in the scan's carry and is updated in place; as scan input and output it
        would be copied.
        """
        positions = cache.position[:, None]
        segments = cache.segments.at[:, cache.end].set(1)

        def layer(block, carry, index, extra):
            x, keys, values = carry

            def attend(query, key, value):
                new_keys = jax.lax.dynamic_update_slice(
                    keys, key[None], (index, 0, cache.end, 0, 0)
                )
                new_values = jax.lax.dynamic_update_slice(
                    values, value[None], (index, 0, cache.end, 0, 0)
                )
                k, v = (
                    jax.lax.dynamic_index_in_dim(c, index, keepdims=False)
                    for c in (new_keys, new_values)
                )
                one = jnp.ones_like(positions)
                context = attention(
                    query,
                    k,
                    v,
                    causal=False,
                    query_segments=one,
                    key_segments=segments,
                    implementation="xla",
                )
                return context, (new_keys, new_values)

            x = self._before(x, extra, index, cache.seen)
            x, (keys, values) = block(x, positions, attend)
            return (self._after(x, extra), keys, values), None

        index = jnp.arange(self.config.num_layers)
        start = (x, cache.keys, cache.values)
        (x, keys, values), _, _ = run(self.layers, layer, start, xs=index, **self._extras())
        cache = Cache(keys, values, segments, cache.position + 1, cache.end + 1, cache.seen)
        return self.norm(x), cache

    def logits(self, hidden: jax.Array) -> jax.Array:  # [b t d] -> f32[b t v]
        out = self.embedding.attend(hidden) if self.head is None else self.head(hidden)
        if self.head_added is not None:
            out = jnp.concatenate([out, self.head_added(hidden)], axis=-1)
        return out.astype(jnp.float32)
